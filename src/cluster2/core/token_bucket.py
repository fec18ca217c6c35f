"""How often something may be told that others can cause: a token bucket, without a clock."""

from __future__ import annotations

LINES_PER_INTERVAL = 10
"""How often at once."""
LINES_INTERVAL_S = 1.0
"""Seconds until once more."""


class TokenBucket:
    """Lets `LINES_PER_INTERVAL` pass at once, then one each `LINES_INTERVAL_S`.

    Attributes:
        refused: how many haven't passed since the last one that has.
    """

    __slots__ = ("_as_of", "_left", "refused")

    def __init__(self) -> None:
        """Nothing was asked for yet."""
        self._left = float(LINES_PER_INTERVAL)
        self._as_of = float("-inf")
        self.refused = 0

    def take(self, now: float) -> bool:
        """Return whether one may pass; `refused` is for the caller to set back then."""
        self._left = min(float(LINES_PER_INTERVAL), self._left + (now - self._as_of) / LINES_INTERVAL_S)
        self._as_of = now
        if self._left < 1:
            self.refused += 1
            return False
        self._left -= 1
        return True
