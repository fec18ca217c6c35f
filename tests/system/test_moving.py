"""Connections move between workers and the keeper, and clients never notice."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.system.conftest import Serve
from tests.system.moving import Habits, drive

MOVING = f"{Path(__file__).with_name('moving_app.py')}:app"
PARKING = ("--park-above", "0.6ms", "--rest-after", "100ms", "--drain-idle", "10s", "--restart-limit", "100000")
"""Workers park as soon as the app sleeps for a millisecond."""


def test_many_moves(run: Serve) -> None:
    """Requests in odd pieces on connections that move after each answer, workers leaving all the time: all answers right."""
    running = run(MOVING, *PARKING, workers=3).ready(3)
    tally, roller = asyncio.run(
        drive(running, seed=7, clients=16, moves=2500, seconds=30, workers=3, habits=Habits(), roll_every=1.0)
    )
    print(f"{roller.moves} moves, {roller.rolled} workers left; {tally}")
    assert not tally.wrong, tally.wrong[:5]
    assert not tally.lost, tally.lost[:5]
    assert not tally.refused
    assert roller.moves >= 2500
