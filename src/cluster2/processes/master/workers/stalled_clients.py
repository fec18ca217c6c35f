"""Tells operators of clients that stall: slow ones, broken ones, or an attack by slowness. Once a minute at most.

Only connections that were given up in the middle of something are told of. That a kept-alive connection is closed after its time
is the order of things; status counts it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ....linux.scoreboard import Scoreboard
from ..state.handle import WorkerHandle

STALL_REPORT_INTERVAL_S = 60.0
"""Seconds between two warnings."""


class StalledClientReporter:
    """Adds up what the workers count."""

    def __init__(self, board: Scoreboard) -> None:
        """Nothing was counted yet."""
        self._board = board
        self._seen: dict[int, int] = {}
        self._untold = 0
        self._told_at = float("-inf")

    def report_if_due(self, workers: Iterable[WorkerHandle], now: float) -> str | None:
        """Add up what has come since the last look. Returns what is to be told, if it is time to."""
        seen = {}
        for handle in workers:
            count = seen[handle.incarnation] = self._board.row(handle.row).stalled
            self._untold += max(0, count - self._seen.get(handle.incarnation, 0))
        self._seen = seen
        if not self._untold or now - self._told_at < STALL_REPORT_INTERVAL_S:
            return None
        count, self._untold, self._told_at = self._untold, 0, now
        return f"clients stalled in the middle of a request or a response, connections cut off (timeout): {count}"
