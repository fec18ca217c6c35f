"""The switch of traffic in a worker: the master confirms changes, in time or too late."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from cluster2.core.health_page import Health
from cluster2.linux.scoreboard import Header, Scoreboard
from cluster2.processes.worker.health import endpoint
from cluster2.processes.worker.health.endpoint import Traffic
from cluster2.protocol import messages
from tests.unit.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def header() -> Iterator[Header]:
    """Return the header of a cluster whose traffic is enabled."""
    board = Scoreboard.create()
    board.header.traffic = 1
    yield board.header
    board.close()


async def test_confirmed_in_order(header: Header) -> None:
    """Complete each change with its own confirmation: confirmations have the order of the changes."""
    said: list[messages.ChannelMessage] = []
    traffic = Traffic(header, said.append, alone=False)
    first, second = (asyncio.ensure_future(traffic.switch(enabled)) for enabled in (False, True))
    await until(lambda: len(said) == 2)
    assert said == [messages.SetTraffic(False), messages.SetTraffic(True)]
    assert header.traffic == 1, "the cell is the master's"
    traffic.confirmed()
    assert await first
    assert not second.done()
    traffic.confirmed()
    assert await second


async def test_no_answer(header: Header, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a limited time for a master that is stuck; its late confirmation completes no other change."""
    monkeypatch.setattr(endpoint, "CONFIRMATION_TIMEOUT_S", 0.02)
    traffic = Traffic(header, lambda message: None, alone=False)
    assert not await traffic.switch(False)
    monkeypatch.setattr(endpoint, "CONFIRMATION_TIMEOUT_S", 30)
    later = asyncio.ensure_future(traffic.switch(True))
    await asyncio.sleep(0)
    traffic.confirmed()
    await asyncio.sleep(0)
    assert not later.done()
    traffic.confirmed()
    assert await later
    traffic.confirmed()  # one too many has no effect


async def test_orphaned(header: Header) -> None:
    """Fail a change at once when the master goes while it is under way."""
    said: list[messages.ChannelMessage] = []
    traffic = Traffic(header, said.append, alone=False)
    waiting = asyncio.ensure_future(traffic.switch(False))
    await until(lambda: said)
    traffic.orphaned()
    assert not await asyncio.wait_for(waiting, 10)


async def test_alone(header: Header) -> None:
    """Write the cell without a master, and report changes only."""
    said: list[messages.ChannelMessage] = []
    traffic = Traffic(header, said.append, alone=True)
    assert await traffic.switch(False)
    assert await traffic.switch(False)
    assert traffic.health(able=True) is Health.DISABLED
    assert await traffic.switch(True)
    assert traffic.health(able=True) is Health.FINE
    assert said == [messages.SetTraffic(False), messages.SetTraffic(True)]


async def test_leaving(header: Header) -> None:
    """Report a cluster that is about to leave as disabled, whatever was switched."""
    header.leaving = 1
    traffic = Traffic(header, lambda message: None, alone=True)
    assert await traffic.switch(True)
    assert traffic.health(able=True) is Health.DISABLED
