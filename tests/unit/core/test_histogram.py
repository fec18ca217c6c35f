"""Buckets and quantiles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.core.histogram import BUCKET_BOUNDS_S, bucket, quantile, summary


def counts(*seconds: float) -> list[int]:
    found = [0] * (len(BUCKET_BOUNDS_S) + 1)
    for each in seconds:
        found[bucket(each)] += 1
    return found


def test_buckets_include_their_bound() -> None:
    """A request belongs to the first bucket whose bound it doesn't exceed, as Prometheus' `le` says; the last takes all else."""
    assert [bucket(bound) for bound in BUCKET_BOUNDS_S] == list(range(len(BUCKET_BOUNDS_S)))
    assert bucket(0.0) == 0
    assert bucket(BUCKET_BOUNDS_S[-1] + 0.001) == bucket(1e9) == len(BUCKET_BOUNDS_S)


def test_quantiles_are_interpolated() -> None:
    """Within a bucket requests are taken for evenly spread; beyond the last bound that bound is told."""
    assert quantile(counts(*[0.02] * 10), 0.5) == pytest.approx(0.0175)
    assert quantile(counts(*[0.001] * 99, 0.2), 0.99) == pytest.approx(0.001)
    assert quantile(counts(*[0.001] * 90, *[0.2] * 10), 0.99) == pytest.approx(0.1 + 0.9 * 0.15)
    assert quantile(counts(100.0), 0.5) == BUCKET_BOUNDS_S[-1]


@given(st.lists(st.floats(0.0001, 100), min_size=1), st.floats(0.01, 1))
def test_no_quantile_exceeds_the_slowest(seconds: list[float], share: float) -> None:
    """If the slowest request is known, no quantile is above it; beyond the last bound it is what is told."""
    found = quantile(counts(*seconds), share, max(seconds))
    assert found is not None
    assert 0 <= found <= max(seconds)
    assert quantile(counts(100.0), 1.0, 100.0) == 100.0


def test_nothing_measured() -> None:
    """No requests: no figure rather than a zero."""
    assert quantile(counts(), 0.5) is None
    assert summary(counts()) is None


@given(st.lists(st.floats(0, 60), min_size=1))
def test_quantiles_bound_the_requests(seconds: list[float]) -> None:
    """A quantile lies in the bucket of the request at that rank, and p50 is never above p99."""
    found = summary(counts(*seconds))
    assert found is not None
    assert found["measured"] == len(seconds)
    assert found["p50"] <= found["p99"]
    for share in (0.5, 0.99):
        value = quantile(counts(*seconds), share)
        assert value is not None
        at = sorted(seconds)[max(0, -int(-share * len(seconds) // 1) - 1)]
        assert bucket(value) in (bucket(at), len(BUCKET_BOUNDS_S) - 1)
