"""The limits on connections to the monitor and on unread bytes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest

from cluster2.config.settings import Settings
from cluster2.engines.aborting import reset
from cluster2.engines.http.http_engine import HttpEngine
from cluster2.processes.monitor.access import connection_limit
from cluster2.processes.monitor.access.connection_limit import ConnectionLimit
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio
HELLO = b"HTTP/1.1 200 OK"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Respond with two bytes. `/much`: with more than the kernel buffers. `/wait`: with nothing until the client leaves."""
    if scope["path"] == "/wait":
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    body = b"x" * (1 << 24) if scope["path"] == "/much" else b"ok"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def asks(self, path: str) -> None:
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        await self.writer.drain()

    def abort(self) -> None:
        """Close with a reset. After an ordinary close the engine could still wait to send its response."""
        reset(self.writer.transport)

    async def hears(self) -> bytes:
        """Return the beginning of the response; empty: the connection was closed."""
        try:
            return await asyncio.wait_for(self.reader.read(len(HELLO)), PATIENCE)
        except ConnectionError:
            return b""


def under_way(engine: HttpEngine, count: int) -> bool:
    return engine.stats().in_flight == count


@asynccontextmanager
async def crowded() -> AsyncIterator[tuple[HttpEngine, ConnectionLimit, Callable[[], Any]]]:
    kept = ConnectionLimit(app, Settings(lifespan="off"))
    engine = kept.engine
    await engine.start()
    clients: list[Client] = []
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        async def connect() -> Client:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
            theirs.setblocking(False)
            client = Client(*await asyncio.open_connection(sock=ours, limit=1024))
            stack.callback(client.abort)
            clients.append(client)  # without a reference the transport would be closed
            await asyncio.get_running_loop().connect_accepted_socket(kept.protocol, theirs)
            return client

        yield engine, kept, connect
    await until(engine.idle)
    await engine.stop()


async def test_the_number_of_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of connections is limited: an idle one is closed for a new one, and one with a request in progress stays."""
    monkeypatch.setattr(connection_limit, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(connection_limit, "MAX_DROPPED_AT_ONCE", 3)
    async with crowded() as (engine, _, connect):
        busy = await connect()
        await busy.asks("/wait")
        await until(partial(under_way, engine, 1))
        others = []
        for turn in range(40):
            others.append(await connect())
            if turn % 2:
                others[-1].writer.write(b"GET / HT")
            await until(lambda: engine.stats().connections <= 8)
        last = await connect()
        await last.asks("/")
        assert await last.hears() == HELLO
        assert engine.stats().in_flight == 1
        assert await others[0].hears() == b""


async def test_all_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no connection is idle, one of the others is closed for the new one."""
    monkeypatch.setattr(connection_limit, "MAX_CONNECTIONS", 4)
    async with crowded() as (engine, _, connect):
        for count in range(1, 5):
            await (await connect()).asks("/wait")
            await until(partial(under_way, engine, count))
        last = await connect()
        await until(lambda: engine.stats().connections == 4)
        await last.asks("/")
        assert await last.hears() == HELLO


async def test_unread_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit of bytes the connections with most unread bytes are closed; those whose clients read stay."""
    monkeypatch.setattr(connection_limit, "MAX_UNREAD_BYTES", 1 << 20)
    most = 0
    async with crowded() as (engine, kept, connect):
        answered = 0

        def press() -> None:
            nonlocal answered, most
            answered += 1
            there = [each.transport for each in engine.movable() if not each.transport.is_closing()]
            most = max(most, sum(each.get_write_buffer_size() for each in there))
            known()

        known, kept.enforce_bounds = kept.enforce_bounds, press  # type: ignore[method-assign]
        good = await connect()
        greedy = [await connect() for _ in range(20)]
        for each in greedy:
            each.writer.write(b"GET /much HTTP/1.1\r\nHost: test\r\n\r\n" * 20)
        await until(lambda: answered >= 20)
        await until(lambda: engine.stats().connections == 1)
        await good.asks("/")
        assert await good.hears() == HELLO
        assert 1 << 20 < most < 1 << 25


@pytest.mark.parametrize("behind", [b"", b"x" * 70000, b"\x81\x85\0\0\0\0hello" * 1000])
async def test_no_websockets(behind: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """A websocket handshake is an ordinary request, and the bytes after it are the next request."""
    handshake = (
        b"GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    async with crowded() as (engine, _, connect):
        for headers in (b"", b"Content-Length: 5\r\n"):
            client = await connect()
            client.writer.write(handshake + headers + b"\r\n" + behind)
            assert await client.hears() == HELLO
        assert not engine.websockets
    assert "Traceback" not in capfd.readouterr().err
