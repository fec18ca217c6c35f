"""Requests a second at saturation, under wrk."""

from __future__ import annotations

from collections.abc import Sequence

from bench.rounds import Comparison, Rounds, measure
from bench.rounds import compare as summarize
from bench.servers import Running


def compare(servers: Sequence[Running], how: Rounds) -> Comparison:
    """Return the requests a second: medians, and ratios to the first server."""
    return summarize(measure(servers, how), cpu=False)
