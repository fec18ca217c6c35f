"""The engine for raw TCP, over real sockets on uvloop: handlers and protocols, draining, failures."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cluster2.config.settings import Settings
from cluster2.engines.base import AppContext, EngineStats, Interface
from cluster2.engines.tcp.tcp_engine import TcpEngine
from tests.unit.waiting import until

pytestmark = pytest.mark.anyio


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echo lines, and say goodbye at the end of the client's data."""
    while line := await reader.readline():
        writer.write(line)
    writer.write(b"bye\n")


class Upper(asyncio.Protocol):
    """A protocol that answers in capitals."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data.upper())


class Slotted(asyncio.Protocol):
    """The protocol as a class with slots."""

    __slots__ = ("transport",)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data.upper())


@dataclasses.dataclass
class Unhashable(asyncio.Protocol):
    """The protocol as a dataclass, which compares by value and so can't be hashed."""

    transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data.upper())


class Polite(Upper):
    """A protocol with a `drain` method, which sends a message and closes."""

    def drain(self) -> None:
        self.transport.write(b"draining\n")
        self.transport.close()


def engine_of(app: Callable[..., Any]) -> TcpEngine:
    return TcpEngine(AppContext(app, Interface.TCP, Settings(), None))


@asynccontextmanager
async def connected(engine: TcpEngine) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect a client to the engine, over a real connection."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    await asyncio.get_running_loop().connect_accepted_socket(engine.protocol, theirs)
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def ask(client: tuple[asyncio.StreamReader, asyncio.StreamWriter], line: bytes) -> bytes:
    """Send a line, and return the line that answers it."""
    reader, writer = client
    writer.write(line)
    return await asyncio.wait_for(reader.readline(), 10)


async def test_a_stream_handler() -> None:
    """A handler gets streams. A connection counts for as long as it is open or its handler runs."""
    engine = engine_of(echo)
    assert engine.idle()
    async with connected(engine) as one, connected(engine) as two:
        assert await ask(one, b"hello\n") == b"hello\n"
        assert await ask(two, b"hi\n") == b"hi\n"
        assert engine.stats() == EngineStats(None, 2, 2)
        assert not engine.idle()
        one[1].write_eof()
        assert await one[0].read() == b"bye\n"
        await until(lambda: engine.stats().connections == 1)
    await until(engine.idle)


@pytest.mark.parametrize("kind", [Upper, Slotted, Unhashable])
async def test_protocols(kind: type[asyncio.Protocol]) -> None:
    """Protocols of every kind of class are served and counted. The app sees an instance of its own class."""
    made: list[asyncio.Protocol] = []

    def factory() -> asyncio.Protocol:
        made.append(kind())
        return made[-1]

    engine = engine_of(factory)
    async with connected(engine) as one, connected(engine) as two:
        assert await ask(one, b"hello\n") == b"HELLO\n"
        assert await ask(two, b"hi\n") == b"HI\n"
        assert engine.stats() == EngineStats(None, 2, 2)
    await until(engine.idle)
    assert all(isinstance(each, kind) for each in made)
    assert type(made[0]) is type(made[1])
    assert type(made[0]).__name__ == kind.__name__


async def test_a_class_as_the_factory() -> None:
    """A protocol's class can be the factory."""
    engine = engine_of(Upper)
    async with connected(engine) as client:
        assert await ask(client, b"hello\n") == b"HELLO\n"


async def test_drain_by_method() -> None:
    """The engine calls a protocol's `drain` at once, and the protocol closes when it wants to."""
    engine = engine_of(Polite)
    async with connected(engine) as client:
        assert await ask(client, b"hello\n") == b"HELLO\n"
        engine.drain(moving=False)
        assert await asyncio.wait_for(client[0].read(), 10) == b"draining\n"
    await until(engine.idle)


class Rude(Polite):
    """A protocol whose `drain` raises."""

    def drain(self) -> None:
        raise LookupError("no such state")


async def test_a_drain_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """If the app's `drain` raises for a connection, that one is reset, and the others drain."""
    kinds = iter([Rude, Polite])
    engine = engine_of(lambda: next(kinds)())
    async with connected(engine) as rude, connected(engine) as polite:
        assert await ask(rude, b"hello\n") == b"HELLO\n"
        assert await ask(polite, b"hello\n") == b"HELLO\n"
        engine.drain(moving=False)
        assert await asyncio.wait_for(polite[0].read(), 10) == b"draining\n"
        assert await asyncio.wait_for(rude[0].read(), 10) == b""
    await until(engine.idle)
    assert ["drain failed for the connection" in each.getMessage() for each in caplog.records] == [True]


async def test_drain_by_end_of_input() -> None:
    """Any other connection goes on until the grace is over. Then it reads the end of its input, answers, and closes."""
    engine = engine_of(echo)
    async with connected(engine) as client:
        assert await ask(client, b"hello\n") == b"hello\n"
        engine.close_idle(0)
        engine.drain(moving=False)
        engine.close_idle(60)
        assert await ask(client, b"within the grace\n") == b"within the grace\n"
        engine.close_idle(0)
        engine.close_idle(0)  # several times, as the worker does
        assert await asyncio.wait_for(client[0].read(), 10) == b"bye\n"
    await until(engine.idle)


async def test_what_has_arrived_is_still_read() -> None:
    """The app answers data that arrived before the end of the grace. It doesn't see later data."""
    gate = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await echo(reader, writer)

    engine = engine_of(slow)
    async with connected(engine) as (reader, writer):
        writer.write(b"one\ntwo\n")
        await writer.drain()
        engine.drain(moving=False)
        engine.close_idle(0)
        gate.set()
        assert await asyncio.wait_for(reader.read(), 10) == b"one\ntwo\nbye\n"
    await until(engine.idle)


async def test_sweep_of_a_connection_that_is_gone() -> None:
    """A connection whose client leaves at that very moment causes no error."""
    engine = engine_of(Upper)
    async with connected(engine) as (_, writer):
        engine.drain(moving=False)
        writer.transport.abort()
        engine.close_idle(0)
        await until(engine.idle)
        engine.close_idle(0)


async def test_a_handler_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """The error is logged with its traceback, and the connection closed. Other connections go on."""

    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline() == b"break\n":
            raise LookupError("no such key")
        await echo(reader, writer)

    engine = engine_of(broken)
    async with connected(engine) as bad, connected(engine) as good:
        bad[1].write(b"break\n")
        assert await asyncio.wait_for(bad[0].read(), 10) == b""
        good[1].write(b"x\n")
        assert await ask(good, b"hello\n") == b"hello\n"
    await until(engine.idle)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("cluster2.tcp", logging.ERROR)
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "no such key"


async def test_a_client_that_leaves(caplog: pytest.LogCaptureFixture) -> None:
    """A client that leaves in the middle of a read of the handler is no error, and nothing is logged."""

    async def exact(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(100)

    engine = engine_of(exact)
    async with connected(engine) as (_, writer):
        writer.write(b"short")
    await until(engine.idle)
    assert caplog.records == []
