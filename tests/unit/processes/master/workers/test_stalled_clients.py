"""Stalled clients are reported, and not too often."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from cluster2.linux.scoreboard import Scoreboard
from cluster2.processes.master.state.handle import WorkerHandle
from cluster2.processes.master.workers.stalled_clients import STALL_REPORT_INTERVAL_S, StalledClientReporter


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = Scoreboard.create()
    yield board
    board.close()


def worker(board: Scoreboard, incarnation: int) -> WorkerHandle:
    return WorkerHandle(
        incarnation=incarnation, slot=0, generation=1, row=board.claim(), born=time.monotonic(), stacks_file=-1
    )


def test_once_a_minute(board: Scoreboard) -> None:
    """The first are reported at once, those within a minute after that together, and nothing if there are none."""
    stalls, one = StalledClientReporter(board), worker(board, 1)
    assert stalls.report_if_due([one], 0) is None
    board.row(one.row).stalled = 3
    said = stalls.report_if_due([one], 1)
    assert said is not None
    assert said.endswith(": 3")
    board.row(one.row).stalled = 10
    assert stalls.report_if_due([one], 2) is None
    board.row(one.row).stalled = 11
    said = stalls.report_if_due([one], STALL_REPORT_INTERVAL_S + 1)
    assert said is not None
    assert said.endswith(": 8")
    assert stalls.report_if_due([one], 3 * STALL_REPORT_INTERVAL_S) is None


def test_workers_come_and_go(board: Scoreboard) -> None:
    """A successor in the same row counts from zero; the counts of a worker that has ended are not lost or reported twice."""
    stalls, one = StalledClientReporter(board), worker(board, 1)
    board.row(one.row).stalled = 5
    assert stalls.report_if_due([one], 0) is not None
    board.release(one.row)
    two = worker(board, 2)
    assert two.row == one.row
    board.row(two.row).stalled = 2
    said = stalls.report_if_due([two], 2 * STALL_REPORT_INTERVAL_S)
    assert said is not None
    assert said.endswith(": 2")
