"""Random requests in random segments, half-closes and resets, while connections are handed off: no wrong byte, none lost."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.system.conftest import Serve
from tests.system.random_requests import drive

APP = Path(__file__).parents[1] / "apps" / "checksum_app.py"
WAYS = {
    "asgi": (f"{APP}:app",),
    "wsgi-threads": (f"{APP}:wsgi_app", "--threads", "8"),
    "wsgi-inline": (f"{APP}:wsgi_app", "--threads", "0"),
}
MOVING = (
    "--handoff-idle-after",
    "30ms",
    "--handoff-slow-above",
    "0.8ms",
    "--drain-idle",
    "10s",
    "--restart-limit",
    "100000",
)
"""Connections rest at the keeper soon, and handlers that hold the loop have workers park."""


def soak(run: Serve, way: str, *, clients: int, seconds: float) -> None:
    """The test, for so long."""
    seed = int(os.environ.get("SEED", "0")) or int.from_bytes(os.urandom(4))
    print(f"\nSEED={seed}")
    running = run(*WAYS[way], *MOVING, "--engine", "http").ready()
    tally, disturber = asyncio.run(
        drive(running, seed=seed, clients=clients, seconds=seconds, websockets=way == "asgi")
    )
    print(f"{tally}; {disturber.done}", *tally.wrong[:3], sep="\n")
    assert not tally.wrong, f"SEED={seed}, {tally}\n" + "\n".join(tally.wrong[:10]) + f"\n{running.stderr[-3000:]}"
    assert len(tally.workers) > 2
    assert tally.moved > 0
    assert {"by the server", "half-closed"} <= tally.ends.keys()
    assert "Traceback" not in running.stderr, running.stderr[-3000:]
    assert running.shutdown() == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_random_requests(run: Serve, way: str) -> None:
    """For some seconds; `make soak` has minutes of it."""
    soak(run, way, clients=6, seconds=7)
