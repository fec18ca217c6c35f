"""The switch for the sources of connections, on the kernel's epoll."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from cluster2.config.value_types import MAX_WORKERS
from cluster2.processes.worker.connections.poll_switch import PollSwitch
from tests.unit.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def pair() -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection."""
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


async def test_as_many_workers_as_are_allowed() -> None:
    """That many switches may watch one listener: the kernel limits the paths from a file through nested epoll instances."""
    listener = socket.create_server(("127.0.0.1", 0))
    switches = [PollSwitch() for _ in range(MAX_WORKERS)]
    for each in switches:
        each.add(listener, watched=True)
        each.start(lambda: None)
    for each in switches:
        each.stop()
    listener.close()


async def test_open_once(pair: tuple[socket.socket, socket.socket]) -> None:
    """A switch that was opened once is shut for all sources by the first that is ready."""
    (ours, theirs), (other, peer) = pair, socket.socketpair()
    switch, calls = PollSwitch(), list[bool]()
    switch.add(ours, watched=True)
    switch.add(other, watched=True)
    switch.start(lambda: calls.append(switch.take_ready()))
    switch.open_once()
    theirs.send(b"x")
    peer.send(b"x")
    await until(lambda: calls)
    for _ in range(10):
        await asyncio.sleep(0)
    assert calls == [True]
    switch.open_once()
    await until(lambda: calls == [True, True])
    switch.stop()
    other.close()
    peer.close()


async def test_shut_and_ignored(pair: tuple[socket.socket, socket.socket]) -> None:
    """Bytes that come while the switch is shut, or its source is ignored, are there when it is opened or watched again."""
    ours, theirs = pair
    switch = PollSwitch()
    switch.add(ours, watched=False)
    switch.start(lambda: None)
    theirs.send(b"x")
    assert not switch.take_ready()
    switch.watch(ours, True)
    assert switch.take_ready()
    switch.shut()
    assert not switch.take_ready()
    switch.watch(ours, True)
    assert not switch.take_ready(), "to watch a source does not open a switch that is shut"
    switch.open()
    assert switch.take_ready()
    switch.remove(ours)
    assert not switch.take_ready()
    switch.stop()
