"""Rates of counters, and recent quantiles of latency histograms. Pure: the caller has the clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any

from ....core import histogram


class RateMeter:
    """Rates of counters that only grow, by key. A key that isn't counted in a turn is forgotten."""

    def __init__(self) -> None:
        """Begin without counts."""
        self._advanced_at: float | None = None
        self._elapsed = 0.0
        self._before: dict[Hashable, float] = {}
        self._counts: dict[Hashable, float] = {}

    def advance(self, now: float) -> None:
        """Begin a turn.

        Args:
            now: monotonic seconds.
        """
        self._elapsed = 0.0 if self._advanced_at is None else now - self._advanced_at
        self._advanced_at = now
        self._before, self._counts = self._counts, {}

    def rate(self, key: Hashable, count: float | None) -> float | None:
        """Return the growth per second since the last turn.

        Returns:
            None if it isn't known, because the key wasn't counted before or isn't now. 0 if the count has fallen: it has begun
            anew.
        """
        if count is None:
            return None
        self._counts[key] = count
        before = self._before.get(key)
        return None if before is None or self._elapsed <= 0 else max(0.0, count - before) / self._elapsed


class RecentLatency:
    """Quantiles of the latencies of the last turns, by key. A key that isn't counted in a turn is forgotten.

    Args:
        turns: how many turns count as recent.
    """

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self._before: dict[Hashable, deque[Sequence[int]]] = {}
        self._counts: dict[Hashable, deque[Sequence[int]]] = {}

    def advance(self) -> None:
        """Begin a turn."""
        self._before, self._counts = self._counts, {}

    def summary(self, key: Hashable, buckets: Sequence[int] | None, slowest: float = 0.0) -> dict[str, Any]:
        """Return `p50` and `p99` of the last turns in seconds; None if nothing was measured in them.

        Args:
            buckets: all requests so far by bucket (`latencies`); None: not known now.
            slowest: the duration of the slowest request of these turns, in seconds; 0: not known.
        """
        if buckets is None:
            return {"p50": None, "p99": None}
        # One more than the turns: a difference needs both ends.
        seen = self._counts[key] = self._before.get(key) or deque(maxlen=self._turns + 1)
        seen.append(tuple(buckets))
        # A count that has fallen is no negative traffic.
        fresh = [max(0, after - before) for before, after in zip(seen[0], seen[-1], strict=True)]
        return {"p50": histogram.quantile(fresh, 0.5, slowest), "p99": histogram.quantile(fresh, 0.99, slowest)}
