"""How many may be connected to the monitor, and how much may wait for them."""

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
    """Answers two bytes; /much: more than the kernel keeps; /wait: nothing, until the client leaves."""
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
        """Leave by a reset. One that ends its side could still wait for its answer."""
        reset(self.writer.transport)

    async def hears(self) -> bytes:
        """The beginning of an answer; nothing: it was closed."""
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
            clients.append(client)  # one that nobody knows any more would be closed
            await asyncio.get_running_loop().connect_accepted_socket(kept.protocol, theirs)
            return client

        yield engine, kept, connect
    await until(engine.idle)
    await engine.stop()


async def test_whoever_comes_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many connect, there is a bound; who is at work stays, who waits for nothing leaves for the next one."""
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
    """Where nobody is idle, one leaves for who comes."""
    monkeypatch.setattr(connection_limit, "MAX_CONNECTIONS", 4)
    async with crowded() as (engine, _, connect):
        for count in range(1, 5):
            await (await connect()).asks("/wait")
            await until(partial(under_way, engine, count))
        last = await connect()
        await until(lambda: engine.stats().connections == 4)
        await last.asks("/")
        assert await last.hears() == HELLO


async def test_what_nobody_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many bytes those leave for whom most is waiting; who takes what is sent stays."""
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
    """A handshake is an ordinary request: answered, and counted; what comes behind it is the next request."""
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
