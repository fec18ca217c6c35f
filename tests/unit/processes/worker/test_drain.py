"""A worker's drain goes on whatever engines and connections raise."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster2.config.settings import Settings
from cluster2.engines.base import EngineStats
from cluster2.processes.worker.connections.acceptor import Acceptor
from cluster2.processes.worker.connections.handoff import HandoffPolicy
from cluster2.processes.worker.drain import WorkerDrain

pytestmark = pytest.mark.anyio


class Failing:
    """An engine of which each step of a drain raises until its third sweep."""

    name = "failing"

    def __init__(self, *, ends: bool = True) -> None:
        self.swept = 0
        self.ends = ends
        self.was_cut = False

    def report_freed(self, freed: object) -> None:
        raise OSError("park")

    def drain(self, *, moving: bool) -> None:
        raise OSError("drain")

    def close_idle(self, grace: float) -> None:
        self.swept += 1
        if self.swept < 3:
            raise OSError("sweep")

    def idle(self) -> bool:
        if self.swept < 3:
            raise OSError("idle")
        return self.ends

    def stats(self) -> Any:
        return EngineStats(0, 0, 0)

    async def abort(self, grace_s: float) -> list[str]:
        self.was_cut = True
        raise OSError("cut")


async def parts(engines: list[Any]) -> tuple[Acceptor, HandoffPolicy]:
    """Return an acceptor and a hand-off policy that have nothing to do."""
    acceptor = Acceptor([], [], lambda: None)
    await acceptor.start()
    return acceptor, HandoffPolicy(None, engines, header=None)  # type: ignore[arg-type]


async def test_a_step_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """Log a step that raises once and repeat it; end the drain when nothing is under way."""
    engines: list[Any] = [Failing(), Failing()]
    acceptor, moves = await parts(engines)
    drain = WorkerDrain(Settings(drain_timeout=30.0, drain_idle=0.0), keeper_gone=True)
    drain.last = True
    assert await asyncio.wait_for(drain.run(engines, acceptor, moves), 20)
    assert [each.swept for each in engines] == [3, 3]
    steps = [record.getMessage().split(" failed")[0] for record in caplog.records]
    assert sorted(steps) == [
        "closing idle connections",
        "draining",
        "ending the hand-off",
        "looking for work under way",
    ]


async def test_a_cut_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """Cut off each engine when the time is over, even if one before it raises."""
    engines: list[Any] = [Failing(ends=False), Failing(ends=False)]
    acceptor, moves = await parts(engines)
    drain = WorkerDrain(Settings(drain_timeout=0.05, drain_idle=0.0), keeper_gone=True)
    assert not await asyncio.wait_for(drain.run(engines, acceptor, moves), 20)
    assert "drain_timeout (0.05 s) is over" in await drain.abort(engines)
    assert [each.was_cut for each in engines] == [True, True]
