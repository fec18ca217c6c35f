"""Where all comes together that is shown: the watch, the facts that are made of its looks, those who see them."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from typing import Any

from ..http.sse import Viewers
from .facts import Facts
from .history import HISTORY_COLUMNS
from .memory import MemorySampler
from .report import ClusterInfo, picture
from .sampler import Sample, Sampler
from .snapshot import survey

logger = logging.getLogger("cluster2.monitor")


class Dashboard:
    """Shows the cluster.

    Args:
        facts: what health checks know.
        subject: what never changes.
        scales: weigh processes.
    """

    def __init__(self, facts: Facts, subject: ClusterInfo | None = None, scales: MemorySampler | None = None) -> None:
        self._facts = facts
        self._subject = subject or ClusterInfo()
        self.watch = Sampler(facts.board, self._subject.master, scales)
        self.viewers = Viewers(self.watch.feed)
        self._made: tuple[int, dict[str, Any]] | None = None
        self._failed = ""

    def on_second(self) -> None:
        """A second has passed: look, and show it to those who watch.

        What goes wrong here is logged, once: health checks have to go on.
        """
        try:
            look = self.watch.sample(time.monotonic(), time.time())
            if self.viewers.watching:
                self.viewers.latest.publish(self.facts(), look.sample)
                self.viewers.wake()
        except Exception as error:
            if self._failed != repr(error):
                self._failed = repr(error)
                logger.exception("the cluster can't be looked at")

    def open(self) -> None:
        """Somebody is about to watch, and wants to see something now."""
        if not self.viewers.watching:
            look = self._sample()
            self.viewers.latest.publish(self.facts(), look.sample)

    def facts(self) -> dict[str, Any]:
        """Of the last second."""
        look = self._sample()
        if self._made is None or self._made[0] != look.number:
            self._made = look.number, picture(look, self.watch, self._facts, self._subject)
        return self._made[1]

    def facts_now(self) -> dict[str, Any]:
        """Of this moment, but for what follows from two moments: that is of the last second."""
        seen = survey(self._facts.board, time.monotonic(), time.time())
        return picture(replace(self._sample(), survey=seen), self.watch, self._facts, self._subject)

    def history(self, seconds: int, points: int) -> dict[str, Any]:
        """Of so many seconds, in about so many rows."""
        now = time.time()
        kept = self.watch.history
        # A row from later than now was added before the clock was set back.
        rows = kept.rows(now - seconds, now + 1, math.ceil(seconds / points))
        return {"columns": list(HISTORY_COLUMNS), "rows": rows, "marks": kept.marks(now - seconds)}

    def _sample(self) -> Sample:
        return self.watch.last or self.watch.sample(time.monotonic(), time.time())
