"""CPU time for each request of whole process trees, master included, under wrk.

This is far steadier than requests a second. When the load generator shares the cores with the server, throughput also
measures how the scheduler divides them. The CPU time that a request takes hardly depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.rounds import Comparison, Rounds, measure
from bench.rounds import compare as summarize
from bench.servers import Running


def compare(servers: Sequence[Running], how: Rounds) -> Comparison:
    """Return the CPU microseconds for each request: medians, and ratios to the first server."""
    return summarize(measure(servers, how), cpu=True)
