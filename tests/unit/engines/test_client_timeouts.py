"""Timeouts of clients: real engines over real connections, and a clock of the test's own."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster2.config.settings import Settings
from cluster2.engines.aborting import reset
from cluster2.engines.base import AppContext, Engine, Interface
from cluster2.engines.client_timeouts import ClientTimeouts, Wait, WaitingFor
from cluster2.engines.http.connection import ConnectionState
from cluster2.engines.http.http_engine import HttpEngine
from cluster2.engines.http.limits import INTERIM_RESPONSE_INTERVAL_S
from cluster2.engines.tcp.tcp_engine import TcpEngine
from cluster2.linux.tcp_progress import transferred, untaken
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio
LIMIT = 30.0
TURNS = 10
"""Turns of the loop after which bytes that were written before have been read: one to write, one to read, and some."""


class App:
    """/body reads all of it, /held waits for `gate`, /large answers with 64 MiB, /stream bit by bit, others with "hello"."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.began: list[str] = []
        self.gone = 0

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if scope["type"] != "http":
            return
        self.began.append(scope["path"])
        body = b"hello"
        if scope["path"] == "/body":
            body = b""
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.gone += 1
                    return
                body += message["body"]
                if not message["more_body"]:
                    break
        elif scope["path"] == "/held":
            await self.gate.wait()
        elif scope["path"] == "/large":
            body = bytes(1 << 26)
        elif scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200})
            for _ in range(1 << 6):  # few: those behind the client's end pause for 10 ms each
                await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
            body = b""
        if scope["path"] != "/stream":
            length = [(b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": body})


class Bench:
    """An engine, and the time as the test says."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine = engine
        self.now = 1000.0
        for module in ("http.http_engine", "tcp.tcp_engine"):
            monkeypatch.setattr(f"cluster2.engines.{module}.time", self)
        self.engine.tick(self.now)

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.7e9

    async def later(self, seconds: float) -> None:
        """Let time pass, in steps as the worker's tick makes them, once what was sent has arrived."""
        for _ in range(TURNS):
            await asyncio.sleep(0)
        for _ in range(int(seconds)):
            self.now += 1
            self.engine.tick(self.now)
            self.engine.on_second()
        await asyncio.sleep(0)

    @asynccontextmanager
    async def connected(self, family: socket.AddressFamily = socket.AF_INET) -> AsyncIterator[Client]:
        if family == socket.AF_INET:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                ours = socket.create_connection(listener.getsockname())
                theirs, _ = listener.accept()
        else:
            ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(self.engine.protocol, theirs)
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 16)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()
            try:
                await writer.wait_closed()
            except ConnectionError:
                pass  # it was cut off

    @property
    def counts(self) -> tuple[int, int]:
        """Connections given up; those that stalled."""
        census = self.engine.stats()
        return census.timed_out, census.stalled


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, text: bytes) -> None:
        self.writer.write(text)

    async def rest(self) -> bytes:
        """All that comes until the end."""
        try:
            return await asyncio.wait_for(self.reader.read(), PATIENCE)
        except ConnectionResetError:
            return b""

    async def reset(self) -> bool:
        """Return whether the connection was reset, and bytes sent before are no longer delivered."""
        try:
            while await asyncio.wait_for(self.reader.read(1 << 20), PATIENCE):
                pass
        except ConnectionResetError:
            return True
        return False


@pytest.fixture
async def http(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Bench, App]]:
    app = App()
    engine = HttpEngine(AppContext(app, Interface.ASGI, Settings(timeout=LIMIT), None))
    bench = Bench(engine, monkeypatch)
    await engine.start()
    yield bench, app
    app.gate.set()
    await until(engine.idle, "all connections are closed")
    await engine.stop()


Http = tuple[Bench, App]
ANSWER = b"HTTP/1.1 200 OK"


def connection(bench: Bench) -> Any:
    """Return the only connection."""
    (found,) = bench.engine.movable()
    return found


async def test_silent_from_the_beginning(http: Http) -> None:
    """A client that connects and says nothing is closed when its time is over, without a word."""
    bench, _ = http
    async with bench.connected() as client:
        await bench.later(LIMIT)
        assert bench.counts == (0, 0)
        await bench.later(2)
        assert await client.rest() == b""
    assert bench.counts == (1, 0)


async def test_silent_after_a_response(http: Http) -> None:
    """The time between two requests counts from the response; then the connection is closed without a word."""
    bench, _ = http
    async with bench.connected() as client:
        await bench.later(20)
        client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await client.reader.readuntil(b"hello")
        await bench.later(20)
        assert bench.counts == (0, 0)
        await bench.later(12)
        assert await client.rest() == b""
    assert bench.counts == (1, 0)


@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"])
async def test_a_head_that_trickles(http: Http, before: bytes) -> None:
    """A head has to come whole in time: a byte now and then doesn't help. It is answered 408, on first and later requests."""
    bench, app = http
    async with bench.connected() as client:
        if before:
            client.send(before)
            await client.reader.readuntil(b"hello")
        client.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n")
        await until(lambda: connection(bench).state == ConnectionState.HEAD, "it has begun")
        for _ in range(16):
            client.send(b"X")
            await bench.later(2)
        answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer
    assert bench.counts == (1, 1)
    assert "/slow" not in app.began


async def test_a_body_that_stops(http: Http) -> None:
    """A body may take as long as it goes on. When nothing has come for the time it is a 408, and the app gets a disconnect."""
    bench, app = http
    async with bench.connected() as client:
        client.send(b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        await until(lambda: app.began, "the app has begun")
        for number in range(1, 6):
            client.send(b"x")
            await until(lambda: connection(bench).request.waits_for_body(), "the app waits")
            await bench.later(LIMIT - 1)
            assert bench.counts == (0, 0), number
        await bench.later(3)
        answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert bench.counts == (1, 1)
    await until(lambda: app.gone, "the app has been told")


async def test_a_body_that_the_app_does_not_wait_for(http: Http) -> None:
    """As long as the app works and hasn't asked for the body, no time counts, whatever is missing of it."""
    bench, app = http
    async with bench.connected() as client:
        client.send(b"POST /held HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nx")
        await until(lambda: app.began, "the app has begun")
        await bench.later(10 * LIMIT)
        app.gate.set()
        assert (await client.reader.readuntil(b"hello")).startswith(ANSWER)
    assert bench.counts == (0, 0)


async def test_continue_is_ours_to_say(http: Http) -> None:
    """A client that waits for "100 Continue" waits for the app."""
    bench, app = http
    async with bench.connected() as client:
        client.send(b"POST /held HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\nexpect: 100-continue\r\n\r\n")
        await until(lambda: app.began, "the app has begun")
        await bench.later(10 * LIMIT)
        app.gate.set()
        assert (await client.reader.readuntil(b"hello")).startswith(ANSWER)
    assert bench.counts == (0, 0)


async def test_an_app_that_works(http: Http) -> None:
    """A request that is under way is never timed out, nor are those that were sent behind it."""
    bench, app = http
    async with bench.connected() as client:
        client.send(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: app.began, "the app has begun")
        await bench.later(10 * LIMIT)
        app.gate.set()
        for _ in range(2):
            assert (await client.reader.readuntil(b"hello")).startswith(ANSWER)
    assert bench.counts == (0, 0)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
@pytest.mark.parametrize("close", [b"", b"connection: close\r\n"])
async def test_a_reader_that_stops(http: Http, family: socket.AddressFamily, close: bytes) -> None:
    """A client that takes its response slowly has all the time; one that takes nothing of it is cut off."""
    bench, app = http
    async with bench.connected(family) as client:
        client.send(b"GET /large HTTP/1.1\r\nhost: x\r\n%s\r\n" % close)
        await until(lambda: app.began and connection(bench).transport.get_write_buffer_size(), "it is waiting")
        for number in range(5):
            await client.reader.readexactly(1 << 21)
            await bench.later(LIMIT - 1)
            assert bench.counts == (0, 0), number
        left = connection(bench)
        await bench.later(LIMIT + 2)
        assert bench.counts == (1, 1)
        await until(lambda: left not in list(bench.engine.movable()), "it is gone")
        assert family == socket.AF_UNIX or await client.reset(), "the kernel keeps nothing for it"


@pytest.mark.parametrize("resets", [False, True])
async def test_a_reader_that_stops_and_has_asked_for_more(
    http: Http, resets: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A reset or a leaving client: later messages of the app are dropped, which is no error, and no more requests begin."""
    bench, app = http
    async with bench.connected() as client:
        client.send(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n" * 3)
        await until(lambda: app.began and connection(bench).writing_paused is not None, "the app waits for it")
        if resets:
            client.writer.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            client.writer.transport.abort()
        else:
            await bench.later(LIMIT + 2)
            assert bench.counts == (1, 1)
        await until(bench.engine.idle, "it is gone, and so is its request")
    assert app.began == ["/stream"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
async def test_a_half_closed_client_that_leaves(http: Http, family: socket.AddressFamily) -> None:
    """A client that has ended its side is waited for. When it has left altogether the app gets a disconnect within a second."""
    bench, app = http
    async with bench.connected(family) as client:
        client.send(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: app.began, "the app has begun")
        client.writer.write_eof()
        await until(lambda: bench.engine.half_closed, "its end is seen")  # type: ignore[attr-defined]
        await bench.later(3)
        assert bench.engine.stats().in_flight == 1
        request = connection(bench).request
        assert not request.disconnected
        reset(client.writer.transport)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        await bench.later(1)
        assert request.disconnected
        await until(lambda: not bench.engine.stats().connections, "it is closed")
    assert bench.counts == (0, 0), "nobody was given up"


async def test_figures_of_a_request_whose_client_has_left(http: Http) -> None:
    """The request has ended, as a disconnect; the call is under way until the app returns, and no request is counted twice."""
    bench, app = http
    async with bench.connected() as client:
        client.send(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: app.began, "the app has begun")
        reset(client.writer.transport)
        await until(lambda: not bench.engine.stats().connections, "it is closed")
    stats = bench.engine.stats()
    assert stats.outcomes is not None
    assert (stats.requests, stats.outcomes.disconnects, stats.in_flight) == (1, 1, 1)
    assert bench.engine.oldest_request(bench.now) is None, "request_timeout is for clients that wait"
    app.gate.set()
    await until(bench.engine.idle, "the app has returned")
    stats = bench.engine.stats()
    assert stats.outcomes is not None
    assert (stats.requests, stats.outcomes.disconnects, stats.outcomes.errors(), stats.in_flight) == (1, 1, 0, 0)


async def test_a_client_that_closes_during_a_long_poll(http: Http) -> None:
    """A client that has closed its connection, before its response has begun, is noticed within seconds: 100 Continue is reset."""
    bench, app = http
    async with bench.connected() as client:
        client.send(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: app.began, "the app has begun")
        request = connection(bench).request
        client.writer.close()
        await until(lambda: bench.engine.half_closed, "its end is seen")  # type: ignore[attr-defined]
        await bench.later(INTERIM_RESPONSE_INTERVAL_S + 1)
        assert request.disconnected
        await until(lambda: not bench.engine.stats().connections, "it is closed")


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_half_closed_client_during_a_long_poll(http: Http, version: bytes) -> None:
    """A client that has only ended its side gets 100 Continue now and then, and its response; one of HTTP/1.0 the response only."""
    bench, app = http
    async with bench.connected() as client:
        client.send(b"GET /held HTTP/%b\r\nhost: x\r\n\r\n" % version)
        await until(lambda: app.began, "the app has begun")
        client.writer.write_eof()
        await until(lambda: bench.engine.half_closed, "its end is seen")  # type: ignore[attr-defined]
        await bench.later(2 * INTERIM_RESPONSE_INTERVAL_S + 1)
        app.gate.set()
        received = await client.reader.read()
    interim = b"HTTP/1.1 100 Continue\r\n\r\n" * (2 if version == b"1.1" else 0)
    assert received.startswith(interim + b"HTTP/1.1 200 OK\r\n")
    assert received.endswith(b"\r\n\r\nhello")


async def test_no_interim_response_within_a_response(http: Http) -> None:
    """A half-closed client whose response has begun gets nothing but that."""
    bench, _ = http
    async with bench.connected() as client:
        client.send(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n")
        client.writer.write_eof()
        await until(lambda: bench.engine.half_closed, "its end is seen")  # type: ignore[attr-defined]
        await bench.later(2 * INTERIM_RESPONSE_INTERVAL_S)
        received = await client.reader.read()
    assert b" 100 Continue" not in received
    assert received.count(b"HTTP/1.1 200 OK") == 2


async def test_a_request_behind_a_response_that_is_not_taken(http: Http) -> None:
    """The request begins when the client has taken the response before it; all get their responses, in order."""
    bench, app = http
    async with bench.connected() as client:
        client.send(
            b"GET /large HTTP/1.1\r\nhost: x\r\n\r\nGET /a HTTP/1.1\r\nhost: x\r\n\r\nGET /b HTTP/1.1\r\nhost: x\r\n\r\n"
        )
        await until(lambda: app.began and connection(bench).pipeline, "two wait")
        for _ in range(TURNS):
            await asyncio.sleep(0)
        assert app.began == ["/large"]
        await client.reader.readuntil(b"\r\n\r\n")
        await client.reader.readexactly(1 << 26)
        for _ in range(2):
            await asyncio.wait_for(client.reader.readuntil(b"hello"), PATIENCE)
        assert app.began == ["/large", "/a", "/b"]
        client.send(b"GET /c HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.wait_for(client.reader.readuntil(b"hello"), PATIENCE)
    assert bench.engine.stats().requests == 4


async def test_a_large_response_before_a_body_that_nobody_reads(http: Http) -> None:
    """A client that sends its whole body before it reads isn't kept from that by a response that it doesn't take yet."""
    bench, _ = http
    async with bench.connected() as client:
        client.send(b"POST /large HTTP/1.1\r\nhost: x\r\nContent-Length: 67108864\r\n\r\n")
        client.writer.write(bytes(1 << 26))
        await asyncio.wait_for(client.writer.drain(), PATIENCE)
        await client.reader.readuntil(b"\r\n\r\n")
        await client.reader.readexactly(1 << 26)


async def test_timeout_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """With timeout = 0 no connection is ever given up."""
    engine = HttpEngine(AppContext(App(), Interface.ASGI, Settings(timeout=0.0), None))
    bench = Bench(engine, monkeypatch)
    await engine.start()
    async with bench.connected() as client:
        client.send(b"GET / HT")
        await bench.later(1000)
        client.send(b"TP/1.1\r\nhost: x\r\n\r\n")
        await client.reader.readuntil(b"hello")
    await until(engine.idle, "it is closed")
    assert bench.counts == (0, 0)


# Raw TCP


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echoes lines; "say N" says so many bytes."""
    while line := await reader.readline():
        writer.write(bytes(int(line[4:])) if line.startswith(b"say ") else line)
        await writer.drain()


@pytest.fixture
async def tcp(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    bench = Bench(TcpEngine(AppContext(echo, Interface.TCP, Settings(timeout=LIMIT), None)), monkeypatch)
    yield bench
    await until(bench.engine.idle, "all connections are closed")


async def test_a_silent_stream(tcp: Bench) -> None:
    """A stream on which neither side has sent anything for the time is closed; each byte gives it the whole time again."""
    async with tcp.connected() as client:
        for number in range(3):
            client.send(b"hello\n")
            await client.reader.readuntil(b"\n")
            await tcp.later(LIMIT - 1)
            assert tcp.counts == (0, 0), number
        await tcp.later(3)
        assert await client.rest() == b""
    assert tcp.counts == (1, 0)


async def test_a_stream_that_is_taken_slowly(tcp: Bench) -> None:
    """As long as the client takes something it isn't silent; when it takes nothing it is closed."""
    async with tcp.connected() as client:
        client.send(b"say 67108864\n")
        for number in range(3):
            await client.reader.readexactly(1 << 22)
            await tcp.later(LIMIT - 1)
            assert tcp.counts == (0, 0), number
        await tcp.later(LIMIT + 2)
        assert tcp.counts == (1, 0)
        assert await client.reset(), "the kernel keeps nothing for it"


# What the kernel counts


def test_what_the_kernel_counts() -> None:
    """Bytes delivered and received of a TCP connection, None for others, and the unread bytes of a Unix socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as one:
        other, _ = listener.accept()
        with other:
            assert transferred(other.fileno()) == (0, 0)
            one.sendall(b"x" * 100)
            other.sendall(b"y" * 7)
            assert other.recv(200) + one.recv(200) == b"x" * 100 + b"y" * 7
            assert transferred(other.fileno()) == (7, 100)
    one, other = socket.socketpair()
    with one, other:
        assert transferred(one.fileno()) is None
        assert untaken(one.fileno()) == 0
        one.sendall(b"x" * 100)
        assert untaken(one.fileno()) > 0
        other.recv(200)
        assert untaken(one.fileno()) == 0
    with Path("/dev/null").open() as file:
        assert (transferred(file.fileno()), untaken(file.fileno())) == (None, 0)
    assert (transferred(-1), untaken(-1)) == (None, 0)


def test_patience_forgets() -> None:
    """A connection that had its app's turn in between begins anew; one that is gone isn't remembered."""

    class One:
        wait: Wait | None = Wait(WaitingFor.HEAD, 1)
        given_up: WaitingFor | None = None

        def waits(self) -> Wait | None:
            return self.wait

        def give_up(self, what: WaitingFor) -> None:
            self.given_up = what

    one, patience = One(), ClientTimeouts(10)
    patience.check([one], 0)
    one.wait = None
    patience.check([one], 9)
    one.wait = Wait(WaitingFor.HEAD, 1)
    patience.check([one], 11)
    patience.check([one], 21)
    assert one.given_up is None
    patience.check([one], 22)
    assert one.given_up is WaitingFor.HEAD
    patience.check([], 23)
    assert not patience._since
