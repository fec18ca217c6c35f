"""A hundred thousand moves between real workers and the real keeper, and not one wrong byte."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.system.conftest import Serve, run, start  # noqa: F401
from tests.system.connections.test_moving import MOVING, PARKING
from tests.system.moving import Habits, drive

MOVES = 100_000
SECONDS = 1800.0


@pytest.mark.soak
@pytest.mark.parametrize("habits", [Habits()], ids=["everything"])
def test_a_hundred_thousand_moves(run: Serve, habits: Habits) -> None:  # noqa: F811
    """Requests in odd pieces on connections that move after each answer, workers leaving all the time: all answers right."""
    running = run(MOVING, *PARKING, workers=4).ready(4)
    seed = int(os.environ.get("SEED", "1"))
    tally, roller = asyncio.run(
        drive(running, seed=seed, clients=32, moves=MOVES, seconds=SECONDS, workers=4, habits=habits, roll_every=3.0)
    )
    print(f"\nseed {seed}: {roller.moves} moves, {roller.rolled} workers left; {tally}")
    assert not tally.wrong, tally.wrong[:5]
    assert not tally.lost, tally.lost[:5]
    assert not tally.refused
    assert (tally.said_close, tally.closed) == (0, 0)
    assert tally.answers == tally.requests
    assert not tally.slow, tally.slow
    assert roller.moves >= MOVES
    assert running.shutdown() == 0
