"""Websockets over real connections, with the websockets library's client and with raw ones."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trustme
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cluster2.engines.http import websocket
from cluster2.engines.http.response import Defaults
from cluster2.engines.http.websocket import WebSocketConnection
from cluster2.engines.http.websocket_session import ClientDisconnected, WebSocketPhase, WebSocketSession, open_session
from cluster2.engines.outcomes import Outcomes
from tests.unit.engines.http.test_websocket_session import KEY, frame
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio
Call = Callable[..., Any]
Message = dict[str, Any]
HEAD = (
    b"GET /chat%20room?x=1 HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: " + KEY + b"\r\n\r\n"
)
LARGE = 1 << 20


class Host:
    """The engine of a websocket, for tests: serves each connection as a handshake."""

    def __init__(self, app: Call, send_buffer: int | None) -> None:
        self.app = app
        self.defaults = Defaults()
        self.defaults.renew(b"now")
        self.outcomes = Outcomes()
        self.all: list[WebSocketConnection] = []
        self.ended: list[WebSocketConnection] = []
        self.send_buffer = send_buffer

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.create_task(work)

    def websocket_ended(self, websocket: WebSocketConnection) -> None:
        self.ended.append(websocket)


class Handshake(asyncio.Protocol):
    """Reads a head, and hands the transport over."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, found, rest = self.data.partition(b"\r\n\r\n")
        if not found:
            return
        host, transport = self.host, self.transport
        if host.send_buffer is not None:
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, host.send_buffer)
        line, *lines = head.split(b"\r\n")
        method, target, _ = line.decode().split()
        fields = [line.partition(b":") for line in lines]
        headers = [(name.lower(), value.strip()) for name, _, value in fields]
        path, _, query = target.partition("?")
        session = open_session(method, headers, host.defaults, LARGE)
        assert isinstance(session, WebSocketSession)
        scope = {
            "type": "http",
            "scheme": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": headers,
            "client": ("127.0.0.1", 1),
        }
        one = WebSocketConnection(host.app, scope, session, transport, host)
        host.all.append(one)
        transport.set_protocol(one)
        one.start(rest)


class Served:
    """A server for one app on the loopback."""

    def __init__(self, app: Call, send_buffer: int | None = None) -> None:
        self.host = Host(app, send_buffer)
        self.raws: list[Raw] = []

    @asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Served]:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Handshake(self.host), "127.0.0.1", 0, ssl=tls)
        self.scheme = "ws" if tls is None else "wss"
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
            await until(lambda: len(self.host.ended) == len(self.host.all), "all websockets end")
        finally:
            for raw in self.raws:
                raw.sock.close()
            for each in self.host.all:
                each.abort()
                if each.task is not None:
                    each.task.cancel()
            await asyncio.gather(
                *(each.task for each in self.host.all if each.task is not None), return_exceptions=True
            )
            server.close()
            await server.wait_closed()

    def client(self, **options: Any) -> connect:
        url = f"{self.scheme}://127.0.0.1:{self.port}/chat%20room?x=1"
        return connect(url, open_timeout=PATIENCE, close_timeout=PATIENCE, **options)

    async def raw(self, receive_buffer: int | None = None) -> Raw:
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        self.raws.append(Raw(sock))
        return self.raws[-1]

    @property
    def one(self) -> WebSocketConnection:
        (one,) = self.host.all
        return one


class Raw:
    """A client without manners."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self.received = b""

    async def send(self, data: bytes) -> None:
        await asyncio.wait_for(self.loop.sock_sendall(self.sock, data), PATIENCE)

    async def until(self, wanted: bytes) -> bytes:
        while wanted not in self.received:
            data = await asyncio.wait_for(self.loop.sock_recv(self.sock, 1 << 16), PATIENCE)
            assert data, f"the end came before {wanted!r}: {self.received!r}"
            self.received += data
        return self.received

    async def rest(self) -> bytes:
        """All that comes to the end."""
        while data := await asyncio.wait_for(self.loop.sock_recv(self.sock, 1 << 16), PATIENCE):
            self.received += data
        return self.received

    async def opened(self) -> None:
        await self.send(HEAD)
        await self.until(b"\r\n\r\n")
        self.received = self.received.partition(b"\r\n\r\n")[2]


class Notes:
    """The messages that an app has received."""

    def __init__(self) -> None:
        self.scope: Message = {}
        self.received: list[Message] = []
        self.raised: list[BaseException] = []

    async def accept(self, scope: Message, receive: Call, send: Call, **message: Any) -> None:
        self.scope = scope
        assert await receive() == {"type": "websocket.connect"}
        await send({"type": "websocket.accept", **message})

    async def echo(self, scope: Message, receive: Call, send: Call) -> None:
        await self.accept(scope, receive, send)
        while (message := await receive())["type"] == "websocket.receive":
            self.received.append(message)
            await send({**message, "type": "websocket.send"})
        self.received.append(message)

    async def listen(self, scope: Message, receive: Call, send: Call) -> None:
        await self.accept(scope, receive, send)
        while not self.received or self.received[-1]["type"] != "websocket.disconnect":
            self.received.append(await receive())


# --------------------------------------------------------------------------------------------------------------- the app


async def test_the_scope() -> None:
    """The app is called with a scope of type websocket."""
    notes = Notes()
    async with Served(notes.echo).running() as served, served.client(subprotocols=["a", "b"]) as client:
        await client.send("x")
        await client.recv()
    assert notes.scope["type"] == "websocket"
    assert notes.scope["scheme"] == "ws"
    assert notes.scope["asgi"] == {"version": "3.0", "spec_version": "2.4"}
    assert notes.scope["subprotocols"] == ["a", "b"]
    assert notes.scope["extensions"] == {"websocket.http.response": {}}
    assert notes.scope["raw_path"] == b"/chat%20room"
    assert "method" not in notes.scope


@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_echo(compression: str | None) -> None:
    """Messages of all sizes come back, text and bytes, whole and in fragments; then the client closes."""
    notes = Notes()
    messages: list[str | bytes] = ["", "grüß", b"", b"\xff" * 126, "x" * 70_000, b"\0" * LARGE]
    async with Served(notes.echo).running() as served, served.client(compression=compression, max_size=None) as client:
        for message in messages:
            await client.send(message)
            assert await asyncio.wait_for(client.recv(), PATIENCE) == message
        await client.send(["a", "b", "c"])
        assert await asyncio.wait_for(client.recv(), PATIENCE) == "abc"
        assert (client.protocol.extensions != []) == (compression is not None)
        await client.close(4002, "done")
    assert notes.received[-1] == {"type": "websocket.disconnect", "code": 4002, "reason": "done"}
    assert served.one.session.status == 101


async def test_tls() -> None:
    """Over TLS, which has no half-closed connections: messages, a refusal, a close by either side."""
    authority = trustme.CA()
    ours, theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(ours)
    authority.configure_trust(theirs)
    notes = Notes()

    async def app(scope: Message, receive: Call, send: Call) -> None:
        if len(served.host.all) < 3:
            await notes.echo(scope, receive, send)
        else:
            await send({"type": "websocket.close"})

    served = Served(app)
    async with served.running(ours):
        async with served.client(ssl=theirs, max_size=None) as client:
            await client.send(b"\0" * LARGE)
            assert await asyncio.wait_for(client.recv(), PATIENCE) == b"\0" * LARGE
        await until(lambda: served.host.ended)
        async with served.client(ssl=theirs) as client:
            served.host.all[1].close_for_retire()
            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert client.close_code == 1012
        await until(lambda: len(served.host.ended) == 2)
        with pytest.raises(InvalidStatus) as error:
            await served.client(ssl=theirs)
        assert error.value.response.status_code == 403


async def test_random_messages() -> None:
    """A client of the library with random fragments, at random times, gets back what it has sent."""
    notes, chance = Notes(), random.Random(7)
    async with Served(notes.echo).running() as served, served.client(max_size=None) as client:
        for _ in range(200):
            size = chance.choice([0, 1, 125, 126, 4000, 65535, 65536, 100_000])
            data = chance.randbytes(size)
            cuts = sorted(chance.randrange(size + 1) for _ in range(chance.randrange(3)))
            pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, size], strict=True)]
            await client.send(pieces if len(pieces) > 1 else data)
            if chance.random() < 0.3:
                await asyncio.wait_for(await client.ping(), PATIENCE)
            assert await asyncio.wait_for(client.recv(), PATIENCE) == data


async def test_a_fuzzing_client() -> None:
    """Random bytes and random frames end a websocket, or don't; nothing is logged, and the next client is served."""
    notes, chance = Notes(), random.Random(8)
    async with Served(notes.echo).running() as served:
        for turn in range(150):
            raw = await served.raw()
            await raw.opened()
            pieces = []
            for _ in range(chance.randrange(6)):
                if turn % 3 == 0:
                    pieces.append(chance.randbytes(chance.randrange(40)))
                else:
                    options = {
                        "fin": chance.random() < 0.7,
                        "masked": chance.random() < 0.95,
                        "rsv": chance.choice([0, 0, 0, 4]),
                    }
                    data = chance.randbytes(chance.randrange(20)) if chance.random() < 0.5 else b"text"
                    pieces.append(frame(chance.choice([0, 1, 2, 2, 8, 9, 10, 5]), data, **options))
            data = b"".join(pieces)
            cut = chance.randrange(len(data) + 1)
            await raw.send(data[:cut])
            try:
                await raw.send(data[cut:])
                raw.sock.shutdown(socket.SHUT_WR)
                await raw.rest()
            except (ConnectionError, OSError):
                continue  # ended by the server in the middle of it: as it should be
            finally:
                raw.sock.close()
        await until(lambda: len(served.host.ended) == len(served.host.all) == 150)
        assert served.host.outcomes.errors() == 0
        async with served.client() as client:
            await client.send("still here")
            assert await asyncio.wait_for(client.recv(), PATIENCE) == "still here"


async def test_refused() -> None:
    """An app that closes before it accepts refuses the client (403)."""

    async def app(scope: Message, receive: Call, send: Call) -> None:
        await send({"type": "websocket.close"})

    async with Served(app).running() as served:
        with pytest.raises(InvalidStatus) as error:
            await served.client()
        assert error.value.response.status_code == 403


@pytest.mark.parametrize("pieces", [1, 3])
async def test_an_answer_of_its_own(pieces: int) -> None:
    """An app may answer the handshake with a response of its own, however long."""

    async def app(scope: Message, receive: Call, send: Call) -> None:
        headers = [(b"x-why", b"no")]
        await send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
        for left in reversed(range(pieces)):
            await send({"type": "websocket.http.response.body", "body": b"x" * 300_000, "more_body": left > 0})

    async with Served(app).running() as served:
        with pytest.raises(InvalidStatus) as error:
            await served.client()
        response = error.value.response
        assert (response.status_code, response.headers["x-why"]) == (401, "no")
        assert len(response.body or b"") == 300_000 * pieces


async def raises(scope: Message, receive: Call, send: Call) -> None:
    raise ValueError("at once")


async def returns(scope: Message, receive: Call, send: Call) -> None:
    pass


async def raises_later(scope: Message, receive: Call, send: Call) -> None:
    await Notes().accept(scope, receive, send)
    raise ValueError("later")


async def raises_base(scope: Message, receive: Call, send: Call) -> None:
    await Notes().accept(scope, receive, send)
    raise SystemExit("later")


def plain(scope: Message, receive: Call, send: Call) -> None:
    raise ValueError("not even a coroutine")


@pytest.mark.parametrize("app", [raises, returns, plain], ids=lambda app: app.__name__)
async def test_the_app_fails_at_first(app: Call, caplog: pytest.LogCaptureFixture) -> None:
    """An app that fails before its answer: 500, one line in the log that names peer and path."""
    async with Served(app).running() as served:
        with pytest.raises(InvalidStatus) as error:
            await served.client()
        assert error.value.response.status_code == 500
        assert served.host.outcomes.errors() == 1
    (record,) = [each for each in caplog.records if each.name == "cluster2.http"]
    assert "127.0.0.1:1 websocket /chat%20room: " in record.getMessage()


@pytest.mark.parametrize("app", [raises_later, raises_base], ids=lambda app: app.__name__)
async def test_the_app_fails_later(app: Call, caplog: pytest.LogCaptureFixture) -> None:
    """An app that fails after its answer: 1011."""
    async with Served(app).running() as served, served.client() as client:
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1011
        assert served.host.outcomes.errors() == 1
    assert "later" in caplog.text


async def test_the_app_returns() -> None:
    """An app that returns has closed the websocket (1000)."""
    async with Served(lambda *args: Notes().accept(*args)).running() as served, served.client() as client:
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert (client.close_code, served.host.outcomes.errors()) == (1000, 0)


async def test_it_waits_after_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """An app that asks again, or sends, after `websocket.disconnect` gets an OSError; nothing is logged about that."""
    raised: list[str] = []

    async def app(scope: Message, receive: Call, send: Call) -> None:
        await Notes().accept(scope, receive, send)
        assert (await receive())["type"] == "websocket.disconnect"
        for call in (receive, lambda: send({"type": "websocket.send", "text": "late"})):
            try:
                await call()
            except OSError as error:
                raised.append(type(error).__name__)
        await send({"type": "websocket.close"})
        await receive()

    async with Served(app).running() as served:
        async with served.client():
            pass
        await until(lambda: served.host.ended)
        assert served.host.outcomes.errors() == 0
    assert raised == ["ClientDisconnected", "ClientDisconnected"]
    assert [each for each in caplog.records if each.name.startswith("cluster2")] == []


# ------------------------------------------------------------------------------------------------------------ the client


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_the_client_is_lost(how: str) -> None:
    """A client that leaves without Close: 1006, once."""
    notes = Notes()
    async with Served(notes.listen).running() as served:
        raw = await served.raw()
        await raw.opened()
        if how == "reset":
            raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.sock.close()
        await until(lambda: served.host.ended)
    assert notes.received == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]


async def test_the_client_leaves_early() -> None:
    """A client that leaves before the app has answered: the app gets a disconnect."""
    told: list[Message] = []

    async def app(scope: Message, receive: Call, send: Call) -> None:
        told.append(await receive())
        told.append(await receive())
        try:
            await send({"type": "websocket.accept"})
        except ClientDisconnected:
            told.append({"type": "raised"})

    async with Served(app).running() as served:
        raw = await served.raw()
        await raw.send(HEAD)
        await until(lambda: told)
        raw.sock.close()
        await until(lambda: served.host.ended)
    assert [each["type"] for each in told] == ["websocket.connect", "websocket.disconnect", "raised"]


async def test_frames_before_the_answer() -> None:
    """A client that doesn't wait for the answer is served all the same, and bounded meanwhile."""
    notes, gate = Notes(), asyncio.Event()

    async def app(scope: Message, receive: Call, send: Call) -> None:
        await gate.wait()
        await notes.echo(scope, receive, send)

    async with Served(app).running() as served:
        raw = await served.raw()
        await raw.send(HEAD + frame(1, b"early"))
        await until(lambda: served.host.all)
        assert served.one._reading_paused
        await raw.send(frame(1, b"bird"))
        gate.set()
        await raw.until(b"\r\n\r\n\x81\x05early\x81\x04bird")
        await raw.send(frame(8, b"\x03\xe8"))
        assert (await raw.rest()).endswith(b"bird\x88\x02\x03\xe8")
        raw.sock.close()
    assert [each.get("text") for each in notes.received] == ["early", "bird", None]


async def test_the_end_is_seen() -> None:
    """After both have sent Close the server ends its side at once, and drops what still comes until the client closes."""
    notes = Notes()
    async with Served(notes.listen).running() as served:
        raw = await served.raw()
        await raw.opened()
        await raw.send(frame(8, b"\x03\xe8"))
        assert await raw.rest() == b"\x88\x02\x03\xe8"
        await raw.send(frame(1, b"after") * 1000)
        assert not served.host.ended
        raw.sock.close()
        await until(lambda: served.host.ended)


# ---------------------------------------------------------------------------------------------------------- flow control


async def test_an_app_that_does_not_receive() -> None:
    """Reading pauses while the app has enough to receive, goes on when it receives, and nothing is lost."""
    gate, got = asyncio.Event(), []

    async def app(scope: Message, receive: Call, send: Call) -> None:
        await Notes().accept(scope, receive, send)
        await gate.wait()
        while (message := await receive())["type"] == "websocket.receive":
            got.append(message["bytes"])

    async with Served(app).running() as served:
        raw = await served.raw()
        await raw.opened()
        sent = asyncio.ensure_future(
            raw.send(b"".join(frame(2, b"%d" % number) for number in range(50_000)) + frame(8, b""))
        )
        await until(lambda: served.one._reading_paused)
        assert websocket.MAX_QUEUED_MESSAGES <= len(served.one.session.received) < websocket.MAX_SLICE_BYTES
        gate.set()
        await sent
        await raw.rest()
        raw.sock.close()
    assert got == [b"%d" % number for number in range(50_000)]


async def test_a_client_that_does_not_read() -> None:
    """`send` waits for the client; all comes when it reads again."""
    sent: list[int] = []

    async def app(scope: Message, receive: Call, send: Call) -> None:
        await Notes().accept(scope, receive, send)
        for number in range(400):
            await send({"type": "websocket.send", "bytes": bytes(10_000)})
            sent.append(number)

    async with Served(app, send_buffer=65536).running() as served:
        raw = await served.raw(receive_buffer=65536)
        await raw.opened()
        await until(lambda: served.one._writing_paused)
        assert len(sent) < 400
        size = len(raw.received)
        while size < 400 * (10_000 + len(b"\x82\x7e\x27\x10")):
            size += len(await asyncio.wait_for(raw.loop.sock_recv(raw.sock, 1 << 16), PATIENCE))
        await until(lambda: sent == list(range(400)))
        raw.sock.close()


async def test_pongs_do_not_pile_up() -> None:
    """A client that sends pings and takes no pongs isn't read any more."""
    notes = Notes()
    async with Served(notes.listen, send_buffer=4096).running() as served:
        raw = await served.raw(receive_buffer=4096)
        await raw.opened()
        flood = asyncio.ensure_future(raw.send(frame(9, b"x" * 100) * 200_000))
        await until(lambda: served.one._reading_paused and served.one._writing_paused)
        assert served.one.transport.get_write_buffer_size() < 1 << 20
        flood.cancel()
        await asyncio.wait([flood])
        raw.sock.close()
        await until(lambda: served.host.ended)


async def test_a_blocked_send_is_told_of_the_end() -> None:
    """A `send` that waits for a client raises when the connection is lost."""
    raised: list[BaseException] = []

    async def app(scope: Message, receive: Call, send: Call) -> None:
        await Notes().accept(scope, receive, send)
        try:
            while True:
                await send({"type": "websocket.send", "bytes": bytes(100_000)})
        except OSError as error:
            raised.append(error)
            raise

    async with Served(app).running() as served:
        raw = await served.raw()
        await raw.opened()
        await until(lambda: served.one._writing_paused)
        raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.sock.close()
        await until(lambda: served.host.ended)
        assert served.host.outcomes.errors() == 0
    assert isinstance(raised[0], ClientDisconnected)


# ------------------------------------------------------------------------------------------------------ pings and the end


async def test_pings() -> None:
    """A silent client is pinged, and its pong keeps the websocket open."""
    notes = Notes()
    async with Served(notes.listen).running() as served:
        raw = await served.raw()
        await raw.opened()
        one, start = served.one, 1000.0
        one.poll(start)
        one.poll(start + websocket.PING_INTERVAL_S - 1)
        assert one._pinged_at is None
        one.poll(start + websocket.PING_INTERVAL_S)
        await raw.until(b"\x89\x00")
        await raw.send(frame(10, b""))
        await until(lambda: one._heard)
        one.poll(start + websocket.PING_INTERVAL_S + websocket.PING_TIMEOUT_S)
        assert (one._pinged_at, one.session.phase) == (None, WebSocketPhase.OPEN)
        raw.sock.close()


async def test_no_pong() -> None:
    """A client that doesn't answer a ping gets a Close (1011), and is reset later."""
    notes = Notes()
    async with Served(notes.listen).running() as served:
        raw = await served.raw()
        await raw.opened()
        one, now = served.one, 1000.0
        one.poll(now)
        one.poll(now := now + websocket.PING_INTERVAL_S)
        one.poll(now := now + websocket.PING_TIMEOUT_S)
        await raw.until(b"\x88\x15\x03\xf3")
        await until(lambda: notes.received)
        assert notes.received[0]["code"] == 1011
        one.poll(now + websocket.LINGER_S)
        await until(lambda: served.host.ended)
        raw.sock.close()


async def test_silence_of_our_own() -> None:
    """While reading is paused because of the app, the client's silence doesn't count."""
    gate = asyncio.Event()

    async def app(scope: Message, receive: Call, send: Call) -> None:
        await Notes().accept(scope, receive, send)
        await gate.wait()

    async with Served(app).running() as served:
        raw = await served.raw()
        await raw.opened()
        await raw.send(frame(2, b"x" * 1000) * 100)
        one = served.one
        await until(lambda: one._reading_paused)
        for turn in range(10):
            one.poll(1000.0 + turn * 100)
        assert (one._pinged_at, one.session.phase) == (None, WebSocketPhase.OPEN)
        gate.set()
        raw.sock.close()


async def test_taking_is_a_sign_of_life() -> None:
    """A client that takes a long message slowly is alive; one that takes nothing any more is given up, and reset."""

    async def app(scope: Message, receive: Call, send: Call) -> None:
        await Notes().accept(scope, receive, send)
        await send({"type": "websocket.send", "bytes": bytes(8 * LARGE)})
        await receive()

    async with Served(app, send_buffer=4096).running() as served:
        raw = await served.raw(receive_buffer=4096)
        await raw.opened()
        one, now = served.one, 1000.0
        await until(lambda: one._writing_paused)
        for _ in range(20):
            left = one.transport.get_write_buffer_size()
            await raw.loop.sock_recv(raw.sock, 1 << 16)
            await until(lambda left=left: one.transport.get_write_buffer_size() < left or raw.sock.recv(1 << 16))
            one.poll(now := now + 100)
        assert one.session.phase is WebSocketPhase.OPEN
        for _ in range(4):
            one.poll(now := now + 100)
        await until(lambda: served.host.ended)
        raw.sock.close()


async def test_retire() -> None:
    """When the worker retires the client gets 1012 once, and the app gets it as well."""
    notes = Notes()
    async with Served(notes.listen).running() as served, served.client() as client:
        served.one.close_for_retire()
        served.one.close_for_retire()
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1012
        await until(lambda: served.host.ended)
    assert notes.received == [{"type": "websocket.disconnect", "code": 1012, "reason": ""}]


async def test_retire_before_the_answer() -> None:
    """A handshake that the app hasn't answered yet when the worker retires is accepted, and closed at once."""
    notes, gate = Notes(), asyncio.Event()

    async def app(scope: Message, receive: Call, send: Call) -> None:
        await gate.wait()
        await notes.listen(scope, receive, send)

    async with Served(app).running() as served:
        opening = asyncio.ensure_future(served.client().__aenter__())
        await until(lambda: served.host.all)
        served.one.close_for_retire()
        gate.set()
        client: ClientConnection = await opening
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1012


@pytest.mark.parametrize("sends", [False, True])
async def test_retire_a_client_that_does_not_read(sends: bool) -> None:
    """A client that doesn't read gets 1012 once, and is reset when its time is over; the app isn't blocked."""
    notes = Notes()

    async def app(scope: Message, receive: Call, send: Call) -> None:
        await notes.accept(scope, receive, send)
        if sends:
            try:
                while True:
                    await send({"type": "websocket.send", "bytes": bytes(100_000)})
            except ClientDisconnected as error:
                notes.raised.append(error)
        notes.received.append(await receive())

    async with Served(app).running() as served:
        raw = await served.raw()
        await raw.opened()
        one = served.one
        await until(lambda: one._writing_paused or not sends)
        one.close_for_retire()
        await until(lambda: one.task is not None and one.task.done())
        assert notes.received[0]["code"] == 1012
        assert len(notes.raised) == sends
        one.poll(1000.0)
        one.poll(1000.0 + websocket.CLOSE_TIMEOUT_S - 1)
        assert not served.host.ended
        one.poll(1000.0 + websocket.CLOSE_TIMEOUT_S)
        await until(lambda: served.host.ended)
        with pytest.raises(ConnectionResetError):
            await raw.rest()
        raw.sock.close()
    assert b"".join([raw.received]).count(b"\x88\x02\x03\xf4") <= 1


async def test_abort() -> None:
    """An aborted connection is reset, and the app gets a disconnect."""
    notes = Notes()
    async with Served(notes.listen).running() as served:
        raw = await served.raw()
        await raw.opened()
        served.one.abort()
        with pytest.raises(ConnectionResetError):
            await raw.rest()
        await until(lambda: served.host.ended)
        raw.sock.close()
    assert notes.received == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]


async def test_cancelled() -> None:
    """A task that is cancelled after its connection was aborted ends without a line in the log."""
    waiting = asyncio.Event()

    async def app(scope: Message, receive: Call, send: Call) -> None:
        await Notes().accept(scope, receive, send)
        waiting.set()
        await asyncio.Event().wait()

    async with Served(app).running() as served:
        raw = await served.raw()
        await raw.opened()
        await waiting.wait()
        served.one.abort()
        assert served.one.task is not None
        served.one.task.cancel()
        await asyncio.wait([served.one.task])
        assert served.one.task.cancelled()
        assert served.host.outcomes.errors() == 0
        raw.sock.close()


async def test_the_library_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """The library's lines about each connection aren't in the log."""
    caplog.set_level(logging.INFO)
    async with Served(Notes().echo).running() as served, served.client():
        pass
    assert [each.getMessage() for each in caplog.records if each.name.startswith("cluster2")] == []
