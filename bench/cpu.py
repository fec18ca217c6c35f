"""CPU time a request of whole process trees, master and all, under wrk.

Far steadier than requests a second: when the load generator shares the cores with the server, throughput also
measures how the scheduler deals them out; the CPU time that a request takes hardly depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.rounds import Comparison, Rounds, measure
from bench.rounds import compare as summarize
from bench.servers import Running


def compare(servers: Sequence[Running], how: Rounds) -> Comparison:
    """CPU microseconds a request, medians, and ratios to the first server."""
    return summarize(measure(servers, how), cpu=True)
