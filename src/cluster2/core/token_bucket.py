"""A token bucket that bounds log lines which clients and apps can cause. It has no clock of its own."""

from __future__ import annotations

LINES_PER_INTERVAL = 10
"""The size of the bucket: how many lines may pass at once."""
LINES_INTERVAL_S = 1.0
"""Seconds until another line may pass."""


class TokenBucket:
    """Bounds lines: `LINES_PER_INTERVAL` pass at once, then one each `LINES_INTERVAL_S`.

    Attributes:
        refused: how many were refused since the last one that passed. The caller resets it.
    """

    __slots__ = ("_as_of", "_left", "refused")

    def __init__(self) -> None:
        """Make a full bucket."""
        self._left = float(LINES_PER_INTERVAL)
        self._as_of = float("-inf")
        self.refused = 0

    def take(self, now: float) -> bool:
        """Return whether a line may pass now. If it may, the caller reads `refused` and sets it to 0."""
        self._left = min(float(LINES_PER_INTERVAL), self._left + (now - self._as_of) / LINES_INTERVAL_S)
        self._as_of = now
        if self._left < 1:
            self.refused += 1
            return False
        self._left -= 1
        return True
