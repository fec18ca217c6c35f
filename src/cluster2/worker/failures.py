"""Requests that failed in the app, counted without a step on the path of those that don't.

An engine logs what an app raises, with its traceback, and nothing else with one. So a filter on the engines' loggers sees each
failure, and no other request pays for it. (A level above `error` hides them from the filter as well.)
"""

from __future__ import annotations

import logging

LOGGERS = ("cluster2.wsgi", "cluster2.tcp")
"""Where engines log what an app raises."""


class Failures(logging.Filter):
    """Counts records with a traceback.

    Attributes:
        count: of those, ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def install(self) -> None:
        """Count from now on."""
        for name in LOGGERS:
            logging.getLogger(name).addFilter(self)

    def remove(self) -> None:
        """Count no more."""
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Called by the logger."""
        if record.exc_info:
            self.count += 1
        return True
