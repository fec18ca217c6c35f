"""HTTP/2 on the uvicorn engine, over real connections in a uvloop; and what of uvicorn and zttp it is built on."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import zttp
from hpack import Encoder
from uvicorn.protocols.http.zttp_h2_impl import ZttpH2Protocol

from cluster2.engines import uvicorn_http2
from cluster2.engines.base import Interface, Site
from cluster2.engines.uvicorn import UvicornEngine
from cluster2.engines.uvicorn_http2 import ANSWER_ME, HELD_BACK, MOST_RUNNING, Http2Connection
from cluster2.engines.uvicorn_versions import PREFACE
from cluster2.errors import ConfigError
from cluster2.settings import Settings
from tests.http2_client import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    RST_STREAM,
    Answer,
    Http2Client,
    frame,
)
from tests.unit.waiting import until

pytestmark = pytest.mark.anyio
REFUSED = 7


class App:
    """Answers how much it was sent; /held waits for `gate` first; /SIZE answers with so many bytes, in pieces of 16 kB."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun = 0
        self.sent = 0
        self.cancelled = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.begun += 1
        size = 0
        while (message := await receive())["type"] == "http.request":
            size += len(message["body"])
            if not message["more_body"]:
                break
        else:
            self.cancelled += 1
            return
        if scope["path"] == "/held":
            await self.gate.wait()
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"x-version", scope["http_version"].encode())]}
        )
        if scope["path"][1:].isdigit():
            for _ in range(int(scope["path"][1:]) // 16384):
                await send({"type": "http.response.body", "body": b"x" * 16384, "more_body": True})
                self.sent += 16384
        await send({"type": "http.response.body", "body": b"%d" % size})


class Served:
    """An engine around an app."""

    def __init__(self, **options: Any) -> None:
        self.app = App()
        self.engine = UvicornEngine(
            Site(self.app, Interface.ASGI, Settings(http2=True, lifespan="off", **options), None)
        )
        self.told: list[object] = []

    async def start(self) -> Served:
        await self.engine.start()
        return self

    @asynccontextmanager
    async def connected(
        self, *, taken: bool = False
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        theirs.setblocking(False)

        def make() -> asyncio.BaseProtocol:
            return self.engine.taken(None, self.told.append) if taken else self.engine.protocol()

        await asyncio.get_running_loop().connect_accepted_socket(make, theirs)
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    @asynccontextmanager
    async def client(self, *, taken: bool = False, window: int = 65535) -> AsyncIterator[Http2Client]:
        async with self.connected(taken=taken) as streams:
            yield Http2Client(*streams, window)

    def connection(self) -> Http2Connection:
        (found,) = [each for each in self.engine._state.connections if isinstance(each, Http2Connection)]
        return found


async def test_both_versions_on_one_port() -> None:
    """A preface makes HTTP/2, in whatever pieces it comes; anything else is HTTP/1.1, also if it begins like a preface."""
    served = await Served().start()
    async with served.client() as client:
        answer = await client.get()
        assert (answer.status, answer.headers["x-version"], answer.body) == ("200", "2", b"0")
        assert served.engine.census()[:3] == (1, 1, 0)
        assert served.engine.movable() == []
    for whole in (b"GET / HTTP/1.1\r\nHost: t\r\n\r\n", b"PUT / HTTP/1.1\r\nHost: t\r\ncontent-length: 0\r\n\r\n"):
        async with served.connected() as (reader, writer):
            for number in range(len(whole)):
                writer.write(whole[number : number + 1])
                await asyncio.sleep(0)
            assert b"x-version: 1.1" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    async with served.connected() as (reader, writer):
        client = Http2Client(reader, writer)
        writer.write(b"")
        assert (await client.get()).status == "200"
    async with served.connected() as (reader, writer):
        writer.write(PREFACE[:10])
        await until(lambda: any(each.early for each in served.engine.movable()))  # type: ignore[attr-defined]
        (beginning,) = served.engine.movable()
        assert not beginning.may_move()
        writer.write(PREFACE[10:] + frame(4))
        await until(lambda: not served.engine.movable())
        assert served.connection().conn is not None
    await until(served.engine.idle)


async def test_bodies_in_and_out() -> None:
    """Bodies of any length go both ways, streams side by side."""
    served = await Served().start()
    async with served.client() as client:
        up = client.ask(method="POST", more=True)
        down = client.ask("/1048576")
        for _ in range(6):
            client.send(up, b"y" * 10000)
        client.send(up, b"end", end=True)
        assert (await client.answer(up)).body == b"60003"
        assert len((await client.answer(down)).body) == 1048576 + 1


async def test_an_app_waits_for_its_own_window() -> None:
    """A client that opens no window holds its stream's app back, and no other; in the end all is there."""
    served = await Served().start()
    async with served.client(window=100) as client:
        client.grants = False
        slow = client.ask("/1048576")
        await until(lambda: bool(served.app.sent))
        assert (await client.get("/x")).body == b"0"
        assert HELD_BACK < served.app.sent <= HELD_BACK + 3 * 16384
        client.grants = True
        client.grant(1 << 20, slow)
        assert len((await client.answer(slow)).body) == 1048576 + 1


async def test_a_response_that_is_complete_may_still_be_on_its_way() -> None:
    """A connection that is to end waits until its client has read what was kept back."""
    served = await Served().start()
    async with served.client(window=100) as client:
        client.grants = False
        number = client.ask("/49152")
        await until(lambda: served.engine.census().requests == 1)
        served.engine.drain(moving=True)
        served.engine.sweep(0)
        client.grants = True
        client.grant(1 << 16, number)
        assert len((await client.answer(number)).body) == 49153
        await client.end()
    await until(served.engine.idle)


async def test_draining_an_idle_connection() -> None:
    """It says at once which stream was the last, and closes when the client has read that."""
    served = await Served(drain_idle=60).start()
    async with served.client() as client:
        await client.get()
        await client.get()
        served.engine.drain(moving=True)
        await client.end()
        assert (client.last, client.code) == (3, 0)
    await until(served.engine.idle)


async def test_draining_waits_for_a_moment_without_streams() -> None:
    """Streams under way are finished, those that come within the grace are served; GOAWAY comes behind the last response."""
    served = await Served(drain_idle=60).start()
    async with served.client() as client:
        held = client.ask("/held")
        await until(lambda: served.app.begun == 1)
        served.engine.drain(moving=True)
        served.engine.sweep(0)
        assert (await client.get()).status == "200"
        assert client.last is None
        served.app.gate.set()
        assert (await client.answer(held)).status == "200"
        await client.end()
        assert client.last == 3
    await until(served.engine.idle)


async def test_when_the_grace_is_over() -> None:
    """GOAWAY comes although a stream is open: that is finished, new ones are refused and never begun."""
    served = await Served(drain_idle=0).start()
    async with served.client() as client:
        held = client.ask("/held")
        await until(lambda: served.app.begun == 1)
        served.engine.drain(moving=True)
        served.engine.sweep(0)
        late = client.ask()
        await client.answer(late)
        assert client.refused(late)
        client.writer.write(frame(PING, payload=b"12345678"))
        await client.read()  # its answer comes after whatever comes of the late one
        served.app.gate.set()
        assert (await client.answer(held)).status == "200"
        await client.end()
        assert (client.last, served.app.begun) == (held, 1)
    await until(served.engine.idle)


async def test_draining_one_that_has_just_come() -> None:
    """A connection that has brought no request yet may bring one within the grace."""
    for grace, last in ((60, 1), (0, 0)):
        served = await Served(drain_idle=grace).start()
        async with served.client() as client:
            await until(lambda served=served: any(map(served.engine._http2.has, served.engine._state.connections)))  # type: ignore[misc, union-attr]
            served.engine.drain(moving=True)
            served.engine.sweep(0)
            if grace:
                assert (await client.get()).status == "200"
            await asyncio.gather(client.end(), _swept(served))
            assert client.last == last


async def _swept(served: Served) -> None:
    while not served.engine.idle():
        served.engine.sweep(0)
        await asyncio.sleep(0.002)


async def test_one_that_comes_while_draining() -> None:
    """A connection that becomes HTTP/2 while all leave is served, and ends behind its first response."""
    served = await Served(drain_idle=60).start()
    async with served.connected() as streams:
        served.engine.drain(moving=True)
        client = Http2Client(*streams)
        assert (await client.get()).status == "200"
        await client.end()
    await until(served.engine.idle)


async def test_a_client_that_answers_no_ping() -> None:
    """It is closed when the grace is over."""
    served = await Served(drain_idle=0.05).start()
    async with served.client() as client:
        client.answers_pings = False
        await client.get()
        served.engine.drain(moving=True)

        async def sweeping() -> None:
            while not served.engine.idle():
                served.engine.sweep(0.05)
                await asyncio.sleep(0.002)

        await asyncio.wait_for(asyncio.gather(sweeping(), client.end()), 30)


async def test_shedding() -> None:
    """For balance so many connections are ended, each once; but none that has, or just had, a stream open."""
    served = await Served().start()
    async with served.client() as one, served.client() as two:
        await one.get()
        await two.get()
        now = time.monotonic()
        served.engine.tick(now)
        assert served.engine.shed(5, fixed=True) == 0
        held = one.ask("/held")
        await until(lambda: served.app.begun == 3)
        served.engine.tick(now + 100)
        assert served.engine.shed(5, fixed=True) == 1
        await two.end()
        served.app.gate.set()
        await one.answer(held)
    async with served.client() as one, served.client() as two:
        await one.get()
        await two.get()
        served.engine.tick(now + 200)
        assert served.engine.shed(1, fixed=True) == 1
        assert served.engine.shed(5, fixed=True) == 1
        await one.end()
        await two.end()


async def test_without_keep_alive() -> None:
    """Every connection ends behind its first response."""
    served = await Served(keep_alive=False).start()
    async with served.client() as client:
        assert (await client.get()).status == "200"
        await client.end()
        assert client.last == 1


async def test_idle_for_too_long() -> None:
    """A connection without a stream is ended after `timeout`, whether it has brought a request or PINGs only."""
    served = await Served(timeout=0.001).start()
    async with served.client() as asking, served.client() as pinging:
        await asking.get()
        pinging.writer.write(frame(PING, payload=b"12345678"))
        await pinging.read()

        async def seconds() -> None:
            while not (asking.closed and pinging.closed):
                served.engine.second()
                await asyncio.sleep(0.01)

        await asyncio.wait_for(asyncio.gather(seconds(), asking.end(), pinging.end()), 30)
        assert (asking.code, pinging.code) == (0, 0)
    assert served.engine.census().timed_out == 2


async def test_a_body_that_does_not_come() -> None:
    """Its stream gets 408, its app is told that the client has gone; the connection's other streams go on."""
    served = await Served(timeout=0.001).start()
    async with served.client() as client:
        held = client.ask("/held")
        slow = client.ask(method="POST", more=True)
        await until(lambda: served.app.begun == 2)
        while served.connection().cycles.get(slow) is not None:
            served.engine.second()
            await asyncio.sleep(0.01)
        answer = await client.answer(slow)
        assert (answer.status, answer.body) == ("408", b"Request Timeout")
        await until(lambda: served.app.cancelled == 1)
        served.app.gate.set()
        assert (await client.answer(held)).status == "200"


async def test_a_response_that_nobody_reads() -> None:
    """Its stream is reset, and the app goes on as for a client that has gone."""
    served = await Served(timeout=0.001).start()
    async with served.client(window=100) as client:
        client.grants = False
        slow = client.ask("/1048576")
        await until(lambda: served.app.sent > HELD_BACK)
        while client.streams[slow].reset is None:
            served.engine.second()
            await asyncio.sleep(0.01)
            if served.engine.census().stalled:
                await client.answer(slow)
        await until(lambda: served.engine.census().in_flight == 0)
    assert served.engine.census().stalled == 1


async def test_the_rest_of_a_response_that_nobody_reads() -> None:
    """A client that leaves the end of a complete response unread is given up, also if its connection was to end anyway."""
    for leaving in (False, True):
        served = await Served(timeout=0.001).start()
        async with served.client(window=100) as client:
            client.grants = False
            client.ask("/49152")
            await until(lambda served=served: served.engine.census().requests == 1)  # type: ignore[misc]
            if leaving:
                served.engine.drain(moving=True)

            async def seconds(served: Served = served) -> None:
                while not served.engine.idle():
                    served.engine.second()
                    await asyncio.sleep(0.01)

            await asyncio.wait_for(seconds(), 30)
            assert served.engine.census().stalled == 1


async def test_request_ages() -> None:
    """The oldest request of all streams counts."""
    served = await Served().start()
    assert served.engine.oldest(1.0) is None
    async with served.client() as client:
        client.ask("/held")
        await until(lambda: served.app.begun == 1)
        assert served.engine.oldest(2.0) == 2.0
        client.ask("/held")
        await until(lambda: served.app.begun == 2)
        assert served.engine.oldest(5.0) == 2.0
        served.app.gate.set()
        await until(lambda: served.engine.census().in_flight == 0)
        assert served.engine.oldest(6.0) is None


async def test_a_taken_connection_tells() -> None:
    """The acceptor is told when the first request has begun, though another protocol object brought it."""
    served = await Served().start()
    async with served.client(taken=True) as client:
        await client.get()
        assert len(served.told) == 1


async def test_cancelled_streams_count_while_their_handlers_run() -> None:
    """A client that opens and cancels streams can't start handlers without a bound: the others are refused (or all is ended)."""
    served = await Served().start()
    async with served.client() as client:
        for _ in range(MOST_RUNNING + 50):
            number = client.ask("/held")
            client.writer.write(frame(RST_STREAM, stream=number, payload=bytes(4)))
        last = client.ask("/x")
        assert (
            await client.answer(last)
        ).reset == REFUSED or client.code == 11  # ENHANCE_YOUR_CALM: zttp has counted, too
        assert served.app.begun > 100
        assert served.engine.census().in_flight <= MOST_RUNNING
        served.app.gate.set()
        await until(lambda: served.engine.census().in_flight == 0)
    async with served.client() as client:
        assert (await client.get()).status == "200"


HEAD = Encoder().encode(
    [(":method", "GET"), (":scheme", "http"), (":authority", "t"), (":path", "/")]
)  # a byte is the path


@pytest.mark.parametrize(
    ("what", "code"),
    [
        (b"garbage" * 20, 6),
        (frame(HEADERS, END_HEADERS, 2, HEAD), 1),
        (frame(HEADERS, END_HEADERS, 1, b"\xff" * 50), 9),
        (frame(HEADERS, 0, 1, HEAD) + frame(CONTINUATION, 0, 1, b"\x00\x01a" + b"\x7f\x00" + b"v" * 127) * 2000, 11),
    ],
    ids=["garbage", "an even stream", "broken headers", "headers without an end"],
)
async def test_what_is_no_http2(what: bytes, code: int) -> None:
    """The connection ends with the reason; the engine goes on."""
    served = await Served().start()
    async with served.client() as client:
        client.writer.write(what)
        await client.end()
        assert client.code in (code, None)  # it may be lost if more was sent than was read
    async with served.client() as client:
        assert (await client.get()).status == "200"
    await until(served.engine.idle)


async def test_a_path_that_is_none() -> None:
    """Its stream is reset; the connection's other streams go on."""
    served = await Served().start()
    async with served.client() as client:
        for path in (b"/\xff\xe9", b"", b"relative"):
            number = client.ask()
            assert (await client.answer(number)).status == "200"
            client._next += 2
            client.streams[number + 2] = Answer()
            client.writer.write(frame(HEADERS, END_HEADERS | END_STREAM, number + 2, HEAD[:-1] + literal_path(path)))
            answer = await client.answer(number + 2)
            assert answer.reset == 1 or answer.status == "200"
        assert (await client.get()).status == "200"


def literal_path(path: bytes) -> bytes:
    """`:path` (4 of the static table) with a value of its own, not indexed."""
    return b"\x04" + bytes([len(path)]) + path


async def test_a_client_that_vanishes() -> None:
    """Apps that wait for a window, or for a body, are told; nothing is left."""
    served = await Served().start()
    async with served.client(window=100) as client:
        client.grants = False
        client.ask("/1048576")
        client.ask(method="POST", more=True)
        await until(lambda: served.app.sent > HELD_BACK and served.app.begun == 2)
    await until(served.engine.idle)


def test_zttp_is_missing() -> None:
    """One line says what to install."""
    code = (
        "import sys; sys.modules['zttp'] = None\n"
        "from cluster2.engines.uvicorn import UvicornEngine\n"
        "from cluster2.settings import Settings\n"
        "UvicornEngine.preload(Settings())\n"
        "try: UvicornEngine.preload(Settings(http2=True))\n"
        "except Exception as error: print(error.exit_code, error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert said.stdout == (
        "5 http2: zttp, which speaks it, isn't installed: pip install 'cluster2[http2]', or leave the option out\n"
    ), said.stderr


def test_what_uvicorn_and_zttp_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that we build on is there; a release without it is refused by name."""
    uvicorn_http2.check()
    monkeypatch.delattr(ZttpH2Protocol, "handle_request")
    with pytest.raises(ConfigError, match="handle_request"):
        uvicorn_http2.check()


def test_zttp_goes_on_after_a_goaway() -> None:
    """Responses are still written after `close`, a second `close` may follow; the answer to our PING is told."""
    server, client = zttp.Connection(zttp.SERVER, zttp.HTTP2), zttp.Connection(zttp.CLIENT, zttp.HTTP2)
    server.initiate_connection()
    client.initiate_connection()
    asked = client.send_request(b"GET", b"/", b"2", [(b"host", b"t")])
    asked.end_message()
    server.receive_data(client.data_to_send())
    events = list(iter(server.next_event, zttp.NEED_DATA))
    assert any(isinstance(event, zttp.Request) for event in events)
    server.close(0, 1)
    server.close(0, 1)
    stream = server.stream(1)
    stream.send_response(200, [])
    stream.send_data(b"x" * 100000)
    stream.end_message()
    assert stream.pending_bytes == 100000 - 65535
    assert server.has_pending_send()
    client.receive_data(server.data_to_send() + ANSWER_ME)
    seen = list(iter(client.next_event, zttp.NEED_DATA))
    assert [event.last_stream_id for event in seen if isinstance(event, zttp.GoAway)] == [1, 1]
    server.receive_data(client.data_to_send())
    answers = [event for event in iter(server.next_event, zttp.NEED_DATA) if isinstance(event, zttp.Ping)]
    assert [(event.ack, event.data) for event in answers] == [(True, b"cluster2")]
