"""The data behind the page: a sample each second, the report made of it, the history, the events, and the viewers."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ....events import EVENTS
from .cluster_view import ClusterView
from .history import HISTORY_COLUMNS
from .memory import MemorySampler
from .report import ClusterInfo, build_report
from .sampler import Sample, Sampler
from .snapshot import take_snapshot
from .viewers import Viewers

logger = logging.getLogger("cluster2.monitor")

EVENT_REFRESH_DELAY_S = 0.1
"""Seconds from an event of the cluster to the report that shows what it has changed.

By then the master has written its part of the scoreboard, and a reload's many events cost one snapshot.
"""


class Dashboard:
    """Takes samples, and makes reports of them.

    Args:
        view: the state of the cluster.
        cluster: the properties of the cluster that never change.
        memory: measures the memory of processes.
    """

    def __init__(
        self, view: ClusterView, cluster: ClusterInfo | None = None, memory: MemorySampler | None = None
    ) -> None:
        self.view = view
        self._cluster = cluster or ClusterInfo()
        self.sampler = Sampler(view.board, self._cluster.master, memory)
        self.viewers = Viewers(self.sampler.events)
        self._last_report: tuple[int, dict[str, Any]] | None = None
        self._reported = ""
        self._refresh: asyncio.TimerHandle | None = None
        self.sampler.events.listeners.append(self._on_event)

    def on_second(self) -> None:
        """Take a sample, and send the report to the viewers.

        An error is logged once, and goes no further: health checks have to go on.
        """
        try:
            sample = self.sampler.sample(time.monotonic(), time.time())
            if self.viewers.report_viewers:  # else no report is made
                self.viewers.latest.publish(self.report(), sample.row)
                self.viewers.wake()
        except Exception as error:
            self._log_once(error)

    def _log_once(self, error: Exception) -> None:
        if self._reported != repr(error):
            self._reported = repr(error)
            logger.error("the cluster can't be surveyed", exc_info=error)

    def _on_event(self, event: Mapping[str, Any]) -> None:
        # The app's own events change nothing in a report, and there may be many of them.
        if event["event"] in EVENTS and self.viewers.report_viewers and self._refresh is None:
            self._refresh = asyncio.get_running_loop().call_later(EVENT_REFRESH_DELAY_S, self._send_current_report)

    def _send_current_report(self) -> None:
        """Send a report to the viewers, without a sample: the history has one row a second."""
        self._refresh = None
        try:
            self.viewers.latest.publish(self.current_report())
            self.viewers.wake()
        except Exception as error:
            self._log_once(error)

    def prepare(self) -> None:
        """Have a report ready for a new viewer, which shouldn't wait for the next second."""
        if not self.viewers.report_viewers:
            sample = self._last_sample()
            self.viewers.latest.publish(self.report(), sample.row)

    def report(self) -> dict[str, Any]:
        """Return the report of the last sample. It is made once for all viewers."""
        sample = self._last_sample()
        if self._last_report is None or self._last_report[0] != sample.number:
            self._last_report = sample.number, build_report(sample, self.sampler, self.view, self._cluster)
        return self._last_report[1]

    def current_report(self) -> dict[str, Any]:
        """Return a report of this moment. Its rates are those of the last sample, since a rate needs two moments."""
        snapshot = take_snapshot(self.view.board, time.monotonic(), time.time())
        sample = replace(self._last_sample(), snapshot=snapshot)
        return build_report(sample, self.sampler, self.view, self._cluster)

    def history(self, seconds: int, points: int) -> dict[str, Any]:
        """Return the columns, the rows and the marks of the last `seconds`, in about `points` rows."""
        now = time.time()
        history = self.sampler.history
        # A row from later than now was added before the clock was set back.
        rows = history.rows(now - seconds, now + 1, math.ceil(seconds / points))
        return {"columns": list(HISTORY_COLUMNS), "rows": rows, "marks": history.marks(now - seconds)}

    def _last_sample(self) -> Sample:
        return self.sampler.last_sample or self.sampler.sample(time.monotonic(), time.time())
