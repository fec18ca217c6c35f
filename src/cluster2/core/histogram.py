"""A histogram of request durations with fixed buckets, and its quantiles.

A worker counts each request that it measures in one bucket. Histograms of several workers, and of workers that have ended, are
added bucket by bucket. Quantiles are interpolated as in Prometheus' `histogram_quantile`, so `status`, the monitor's page and a
Prometheus server show the same figures.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final

BUCKET_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""The upper bounds of the buckets in seconds, inclusive. One more bucket counts the requests that took longer."""


def bucket(seconds: float) -> int:
    """Return the index of the bucket for a request of that duration, from 0 to `len(BUCKET_BOUNDS_S)`."""
    return bisect_left(BUCKET_BOUNDS_S, seconds)


def quantile(counts: Sequence[int], share: float, slowest: float = 0.0) -> float | None:
    """Return a quantile of the durations, in seconds; None: no request was measured.

    Durations within a bucket are taken as evenly spread. In the bucket beyond the last bound the slowest request is the upper
    bound; if that isn't known, the last bound is returned.

    Args:
        counts: requests by bucket.
        share: the share of requests below the quantile: 0.99 for the 99th percentile.
        slowest: the duration of the slowest request in seconds; the result isn't above it. 0: not known.
    """
    found = _interpolated(counts, share, slowest)
    return min(found, slowest) if found is not None and slowest else found


def _interpolated(counts: Sequence[int], share: float, slowest: float) -> float | None:
    rank = share * sum(counts)
    below, lower = 0, 0.0
    for count, upper in zip(counts, (*BUCKET_BOUNDS_S, max(slowest, BUCKET_BOUNDS_S[-1])), strict=True):
        if count and below + count >= rank:
            return lower + (upper - lower) * (rank - below) / count
        below, lower = below + count, upper
    return BUCKET_BOUNDS_S[-1] if any(counts) else None


def summary(counts: Sequence[int], slowest: float = 0.0) -> dict[str, Any] | None:
    """Return the quantiles that `status` shows, in seconds; None: no request was measured.

    Args:
        slowest: the duration of the slowest request in seconds; 0: not known.
    """
    measured = sum(counts)
    if not measured:
        return None
    p50, p99 = (quantile(counts, share, slowest) for share in (0.5, 0.99))
    return {"p50": p50, "p99": p99, "max": slowest or None, "measured": measured}
