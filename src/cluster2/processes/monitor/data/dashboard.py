"""Where all comes together that is shown: the watch, the facts that are made of its looks, those who see them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ....events import EVENTS
from ..http.sse import Viewers
from .facts import Facts
from .history import HISTORY_COLUMNS
from .memory import MemorySampler
from .report import ClusterInfo, picture
from .sampler import Sample, Sampler
from .snapshot import survey

logger = logging.getLogger("cluster2.monitor")

EVENT_REFRESH_DELAY_S = 0.1
"""Seconds from an event of the cluster to the facts that show what it has changed.

By then the master has written its part of the scoreboard, and a reload's many events cost one survey.
"""


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
        self._refresh: asyncio.TimerHandle | None = None
        self.watch.feed.listeners.append(self._on_event)

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
            self._report(error)

    def _report(self, error: Exception) -> None:
        if self._failed != repr(error):
            self._failed = repr(error)
            logger.error("the cluster can't be surveyed", exc_info=error)

    def _on_event(self, event: Mapping[str, Any]) -> None:
        # The app's own events change nothing that is shown, and there may be many of them.
        if event["event"] in EVENTS and self.viewers.watching and self._refresh is None:
            self._refresh = asyncio.get_running_loop().call_later(EVENT_REFRESH_DELAY_S, self._publish_facts)

    def _publish_facts(self) -> None:
        """Send fresh facts to all viewers, without a sample: the history has a row a second, no more."""
        self._refresh = None
        try:
            self.viewers.latest.publish(self.facts_now())
            self.viewers.wake()
        except Exception as error:
            self._report(error)

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
