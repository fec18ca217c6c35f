"""The state of the cluster as the scoreboard has it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from cluster2.core.health_page import Health
from cluster2.core.lifecycle import WorkerState
from cluster2.linux.scoreboard import Scoreboard
from cluster2.processes.monitor.data.cluster_view import ClusterView


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """Return a scoreboard with two wanted workers and none yet."""
    board = Scoreboard.create()
    board.header.traffic, board.header.wanted, board.header.beat = 1, 2, time.monotonic()
    yield board
    board.close()


def facts(board: Scoreboard) -> ClusterView:
    async def switch(enabled: bool) -> bool:
        return True

    return ClusterView(board, 3000, switch)


def worker(board: Scoreboard, state: WorkerState, *, late: bool = False) -> int:
    index = board.claim()
    row = board.row(index)
    row.pid, row.state, row.heartbeat = 1, state, time.monotonic() + (-4 if late else 2)
    return index


def test_ready(board: Scoreboard) -> None:
    """One worker that serves is enough; one that boots, drains, or has an overdue heartbeat doesn't count."""
    found = facts(board)
    for state in (WorkerState.BOOTING, WorkerState.DRAINING):
        worker(board, state)
    worker(board, WorkerState.READY, late=True)
    assert (found.ready, found.wanted, found.health(), found.not_ready()) == (
        0,
        2,
        Health.WARNING,
        "no worker is ready",
    )
    index = worker(board, WorkerState.READY)
    assert (found.ready, found.health(), found.not_ready()) == (1, Health.FINE, None)
    board.release(index)
    assert found.ready == 0


def test_traffic(board: Scoreboard) -> None:
    """A shutdown is reported before disabled traffic, and both before missing workers."""
    worker(board, WorkerState.READY)
    found = facts(board)
    board.header.traffic = 0
    assert (found.health(), found.not_ready()) == (Health.DISABLED, "traffic is disabled")
    board.header.leaving = 1
    assert (found.health(), found.not_ready()) == (Health.DISABLED, "shutting down")


def test_alive(board: Scoreboard) -> None:
    """A master without a heartbeat for 30 s is stuck; without a master (heartbeat 0) none can be."""
    found = facts(board)
    assert found.not_alive() is None
    board.header.beat = time.monotonic() - 31
    assert found.not_alive() == "the master has been stuck for 31 s"
    board.header.beat = 0
    assert found.not_alive() is None
