"""Durations of requests, for the worker's row: by bucket, their sum, and the longest one.

The row has two values for the longest one: that of the worker's life, and that of the last ten to twenty seconds. They bound a
quantile that is estimated from buckets: no request took as long as the upper end of its bucket.
"""

from __future__ import annotations

from ....core import histogram
from ....linux.cells import MAX_COUNT
from ....linux.scoreboard import Row

LATENCY_WINDOW_S = 10.0
"""Seconds for which a request counts as recent, at least; at most it is twice as long."""


class LatencyWindow:
    """The measured requests of a worker."""

    def __init__(self, row: Row) -> None:
        """Start with no requests."""
        self._row = row
        self._slowest_now = 0.0
        self._turned_at = 0.0

    def add(self, seconds: float) -> None:
        """Count a request that took so many seconds."""
        row = self._row
        counts, bucket = row.latencies, histogram.bucket(seconds)
        counts[bucket] = min(counts[bucket], MAX_COUNT) + 1  # the app may have written anything there: don't overflow
        row.latency += seconds
        row.slowest = max(row.slowest, seconds)
        self._slowest_now = max(self._slowest_now, seconds)
        row.slowest_lately = max(row.slowest_lately, seconds)

    def on_second(self, now: float) -> None:
        """Forget the requests that are no longer recent. Called about once a second, with the monotonic time."""
        if now - self._turned_at >= LATENCY_WINDOW_S:
            self._turned_at = now
            self._row.slowest_lately, self._slowest_now = self._slowest_now, 0.0
