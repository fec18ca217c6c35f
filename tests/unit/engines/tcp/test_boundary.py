"""The boundaries at which a raw TCP connection may move, and the internals of asyncio that they rely on."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import cluster2
from cluster2.config.settings import Settings
from cluster2.engines.base import AppContext, Interface, Movable
from cluster2.engines.tcp.boundary import BoundaryReader, marked_method
from cluster2.engines.tcp.tcp_engine import TcpEngine
from tests.unit.waiting import until

pytestmark = pytest.mark.anyio


async def lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echo lines. Answer the line "hold" only when the next one has arrived."""
    while await cluster2.tcp.boundary(reader, writer):
        line = await reader.readline()
        if line == b"hold\n":
            line += await reader.readline()
        writer.write(line)
        await writer.drain()
    writer.write(b"bye\n")


class Lines(asyncio.Protocol):
    """A protocol that echoes lines."""

    def __init__(self) -> None:
        self.buffer = b""
        self.lost: list[Exception | None] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        *whole, self.buffer = (self.buffer + data).split(b"\n")
        for line in whole:
            self.transport.write(line + b"\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)

    @cluster2.tcp.boundary
    def between(self) -> bool:
        return not self.buffer


class Polite(Lines):
    """The protocol with a `drain` method."""

    drained = 0

    def drain(self) -> None:
        self.drained += 1


def engine_of(app: Callable[..., Any]) -> TcpEngine:
    return TcpEngine(AppContext(app, Interface.TCP, Settings(), None))


@asynccontextmanager
async def connected(
    engine: TcpEngine, make: Callable[[], asyncio.BaseProtocol] | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect a client to the engine, over a real connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    theirs.setblocking(False)
    await asyncio.get_running_loop().connect_accepted_socket(make or engine.protocol, theirs)
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(client: tuple[asyncio.StreamReader, asyncio.StreamWriter], line: bytes) -> bytes:
    client[1].write(line)
    return await asyncio.wait_for(client[0].readline(), 10)


def only(engine: TcpEngine) -> Movable:
    (found,) = engine.movable()
    return found


@pytest.mark.parametrize("app", [lines, Lines])
async def test_it_may_move_between_two_lines(app: Any) -> None:
    """A connection may move before the first line and behind each answer, but not while half of a line has arrived."""
    engine = engine_of(app)
    async with connected(engine) as client:
        await until(lambda: bool(engine.movable()) and only(engine).may_move())
        assert not only(engine).kept_alive()
        assert await ask(client, b"one\n") == b"one\n"
        await until(lambda: only(engine).may_move())
        assert only(engine).kept_alive()
        client[1].write(b"hal")
        await until(lambda: not only(engine).may_move())
        assert await ask(client, b"f\n") == b"half\n"
        await until(lambda: only(engine).may_move())


@pytest.mark.parametrize("app", [lines, Lines])
async def test_letting_go(app: Any) -> None:
    """The app sees the end of the connection, and the client nothing. A process with a copy of the socket can go on with it."""
    engine = engine_of(app)
    async with connected(engine) as (reader, writer):
        await until(lambda: bool(engine.movable()) and only(engine).may_move())
        descriptor, family = only(engine).descriptor_and_family()
        copy = socket.fromfd(descriptor, family, socket.SOCK_STREAM)
        only(engine).release()
        await until(engine.idle)
        with copy:
            copy.setblocking(True)
            writer.write(b"hello\n")
            assert await asyncio.to_thread(copy.recv, 100) == b"hello\n"
            copy.sendall(b"from another\n")
            assert await asyncio.wait_for(reader.readline(), 10) == b"from another\n"


async def test_what_a_client_has_not_taken() -> None:
    """A connection stays until its answer is out of the transport's buffer."""
    engine = engine_of(Lines)
    async with connected(engine) as (reader, writer):
        big = b"x" * 12_000_000 + b"\n"
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(big)
        await until(lambda: engine._connections()[0]._transport.get_write_buffer_size() > 0)
        assert not only(engine).may_move()


async def test_parking_begins_behind_a_message() -> None:
    """A handler's connection is reported at each boundary except the first, since it may just have come from the keeper."""
    engine = engine_of(lines)
    told: list[Movable] = []
    engine.report_freed(told.append)
    async with connected(engine) as client:
        await until(lambda: bool(engine.movable()))
        assert await ask(client, b"one\n") == b"one\n"
        await until(lambda: len(told) == 1)
        assert told[0].may_move()
        engine.report_freed(None)
        assert await ask(client, b"two\n") == b"two\n"
        await until(lambda: only(engine).may_move())
        assert len(told) == 1


async def test_the_acceptor_is_told_of_the_first_message() -> None:
    """A handler with a boundary reports once, when its first message begins."""
    engine = engine_of(lines)
    served: list[object] = []
    async with connected(engine, lambda: engine.accepted_protocol(None, served.append)) as client:
        await until(lambda: bool(engine.movable()))
        assert served == []
        await ask(client, b"one\n")
        await ask(client, b"two\n")
        assert len(served) == 1


async def test_draining_while_connections_move() -> None:
    """A connection that will move sees no end of either kind. When connections no longer move, it does."""
    engine = engine_of(lines)
    async with connected(engine) as client:
        await until(lambda: bool(engine.movable()))
        engine.drain(moving=True)
        engine.close_idle(0)
        assert await ask(client, b"one\n") == b"one\n"
        engine.drain(moving=False)
        engine.close_idle(0)
        assert await asyncio.wait_for(client[0].read(), 10) == b"bye\n"
    await until(engine.idle)


async def test_drain_is_for_those_that_stay() -> None:
    """The engine calls a protocol's `drain` if its connection can't move."""
    made: list[Polite] = []

    def factory() -> Polite:
        made.append(Polite())
        return made[-1]

    engine = engine_of(factory)
    async with connected(engine) as client:
        await ask(client, b"one\n")
        engine.drain(moving=True)
        assert made[0].drained == 0
        engine.drain(moving=False)
        assert made[0].drained == 1


async def test_a_boundary_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """The exception is logged once, and the connection stays in its worker."""

    class Broken(Lines):
        def between(self) -> bool:
            raise LookupError("no such key")

    engine = engine_of(Broken)
    async with connected(engine) as client:
        await ask(client, b"one\n")
        assert not only(engine).may_move()
        assert engine.movable() == []
        assert await ask(client, b"two\n") == b"two\n"
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_a_protocol_that_was_replaced() -> None:
    """After `set_protocol` a connection counts until it closes, and doesn't move, since the new protocol's boundaries are unknown."""

    class Other(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            self.transport.write(data.upper())

    class Changing(Lines):
        def data_received(self, data: bytes) -> None:
            other = Other()
            other.transport = self.transport  # type: ignore[attr-defined]
            self.transport.set_protocol(other)

    engine = engine_of(Changing)
    async with connected(engine) as client:
        client[1].write(b"change\n")
        await until(lambda: not only(engine).may_move())
        assert await ask(client, b"hello\n") == b"HELLO\n"
        assert engine.stats().connections == 1
    await until(engine.idle)
    assert engine.stats().connections == 0


async def test_outside_of_a_cluster() -> None:
    """asyncio's own server can run a handler, too: `boundary` waits for data or for the end."""

    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await lines(reader, writer)
        writer.close()

    server = await asyncio.start_server(closing, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await ask((reader, writer), b"one\n") == b"one\n"
        writer.write(b"two\nthree\n")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 10) == b"two\nthree\nbye\n"
        writer.close()


async def test_a_reset_at_the_boundary() -> None:
    """A reset at the boundary is an end like any other."""
    reader = BoundaryReader()
    with pytest.raises(TypeError, match="a reader and its writer"):
        cluster2.tcp.boundary(reader)  # type: ignore[type-var]
    waiting = asyncio.ensure_future(cluster2.tcp.boundary(reader, object()))  # type: ignore[call-overload]
    await until(lambda: reader.waiting)
    assert reader.between()
    reader.set_exception(ConnectionResetError())
    assert await waiting is False
    assert not reader.between()


async def test_what_asyncio_has() -> None:
    """A reader's `_buffer` has the received bytes. `_wait_for_data` ends with the next bytes, and leaves them there."""
    reader: Any = asyncio.StreamReader()
    assert not reader._buffer
    waiting = asyncio.ensure_future(reader._wait_for_data("test"))
    await asyncio.sleep(0)
    reader.feed_data(b"abc")
    await waiting
    assert bytes(reader._buffer) == b"abc"
    assert await reader.readexactly(3) == b"abc"


def test_marks() -> None:
    """A mark is inherited, and an override takes its place. Other objects can't be marked."""
    assert marked_method(Lines) is Lines.between
    assert marked_method(asyncio.Protocol) is None

    class Other(Lines):
        def between(self) -> bool:
            return False

    assert marked_method(Other) is Other.between
    for wrong in (3, Lines, None):
        with pytest.raises(TypeError, match="marks a protocol's method"):
            cluster2.tcp.boundary(wrong)  # type: ignore[call-overload]


def test_tcp_is_still_the_wrapper() -> None:
    """`cluster2.tcp(app)` says that an app serves TCP."""
    assert cluster2.tcp(lines).interface is Interface.TCP
