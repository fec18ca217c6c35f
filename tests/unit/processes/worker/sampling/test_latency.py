"""Durations of requests in a worker's row."""

from __future__ import annotations

from cluster2.core import histogram
from cluster2.linux.scoreboard import Scoreboard
from cluster2.processes.worker.sampling.latency import LATENCY_WINDOW_S, LatencyWindow


def test_measured() -> None:
    """Count requests by bucket and in sum; keep the slowest of the worker's life, and of the last one or two windows."""
    board = Scoreboard.create()
    row = board.row(board.claim())
    measured = LatencyWindow(row)
    measured.on_second(1000.0)
    measured.add(0.3)
    measured.add(0.1)
    assert (row.measured()[histogram.bucket(0.3)], sum(row.measured()), row.latency) == (1, 2, 0.4)
    assert (row.slowest, row.slowest_lately) == (0.3, 0.3)
    measured.on_second(1000.0 + LATENCY_WINDOW_S)
    measured.add(0.2)
    assert (row.slowest, row.slowest_lately) == (0.3, 0.3)
    measured.on_second(1001.0 + LATENCY_WINDOW_S)
    assert row.slowest_lately == 0.3
    measured.on_second(1000.0 + 2 * LATENCY_WINDOW_S)
    assert (row.slowest, row.slowest_lately) == (0.3, 0.2)
    measured.on_second(1000.0 + 3 * LATENCY_WINDOW_S)
    assert (row.slowest, row.slowest_lately) == (0.3, 0.0)
    board.close()
