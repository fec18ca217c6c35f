"""How long requests take, counted in buckets: small, fixed, and sums of it mean something.

A worker counts each request that it measures in one bucket. Buckets of several workers, or of several lives, are added one by
one; a quantile is found as Prometheus' `histogram_quantile` finds it, so that all who show one show the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final

BUCKET_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""The upper bounds of the buckets in seconds, inclusive; one more bucket is for what took longer."""


def bucket(seconds: float) -> int:
    """The bucket that a request of that length belongs to, from 0 to `len(BUCKET_BOUNDS_S)`."""
    return bisect_left(BUCKET_BOUNDS_S, seconds)


def quantile(counts: Sequence[int], share: float, slowest: float = 0.0) -> float | None:
    """How long requests took at most, but for the slowest ones; None if there are none.

    Within a bucket requests are taken for evenly spread; beyond the last bound that bound is all that is known, or the slowest.

    Args:
        counts: requests by bucket.
        share: of the requests, 0.99 for the 99th percentile.
        slowest: how long the slowest of them took, in seconds: nothing above it is returned; 0: that isn't known.
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
    """What `status` tells of it, times in seconds; None if none was measured.

    Args:
        slowest: how long the slowest of them took; 0: that isn't known.
    """
    measured = sum(counts)
    if not measured:
        return None
    p50, p99 = (quantile(counts, share, slowest) for share in (0.5, 0.99))
    return {"p50": p50, "p99": p99, "max": slowest or None, "measured": measured}
