"""The fields that the master's status and the monitor's report share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from cluster2.linux.cells import UNKNOWN_VALUE
from cluster2.linux.scoreboard import Scoreboard
from cluster2.runtime.status_fields import keeper_fields, monitor_fields, worker_fields


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = Scoreboard.create()
    yield board
    board.close()


def test_a_worker(board: Scoreboard) -> None:
    """Counts that an engine can't know are null; the others are the cells as they are."""
    row = board.row(board.claim())
    row.requests, row.connections, row.in_flight = 7, UNKNOWN_VALUE, 2
    fields = worker_fields(partial(getattr, row), row.measured())
    assert (fields["requests"], fields["connections"], fields["in_flight"]) == (7, None, 2)
    assert fields["responses"] == row.by_class()
    assert fields["latency"] is None
    row.draining = 1
    assert worker_fields(partial(getattr, row), row.measured())["mode"] == "none"


def test_the_helpers(board: Scoreboard) -> None:
    """A keeper that doesn't exist is null; a monitor that is being started has no pid and no memory."""
    cell = partial(getattr, board.header)
    assert keeper_fields(cell, lambda pid: 1) is None
    assert monitor_fields(cell, "127.0.0.1:1", lambda pid: 1) == {
        "pid": None,
        "address": "127.0.0.1:1",
        "restarts": 0,
        "memory": None,
    }
    board.header.keeper_pid, board.header.resting = 5, 3
    keeper = keeper_fields(cell, lambda pid: 2 * pid)
    assert keeper == {"pid": 5, "resting": 3, "expired": 0, "lost": 0, "restarts": 0, "memory": 10}
