"""Counts, looked at now and then, as rates; buckets of latencies as what they were lately. Pure: the clock is the caller's."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any

from ....core import histogram


class Meter:
    """Makes rates of counts that only grow, by key. What isn't counted in a turn is forgotten."""

    def __init__(self) -> None:
        """Nothing was counted yet."""
        self._at: float | None = None
        self._elapsed = 0.0
        self._before: dict[Hashable, float] = {}
        self._counts: dict[Hashable, float] = {}

    def advance(self, now: float) -> None:
        """A new look begins.

        Args:
            now: monotonic seconds.
        """
        self._elapsed = 0.0 if self._at is None else now - self._at
        self._at = now
        self._before, self._counts = self._counts, {}

    def rate(self, key: Hashable, count: float | None) -> float | None:
        """How much was counted each second since the last turn.

        Returns:
            None if it isn't known: it wasn't counted before, or isn't now. A count that has fallen has begun anew: 0.
        """
        if count is None:
            return None
        self._counts[key] = count
        before = self._before.get(key)
        return None if before is None or self._elapsed <= 0 else max(0.0, count - before) / self._elapsed


class RecentLatency:
    """Latencies of the last turns, by key. What isn't counted in a turn is forgotten.

    Args:
        turns: how many.
    """

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self._before: dict[Hashable, deque[Sequence[int]]] = {}
        self._counts: dict[Hashable, deque[Sequence[int]]] = {}

    def advance(self) -> None:
        """A new look begins."""
        self._before, self._counts = self._counts, {}

    def summary(self, key: Hashable, buckets: Sequence[int] | None, slowest: float = 0.0) -> dict[str, Any]:
        """`p50` and `p99` in seconds of what was measured within the last turns; None if nothing was.

        Args:
            buckets: requests by bucket (`latencies`), ever; None: not known now.
            slowest: how long the slowest of these turns took, in seconds; 0: that isn't known.
        """
        if buckets is None:
            return {"p50": None, "p99": None}
        seen = self._counts[key] = self._before.get(key) or deque(maxlen=self._turns + 1)
        seen.append(tuple(buckets))
        fresh = [max(0, after - before) for before, after in zip(seen[0], seen[-1], strict=True)]
        return {"p50": histogram.quantile(fresh, 0.5, slowest), "p99": histogram.quantile(fresh, 0.99, slowest)}
