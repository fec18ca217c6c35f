"""The engine for ASGI and WSGI, over real connections in a uvloop: requests, counts, draining, lifespan."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest

from cluster2.config.settings import Settings
from cluster2.engines.base import AppContext, Interface
from cluster2.engines.http.http_engine import HttpEngine
from cluster2.engines.http.limits import MAX_HEAD_BYTES as LONGEST_HEAD
from cluster2.errors import AppError
from cluster2.processes.worker.instrumentation import wrap
from cluster2.processes.worker.sampling.steps import StepSampler
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio
Message = dict[str, Any]


class App:
    """Answers "hello". /held waits for `gate`, and /stream does so when its head is out. /ws echoes."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.held = 0
        self.types: list[str] = []

    async def __call__(self, scope: Message, receive: Callable[[], Any], send: Callable[[Message], Any]) -> None:
        self.types.append(scope["type"])
        if scope["type"] == "lifespan":
            for phase in ("startup", "shutdown"):
                self.types.append((await receive())["type"])
                await send({"type": f"lifespan.{phase}.complete"})
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": message["text"]})
        else:
            if scope["path"] == "/held":
                await self.wait()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
            if scope["path"] == "/stream":
                await send({"type": "http.response.body", "body": b"he", "more_body": True})
                await self.wait()
            await send({"type": "http.response.body", "body": b"llo" if scope["path"] == "/stream" else b"hello"})

    async def wait(self) -> None:
        self.held += 1
        await self.gate.wait()


class Served:
    """An engine around an app, as a worker arranges it."""

    def __init__(self, app: Any, interface: Interface = Interface.ASGI, **options: Any) -> None:
        watch = StepSampler(lambda step, now: None, 0.01)
        layer = lambda call, native: wrap(call, native, watch, lambda: None)  # noqa: E731
        self.engine = HttpEngine(AppContext(app, interface, Settings(**options), None, layer))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        await self.engine.start()
        yield self
        await self.engine.stop()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """Yield a client, over a real connection of the loopback."""
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        theirs.setblocking(False)
        await loop.connect_accepted_socket(self.engine.protocol, theirs)
        client = Client(*await asyncio.open_connection(sock=ours))
        try:
            yield client
        finally:
            client.writer.close()
            try:
                await client.writer.wait_closed()
            except ConnectionError:
                pass  # the server was faster


class Client:
    """A client that sees every byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, path: str = "/", headers: str = "") -> None:
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n".encode())

    async def head(self) -> str:
        """Return the head of a response, in lower case."""
        return (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE)).decode().lower()

    async def receive(self) -> tuple[str, bytes]:
        """Return a response with five bytes of body."""
        return await self.head(), await asyncio.wait_for(self.reader.readexactly(5), PATIENCE)

    async def get(self, path: str = "/") -> tuple[str, bytes]:
        self.send(path)
        return await self.receive()

    async def rest(self) -> bytes:
        """Return all that comes until the server closes."""
        return await asyncio.wait_for(self.reader.read(), PATIENCE)


async def test_requests_are_answered_and_counted() -> None:
    """Requests over kept connections are answered; requests, connections and what is under way are counted."""
    app = App()
    async with Served(app).running() as served:
        engine = served.engine
        async with served.connected() as one, served.connected() as two:
            for _ in range(3):
                head, body = await one.get()
                assert head.startswith("http/1.1 200 ok\r\n")
                assert "date: " in head
                assert "connection: close" not in head
                assert body == b"hello"
            await until(lambda: engine.stats()[:3] == (3, 2, 0))
            two.send("/held")
            await until(lambda: app.held == 1)
            assert engine.stats()[:3] == (3, 2, 1)
            assert not engine.idle()
            app.gate.set()
            await two.receive()
            await until(lambda: engine.stats()[:3] == (4, 2, 0))
        await until(engine.idle)
        assert engine.stats()[:3] == (4, 0, 0)


@pytest.mark.parametrize("begins", [b"GET /", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nx: ", b"\r\n"])
@pytest.mark.parametrize("used", [False, True])
async def test_a_head_without_an_end(begins: bytes, used: bool) -> None:
    """A head that is too long in any part gets a 431 before it takes memory, on first and later requests."""
    if used and begins == b"\r\n":
        return  # empty lines between two requests are passed over, and take none
    async with Served(App()).running() as served, served.connected() as client:
        if used:
            await client.get()
        client.writer.write(begins)
        piece = (
            b"x: y\r\n" * 1000 if begins.endswith(b"1.1\r\n") else begins * 4000 if begins == b"\r\n" else b"x" * 8000
        )
        sent = 0
        try:
            while sent < 64 * LONGEST_HEAD and not client.reader.at_eof():
                client.writer.write(piece)
                sent += len(piece)
                await client.writer.drain()
                await asyncio.sleep(0)
            status = b"414" if begins == b"GET /" else b"431"
            assert (await client.rest()).startswith(b"HTTP/1.1 %b " % status)
        except ConnectionError:
            pass  # what it hadn't read yet made it a reset
        await until(served.engine.idle)
    assert sent < 64 * LONGEST_HEAD


async def test_a_long_head_in_pieces() -> None:
    """One of many reads that isn't too long is answered; so is the next one on the same connection."""
    async with Served(App()).running() as served, served.connected() as client:
        for _ in range(3):
            for piece in ("GET / HTTP/1.1\r\nHost: test\r\n", *["x: " + 8000 * "y" + "\r\n"] * 7, "\r\n"):
                client.writer.write(piece.encode())
                await client.writer.drain()
                await asyncio.sleep(0)
            head, body = await client.receive()
            assert head.startswith("http/1.1 200 ok\r\n")
            assert body == b"hello"


async def test_drain_with_a_request_in_flight() -> None:
    """A request under way is finished, says that the connection ends, and ends it."""
    app = App()
    async with Served(app).running() as served, served.connected() as client:
        client.send("/held")
        await until(lambda: app.held == 1)
        served.engine.drain(moving=False)
        served.engine.close_idle(0)
        assert not served.engine.idle()
        app.gate.set()
        head, body = await client.receive()
        assert "connection: close" in head
        assert body == b"hello"
        assert await client.rest() == b""
        await until(served.engine.idle)


async def test_drain_of_an_idle_connection() -> None:
    """An idle connection may send one more request within the grace; its answer says that the connection ends."""
    async with Served(App()).running() as served, served.connected() as client:
        await client.get()
        served.engine.drain(moving=False)
        served.engine.close_idle(60)
        assert not served.engine.idle()
        head, body = await client.get()
        assert "connection: close" in head
        assert body == b"hello"
        assert await client.rest() == b""
        await until(served.engine.idle)


async def test_sweep_of_an_idle_connection() -> None:
    """When the grace is over, idle connections are closed, those that never asked included."""
    async with Served(App()).running() as served:
        async with served.connected() as used, served.connected() as unused:
            await used.get()
            served.engine.drain(moving=False)
            served.engine.close_idle(0)
            assert await used.rest() == b""
            assert await unused.rest() == b""
        await until(served.engine.idle)


async def test_drain_while_connections_move() -> None:
    """Where connections are taken away by the keeper, answers don't say that they end; one that may not move is swept."""
    async with Served(App()).running() as served, served.connected() as client:
        await client.get()
        served.engine.drain(moving=True)
        head, body = await client.get()
        assert "connection: close" not in head
        assert body == b"hello"
        served.engine.close_idle(0)
        assert await client.rest() == b""


@pytest.mark.parametrize("drained", [False, True])
@pytest.mark.parametrize("interface", [Interface.ASGI, Interface.WSGI])
async def test_no_keep_alive(interface: Interface, drained: bool) -> None:
    """With `keep_alive = false` each response announces the end of its connection and brings it; also while others move."""

    def wsgi(environ: Message, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "5")])
        return [b"hello"]

    async with Served(App() if interface is Interface.ASGI else wsgi, interface, keep_alive=False).running() as served:
        freed: list[Any] = []
        served.engine.report_freed(freed.append)
        if drained:
            served.engine.drain(moving=True)
        async with served.connected() as client:
            assert [each.may_move() for each in served.engine.movable()] == [True], "nothing has been asked yet"
            head, body = await client.get()
            assert "connection: close\r\n" in head
            assert (body, await client.rest()) == (b"hello", b"")
        assert not any(each.may_move() for each in freed)
        await until(served.engine.idle)


async def test_drain_with_a_response_that_has_begun() -> None:
    """A response whose head is out is finished. Its head hasn't announced an end, so its connection becomes an idle one."""
    app = App()
    async with Served(app).running() as served, served.connected() as client:
        client.send("/stream")
        head = await client.head()
        assert "connection: close" not in head
        await until(lambda: app.held == 1)
        served.engine.drain(moving=False)
        served.engine.close_idle(0)
        app.gate.set()
        assert await asyncio.wait_for(client.reader.readexactly(5), PATIENCE) == b"hello"
        head, _ = await client.get()
        assert "connection: close" in head
        assert await client.rest() == b""
        await until(served.engine.idle)


async def test_a_head_half_sent_is_no_idle_connection() -> None:
    """A client in the middle of its request's head is not cut off by the sweep; the request is answered."""
    async with Served(App()).running() as served, served.connected() as client:
        await client.get()
        client.writer.write(b"GET / HTTP/1.1\r\nHost: te")
        connection = next(iter(served.engine.movable()))
        await until(lambda: not connection.idle())
        served.engine.drain(moving=False)
        served.engine.close_idle(0)
        served.engine.close_idle(0)
        client.writer.write(b"st\r\n\r\n")
        head, body = await client.receive()
        assert body == b"hello"
        assert "connection: close" in head


async def test_pipelined_requests_are_all_answered() -> None:
    """Requests that came in one piece before the drain are answered one by one, and none is lost to the sweep."""
    app = App()
    async with Served(app).running() as served, served.connected() as client:
        client.writer.write(b"GET /held HTTP/1.1\r\nHost: t\r\n\r\nGET / HTTP/1.1\r\nHost: t\r\n\r\n")
        await until(lambda: app.held == 1)
        served.engine.close_idle(0)
        app.gate.set()
        assert (await client.receive())[1] == b"hello"
        assert (await client.receive())[1] == b"hello"


async def test_a_flood_of_pipelined_requests() -> None:
    """Pipelined requests are read as they are answered, or one client could fill the memory; also if the app reads bodies."""
    gate, answered = asyncio.Event(), 0

    async def app(scope: Message, receive: Callable[[], Any], send: Callable[[Message], Any]) -> None:
        nonlocal answered
        if scope["type"] != "http":
            return
        await receive()
        if answered == 100:
            await gate.wait()
        answered += 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})

    async with Served(app).running() as served, served.connected() as client:
        client.writer.write(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n" * (FLOOD := 40_000))
        await until(lambda: answered == 100)
        (connection,) = served.engine.movable()
        await until(lambda: not connection.transport.is_reading())
        assert len(connection.pipeline) < FLOOD / 20  # a slice is parsed at a time
        gate.set()
        for _ in range(1000):
            assert (await client.receive())[1] == b"hello"
    gate.set()


async def test_pipelined_requests_have_contexts_of_their_own() -> None:
    """Context variables that a request sets aren't seen by the next one, though that begins when the first one ends."""
    user: contextvars.ContextVar[bytes] = contextvars.ContextVar("user", default=b"none.")

    async def app(scope: Message, receive: Callable[[], Any], send: Callable[[Message], Any]) -> None:
        if scope["type"] != "http":
            return
        seen = user.get()
        user.set(b"alice")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": seen})

    async with Served(app).running() as served, served.connected() as client:
        client.writer.write(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n" * 3)
        assert [(await client.receive())[1] for _ in range(3)] == [b"none."] * 3


async def test_websockets_end_with_1012() -> None:
    """An open websocket works on through the drain's grace, then is closed with "service restart"."""
    async with Served(App()).running() as served, served.connected() as client:
        key = "Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
        client.send("/ws", key + "dGhlIHNhbXBsZSBub25jZQ==\r\n")
        assert (await client.head()).startswith("http/1.1 101 ")
        served.engine.drain(moving=False)
        served.engine.close_idle(60)
        client.writer.write(b"\x81\x85" + bytes(4) + b"hello")
        assert await asyncio.wait_for(client.reader.readexactly(7), PATIENCE) == b"\x81\x05hello"
        served.engine.close_idle(0)
        assert (await asyncio.wait_for(client.reader.readexactly(4), PATIENCE))[2:] == (1012).to_bytes(2, "big")
        client.writer.write(b"\x88\x82" + bytes(4) + (1012).to_bytes(2, "big"))
        await client.rest()
        client.writer.close()
        await until(served.engine.idle)


async def test_lifespan() -> None:
    """The app's lifespan runs to the end of its startup before `start` returns, and to its end in `stop`."""
    app = App()
    async with Served(app).running():
        assert app.types == ["lifespan", "lifespan.startup"]
    assert app.types == ["lifespan", "lifespan.startup", "lifespan.shutdown"]


async def test_the_app_is_not_called_to_find_out_what_it_is() -> None:
    """An app is called for its lifespan and its requests only."""
    app = App()
    async with Served(app, lifespan="off").running() as served, served.connected() as client:
        assert app.types == []
        await client.get()
        assert app.types == ["http"]


def failing(message: str | None) -> Any:
    async def app(scope: Message, receive: Callable[[], Any], send: Callable[[Message], Any]) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed"} | ({} if message is None else {"message": message}))

    return app


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("the database is away", "the database is away"),
        ("Traceback (most recent call last):\n  File\nValueError: no\n", "ValueError: no"),
        ("", "it gave no reason"),
        (None, "it gave no reason"),
    ],
)
async def test_a_lifespan_that_fails(message: str | None, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """A failed startup is an AppError, with the reason in the line and the whole text as detail; it isn't logged as well."""
    with pytest.raises(AppError, match=f"^the app's lifespan failed at startup: {reason}$") as raised:
        await Served(failing(message)).engine.start()
    assert raised.value.detail == (message or "")
    assert caplog.records == []


async def test_a_lifespan_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """With `lifespan=on` an app that raises there fails; with auto it simply has none. A reason is always given."""

    async def app(scope: Message, receive: Callable[[], Any], send: Callable[[Message], Any]) -> None:
        raise LookupError("no such table")

    with pytest.raises(AppError, match="lifespan") as raised:
        await Served(app, lifespan="on").engine.start()
    assert "LookupError: no such table" in raised.value.message + caplog.text
    async with Served(app).running():
        pass


async def test_wsgi() -> None:
    """A WSGI app is served as well, without a lifespan."""

    def app(environ: Message, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "5")])
        return [environ["PATH_INFO"].encode()]

    async with Served(app, Interface.WSGI).running() as served, served.connected() as client:
        assert (await client.get("/four"))[1] == b"/four"
        served.engine.drain(moving=False)
        head, body = await client.get("/five")
        assert body == b"/five"
        assert "connection: close" in head


async def test_garbage() -> None:
    """Input that isn't HTTP gets a 400, and its connection ends."""
    async with Served(App()).running() as served, served.connected() as client:
        client.writer.write(b"GET this is not HTTP\r\n\r\n")
        assert (await client.head()).startswith("http/1.1 400 ")
        await client.rest()
        await until(served.engine.idle)


def test_preload() -> None:
    """All that serving needs is imported by `preload`, so that workers share it."""
    HttpEngine.preload(Settings())
    assert {"httptools", "websockets.server"} <= set(sys.modules)
