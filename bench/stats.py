"""Summaries of samples: quantiles of latencies, medians, ratios of pairs. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the sample below which about `share` (0 to 1) of the samples lie.

    Args:
        ordered: the samples, ascending, at least one.
    """
    if not ordered:
        raise ValueError("no samples")
    return ordered[round(share * (len(ordered) - 1))]


@dataclass(frozen=True, slots=True)
class Latencies:
    """A distribution of latencies in milliseconds. The quantiles are None if nothing was measured."""

    count: int
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Latencies:
        """Summarize latencies that are given in seconds, in any order."""
        ordered = sorted(seconds)
        if not ordered:
            return cls(0)
        p50, p90, p99, worst = (round(1000 * quantile(ordered, share), 3) for share in (0.5, 0.9, 0.99, 1.0))
        return cls(len(ordered), p50, p90, p99, worst)

    def __str__(self) -> str:
        if not self.count:
            return "nothing measured"
        return f"n {self.count} p50 {self.p50} p90 {self.p90} p99 {self.p99} max {self.max} ms"


def median_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Return the median of the ratios of pairs.

    Both were measured one after the other, round by round. A disturbance that lasts longer than a round affects both of a
    pair, and cancels out in their ratio.

    Args:
        values: one value a round.
        base: the same number of values, of the same rounds.
    """
    return statistics.median(value / other for value, other in zip(values, base, strict=True))


def middle(values: Sequence[float | None]) -> float | None:
    """Return the median of those values that were measured. None: none was."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def spread(values: Sequence[float]) -> float:
    """Return (max - min) / median, the spread of repeated measurements."""
    center = statistics.median(values)
    return (max(values) - min(values)) / center if center else 0.0
