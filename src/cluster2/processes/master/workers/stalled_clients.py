"""Report clients that stall: slow ones, broken ones, or an attack by slowness. At most one report a minute.

Only connections that timed out in the middle of a request or a response are reported. An idle connection that is closed after
`timeout` is normal; the status counts it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ....linux.scoreboard import Scoreboard
from ..state.handle import WorkerHandle

STALL_REPORT_INTERVAL_S = 60.0
"""Seconds between two warnings."""


class StalledClientReporter:
    """Adds up the counters of the workers."""

    def __init__(self, board: Scoreboard) -> None:
        """Make a reporter that has counted nothing yet."""
        self._board = board
        self._seen: dict[int, int] = {}
        self._unreported = 0
        self._reported_at = float("-inf")

    def report_if_due(self, workers: Iterable[WorkerHandle], now: float) -> str | None:
        """Add up what was counted since the last call. Return a report if one is due, else None."""
        seen = {}
        for handle in workers:
            count = seen[handle.incarnation] = self._board.row(handle.row).stalled
            self._unreported += max(0, count - self._seen.get(handle.incarnation, 0))
        self._seen = seen
        if not self._unreported or now - self._reported_at < STALL_REPORT_INTERVAL_S:
            return None
        count, self._unreported, self._reported_at = self._unreported, 0, now
        return f"clients stalled in the middle of a request or a response, connections cut off (timeout): {count}"
