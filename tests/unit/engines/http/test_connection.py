"""A connection of the engine `http`: what is answered to which bytes, however they are split."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster2.engines.base import Interface
from cluster2.engines.http import head
from cluster2.engines.http.connection import ConnectionState
from cluster2.engines.http.limits import (
    MAX_BODYLESS_BYTES,
    MAX_DISCARDED_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_PIPELINED,
    MAX_TARGET_BYTES,
    MAX_UNREAD_BODY_BYTES,
)
from cluster2.engines.outcomes import CLIENT_CLOSED_STATUS
from tests.unit.http_exchange import Message, Receive, Send, connect, exchange, feed, serving, settle

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """Answer with the request's line, headers and body, as JSON."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    names = ("method", "path", "http_version", "scheme")
    told = {name: scope[name] for name in names} | {
        "query": scope["query_string"].decode(),
        "headers": [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]],
        "body": body.decode("latin-1"),
    }
    data = json.dumps(told).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(data))]})
    await send({"type": "http.response.body", "body": data})


async def deaf(scope: Message, receive: Receive, send: Send) -> None:
    """Answer without asking for the body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def statuses(output: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", output)]


def undated(output: bytes) -> bytes:
    return re.sub(rb"date: [^\r]*", b"date: -", output)


def upgrade(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /up HTTP/1.1", b"Host: a", b"Connection: Upgrade", b"Upgrade: h2c", *headers, b"", b""]
    return b"\r\n".join(lines) + body


CORPUS: dict[str, tuple[bytes, list[int]]] = {
    "get": (GET, [200]),
    "three in a pipeline": (GET * 3, [200, 200, 200]),
    "empty lines before": (b"\r\n\r\n" + GET, [200]),
    "length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" + GET, [200, 200]),
    "chunks": (CHUNKED + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: v\r\n\r\n" + GET, [200, 200]),
    "a trailer that ends": (CHUNKED + b"0\r\nConnection: close\r\n\r\n" + GET, [200]),
    "continue": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc", [200]),
    "close": (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + GET, [200]),
    "1.0": (b"GET / HTTP/1.0\r\n\r\n" + GET, [200]),
    "1.0 kept alive": (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + GET, [200, 200]),
    "1.1 behind 1.0 of the same length": (
        b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + GET,
        [200, 200, 200],
    ),
    "absolute": (b"GET http://b:8/x?y HTTP/1.1\r\nHost: a\r\n\r\n", [200]),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n" + GET, [200, 200]),
    "fragment": (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", [200]),
    "whitespace around a value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: \t v \t\r\n\r\n", [200]),
    "bytes above 127 in a value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: \xc3\xbc\r\n\r\n", [200]),
    "upgrade with length": (upgrade(b"abc", b"Content-Length: 3") + GET, [200, 200]),
    "upgrade with chunks": (upgrade(b"3\r\nabc\r\n0\r\n\r\n", b"Transfer-Encoding: chunked") + GET, [200, 200]),
    "upgrade with a request as body": (upgrade(GET, b"Content-Length: %d" % len(GET)) + GET, [200, 200]),
    "upgrade in a pipeline": (GET + upgrade(b"abc", b"Content-Length: 3") + GET, [200, 200, 200]),
    "upgrade of 1.0": (b"POST / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 3\r\n\r\nabc", [200]),
    "two upgrades": (upgrade(b"abc", b"Content-Length: 3", b"Upgrade: websocket") * 2, [200, 200]),
    # Refused requests. The requests before one get their responses, those behind it don't.
    "garbage behind a request": (GET + b"\0\0\0" + GET, [200, 501]),
    "method": (b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n" + GET, [501]),
    "connect": (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n" + GET, [501]),
    "connect to a path": (b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n" + GET, [501]),
    "connect to a path, with a body": (
        b"CONNECT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(GET) + GET,
        [501],
    ),
    "connect behind another request": (GET + b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n" + GET, [200, 501]),
    "two words": (b"GET /\r\n\r\n", [505]),
    "0.9": (b"GET / HTTP/0.9\r\n\r\n", [505]),
    "1.2": (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", [505]),
    "2.0": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", [505]),
    "3.0": (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", [505]),
    "another protocol": (b"GET / FOO/1.1\r\nHost: a\r\n\r\n", [400]),
    "no host": (b"GET / HTTP/1.1\r\n\r\n" + GET, [400]),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n" + GET, [400]),
    "a host that is none": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", [400]),
    "an empty host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", [200]),
    "a host of IPv6": (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", [200]),
    "asterisk to get": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", [400]),
    "obs-fold": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", [400]),
    "space before a colon": (b"GET / HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n", [400]),
    "space before a name": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", [400]),
    "no name": (b"GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n", [400]),
    "no colon": (b"GET / HTTP/1.1\r\nHost: a\r\nabc\r\n\r\n", [400]),
    "bare LF": (b"GET / HTTP/1.1\nHost: a\n\n", [400]),
    "bare LF behind a header": (b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", [400]),
    "bare CR": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", [400]),
    "NUL": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", [400]),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", [400]),
    "a list of lengths": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx", [400]),
    "a signed length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", [400]),
    "an endless length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", [400]),
    "length and chunks": (CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n0\r\n\r\n", [400]),
    "chunks of 1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [400]),
    "gzip, chunked": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", [501]),
    "gzip": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", [400]),
    "chunked, gzip": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", [400]),
    "expect": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: more\r\n\r\nx", [417]),
    "a chunk's size": (CHUNKED + b"x\r\nabc\r\n0\r\n\r\n", [400]),
    "a chunk's negative size": (CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n", [400]),
    "a chunk's size with 0x": (CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n", [400]),
    "a chunk's endless size": (CHUNKED + b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n", [400]),
    "a chunk's size with a bare LF": (CHUNKED + b"3\nabc\r\n0\r\n\r\n", [400]),
    "a chunk without its end": (CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n", [400]),
    "a chunk's extension with NUL": (CHUNKED + b"3;a\0\r\nabc\r\n0\r\n\r\n", [400]),
    "a trailer's length": (CHUNKED + b"0\r\nContent-Length: 3\r\n\r\n", [400]),
    "a target with bytes above 127": ("GET /ü HTTP/1.1\r\nHost: a\r\n\r\n".encode(), [400]),
    "a target with a space": (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", [400]),
    "a long target": (b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * MAX_TARGET_BYTES), [414]),
    "many headers": (b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n" % (b"x: y\r\n" * MAX_HEADERS), [431]),
    "a long header": (b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"x" * MAX_HEAD_BYTES), [431]),
}


@pytest.mark.parametrize("name", CORPUS)
async def test_what_is_answered(name: str) -> None:
    """Each is answered as HTTP has it, and the last response says that the connection ends where it does."""
    data, expected = CORPUS[name]
    async with serving(echo) as engine:
        connection, transport = connect(engine)
        await feed(transport, [data])
        assert statuses(bytes(transport.output)) == expected
        if expected[-1] >= 400:
            assert b"connection: close\r\n" in bytes(transport.output).rpartition(b"HTTP/1.1")[2]
            assert transport.ended or transport.closed
            assert connection.state in (ConnectionState.LINGERING, ConnectionState.CLOSED)
        assert engine.ended == Counter(expected)


@pytest.mark.parametrize("name", CORPUS)
async def test_two_halves(name: str) -> None:
    """Split in two at any place, the same bytes get the same answers, byte for byte."""
    data, _ = CORPUS[name]
    step = max(1, len(data) // 15)
    async with serving(echo) as engine:
        engine.defaults.renew(b"-")
        whole = await exchange(engine, [data])
        for place in range(step, len(data), step):
            parts = await exchange(engine, [data[:place], data[place:]])
            assert parts.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"") == whole, place


async def test_one_byte_at_a_time() -> None:
    """Split the corpus into as many pieces as there are bytes: the responses are the same."""
    async with serving(echo) as engine:
        engine.defaults.renew(b"-")
        for name, (data, _) in CORPUS.items():
            if len(data) < 300:
                whole = await exchange(engine, [data])
                parts = await exchange(engine, [data[place : place + 1] for place in range(len(data))])
                assert parts.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"") == whole, name


@given(
    names=st.lists(st.sampled_from(sorted(CORPUS)), min_size=1, max_size=4),
    cuts=st.sets(st.floats(0, 1), max_size=6),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_pieces(names: list[str], cuts: set[float]) -> None:
    """Several of them behind each other, in any pieces, get the same answers as in one."""
    data = b"".join(CORPUS[name][0] for name in names)
    places = sorted(int(cut * len(data)) for cut in cuts)
    pieces = [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True) if end > begin]
    async with serving(echo) as engine:
        engine.defaults.renew(b"-")
        whole, parts = await exchange(engine, [data]), await exchange(engine, pieces)
        continued = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert parts.replace(continued, b"") == whole.replace(continued, b"")


# The end of the client's side.


@pytest.mark.parametrize("begins", [b"", b"\r\n", GET, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"])
async def test_the_client_ends_its_side(begins: bytes) -> None:
    """Between two requests that ends the connection, without a word."""
    async with serving(echo) as engine:
        _, transport = connect(engine)
        await feed(transport, [begins] if begins else [], half_close=True)
        assert statuses(bytes(transport.output)) == [200] * (len(begins) > 2)
        assert transport.closed
        assert not engine.connections


@pytest.mark.parametrize("held", [False, True], ids=["fast", "slow"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_half_close(held: bool, version: bytes) -> None:
    """A client that ends its side after its requests gets all of the responses, whole; then the connection ends."""
    gate = asyncio.Event()
    size = 2_000_000

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if held:
            await gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(10):
            await send({"type": "http.response.body", "body": b"x" * (size // 10), "more_body": True})
        await send({"type": "http.response.body"})

    count = 1 if version == b"1.0" else 3
    async with serving(app) as engine:
        _, transport = connect(engine)
        await feed(transport, [b"GET / HTTP/%b\r\nHost: a\r\n\r\n" % version * count], half_close=True)
        gate.set()
        await settle()
        output = bytes(transport.output)
        assert statuses(output) == [200] * count
        assert output.count(b"x") == size * count
        assert output.count(b"connection: close") == (held or version == b"1.0")
        assert version == b"1.0" or output.endswith(b"\r\n0\r\n\r\n")
        assert transport.closed
        assert not transport.aborted


@pytest.mark.parametrize("app", [echo, deaf])
@pytest.mark.parametrize("data", [CHUNKED + b"3\r\nab", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab"])
async def test_the_client_ends_its_side_in_a_body(app: Any, data: bytes) -> None:
    """An app that asks for the body learns that it won't come, and the client gets 400; else the app's answer counts."""
    async with serving(app) as engine:
        _, transport = connect(engine)
        await feed(transport, [data], half_close=True)
        assert statuses(bytes(transport.output)) == [200 if app is deaf else 400]
        assert transport.closed


async def test_the_client_ends_its_side_in_a_head() -> None:
    """A client that ends within a request gets an error, after the responses to what was complete."""
    async with serving(echo) as engine:
        assert statuses(await exchange(engine, [GET + b"GET / HT"], half_close=True)) == [200, 400]


# The app's side.


def answering(*messages: Message) -> Any:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


def start(*headers: tuple[bytes, bytes], status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes = b"", more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


LENGTH_5 = (b"content-length", b"5")


@pytest.mark.parametrize(
    ("request_", "messages", "expected", "ends"),
    [
        (GET, [start(LENGTH_5), body(b"hello")], b"content-length: 5\r\n\r\nhello", False),
        (GET, [start(), body(b"hello")], b"content-length: 5\r\n\r\nhello", False),
        (GET, [start(), body()], b"content-length: 0\r\n\r\n", False),
        (
            GET,
            [start(), body(b"a", True), body(b"", True), body(b"b")],
            b"chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
            False,
        ),
        (GET, [start(), body(b"", True), body(b"b", True), body()], b"chunked\r\n\r\n1\r\nb\r\n0\r\n\r\n", False),
        (GET, [start(LENGTH_5), body(b"he", True), body(b"llo")], b"content-length: 5\r\n\r\nhello", False),
        (GET, [start(status=204), body()], b"server: cluster2\r\n\r\n", False),
        (GET, [start(LENGTH_5, status=304), body()], b"content-length: 5\r\n\r\n", False),
        (GET, [start((b"connection", b"close")), body(b"a")], b"connection: close\r\ncontent-length: 1\r\n\r\na", True),
        (b"HEAD" + GET[3:], [start(LENGTH_5), body(b"hello")], b"content-length: 5\r\n\r\n", False),
        (b"HEAD" + GET[3:], [start(), body(b"he", True), body(b"llo")], b"server: cluster2\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", [start(), body(b"a")], b"connection: close\r\ncontent-length: 1\r\n\r\na", True),
        (b"GET / HTTP/1.0\r\n\r\n", [start(), body(b"a", True), body(b"b")], b"connection: close\r\n\r\nab", True),
        (
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            [start(), body(b"a")],
            b"connection: keep-alive\r\ncontent-length: 1\r\n\r\na",
            False,
        ),
        (
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            [start(), body(b"a", True), body(b"b")],
            b"connection: close\r\n\r\nab",
            True,
        ),
    ],
)
async def test_framing(request_: bytes, messages: list[Message], expected: bytes, ends: bool) -> None:
    """A response's body is framed by its length where that is known, else by chunks, or by the end (HTTP/1.0)."""
    async with serving(answering(*messages)) as engine:
        connection, transport = connect(engine)
        await feed(transport, [request_])
        assert bytes(transport.output).endswith(expected)
        assert (transport.closed or transport.ended) == ends
        assert ends or connection.state == ConnectionState.IDLE


async def test_one_write() -> None:
    """A response that isn't large leaves in one write."""
    async with serving(deaf) as engine:
        _, transport = connect(engine)
        await feed(transport, [GET])
        assert transport.writes == 1


async def raising(scope: Message, receive: Receive, send: Send) -> None:
    raise LookupError("no such thing")


async def raising_late(scope: Message, receive: Receive, send: Send) -> None:
    await send(start(LENGTH_5))
    raise LookupError("no such thing")


@pytest.mark.parametrize(
    "app",
    [
        raising,
        raising_late,
        answering(),
        answering(start()),
        answering(body()),
        answering(start(), start()),
        answering({"type": "http.response.end"}),
        answering(start((b"x", b"a\r\nb"))),
        answering(start(LENGTH_5), body(b"abc")),
        answering(start(LENGTH_5), body(b"abcdef")),
        answering(start(LENGTH_5), body(b"abcdef", True)),
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_an_app_that_fails(app: Any, method: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """As long as nothing is out it becomes a 500, which ends the connection; it is logged and counted once."""
    async with serving(app) as engine:
        _, transport = connect(engine)
        await feed(transport, [method + GET[3:]])
        if method == b"HEAD" and b"200" in transport.output:
            return  # a body that isn't sent can't have the wrong length
        assert statuses(bytes(transport.output)) == [500]
        assert bytes(transport.output).endswith(b"Internal Server Error" if method == b"GET" else b"\r\n\r\n")
        assert transport.ended or transport.closed
        assert engine.outcomes.errors() == 1
    assert len([each for each in caplog.records if each.levelno >= logging.ERROR]) == 1


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("length", [None, b"5"])
async def test_an_app_that_fails_in_its_body(version: bytes, length: bytes | None) -> None:
    """When a part is out the client must see that the rest is missing: by length or chunks, else by a reset."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(start(*([] if length is None else [(b"content-length", length)])))
        await send(body(b"he", True))
        raise LookupError("no such thing")

    async with serving(app) as engine:
        _, transport = connect(engine)
        await feed(transport, [b"GET / HTTP/%b\r\nHost: a\r\n\r\n" % version])
        assert statuses(bytes(transport.output)) == [200]
        assert not bytes(transport.output).endswith(b"0\r\n\r\n")
        assert transport.closed
        assert transport.aborted == (version == b"1.0" and length is None)


async def test_what_is_sent_after_the_client_has_left() -> None:
    """`receive` reports the disconnect once, and again if it is called again; what the app sends is dropped and is no error."""
    told: list[str] = []
    gate = asyncio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        told.append((await receive())["type"])
        told.append((await receive())["type"])
        await send(start())
        await send(body(b"late"))
        told.append((await receive())["type"])
        gate.set()

    async with serving(app) as engine:
        connection, transport = connect(engine)
        await feed(transport, [GET])
        connection.connection_lost(ConnectionResetError())
        await gate.wait()
        await settle()
        assert told == ["http.request", "http.disconnect", "http.disconnect"]
        assert transport.output == b""
        assert (engine.outcomes.errors(), engine.ended, len(engine.running)) == (0, {CLIENT_CLOSED_STATUS: 1}, 0)
        assert engine.outcomes.disconnects == 1


# Bounds.


async def test_a_pipeline_without_end() -> None:
    """Reading pauses while many requests wait, and goes on as they are answered."""
    gate = asyncio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await gate.wait()
        await deaf(scope, receive, send)

    async with serving(app) as engine:
        connection, transport = connect(engine)
        assert transport.protocol is not None
        transport.protocol.data_received(GET * 5000)
        await settle()
        assert not transport.reading
        assert connection.pipeline is not None
        assert MAX_PIPELINED < len(connection.pipeline) < 1000
        gate.set()
        for _ in range(500):
            await settle()
            if engine.outcomes.total() == 5000:
                break
        assert engine.outcomes.total() == 5000
        assert transport.reading


async def test_a_body_that_nobody_reads() -> None:
    """Reading pauses while the app doesn't ask, and goes on when it does."""
    gate, got = asyncio.Event(), 0

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        nonlocal got
        await gate.wait()
        while True:
            message = await receive()
            got += len(message["body"])
            if not message["more_body"]:
                break
        await deaf(scope, receive, send)

    size = 1 << 20
    async with serving(app) as engine:
        connection, transport = connect(engine)
        assert transport.protocol is not None
        transport.protocol.data_received(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        transport.protocol.data_received(b"x" * (1 << 18))
        await settle()
        assert not transport.reading
        assert connection.request is not None
        assert len(connection.request.body) <= 2 * MAX_UNREAD_BODY_BYTES
        gate.set()
        await settle()
        await feed(transport, [b"x" * (1 << 18)] * 3)
        assert got == size
        assert connection.state == ConnectionState.IDLE


@pytest.mark.parametrize("size", [10_000, MAX_DISCARDED_BYTES + 100_000])
async def test_a_body_behind_its_response(size: int) -> None:
    """A body behind its response is read and dropped, so that the connection can go on; a long one ends it."""
    async with serving(deaf) as engine:
        connection, transport = connect(engine)
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
        await feed(transport, [head, b"x"])
        assert connection.state == ConnectionState.DISCARDING
        await feed(transport, [b"x" * 9999] * ((size - 1) // 9999) + [b"x" * ((size - 1) % 9999)])
        goes_on = size < MAX_DISCARDED_BYTES
        assert (connection.state == ConnectionState.IDLE) == goes_on
        await feed(transport, [GET])
        assert statuses(bytes(transport.output)) == [200] * (2 if goes_on else 1)


@pytest.mark.parametrize("piece", [b"1;%b\r\nx\r\n", b"0\r\n%b"], ids=["extensions", "trailers"])
async def test_chunks_that_bring_nothing(piece: bytes) -> None:
    """Bytes without content are limited, wherever they are in a chunked body."""
    data = piece % (b"T: v\r\n" * 50_000 if piece[:1] == b"0" else b"x" * 2 * MAX_BODYLESS_BYTES)
    async with serving(echo) as engine:
        assert statuses(
            await exchange(engine, [CHUNKED, *(data[at : at + 9000] for at in range(0, len(data), 9000))])
        ) == [400]


async def test_a_client_that_waits_to_be_told() -> None:
    """`100 Continue` comes when the app asks for the body; an answer without asking ends the connection."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    async with serving(echo) as engine:
        _, transport = connect(engine)
        await feed(transport, [head])
        assert transport.output == b"HTTP/1.1 100 Continue\r\n\r\n"
        await feed(transport, [b"abc"])
        assert statuses(bytes(transport.output)) == [100, 200]
    async with serving(deaf) as engine:
        output = await exchange(engine, [head])
        assert statuses(output) == [200]
        assert b"connection: close" in output


# Where it may move.


async def test_only_an_idle_connection_may_move() -> None:
    """At each byte of a request, of its response and of the next request's beginning: exactly where nothing is under way."""
    async with serving(echo) as engine:
        connection, transport = connect(engine)
        data = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab"
        assert connection.may_move()
        for place in range(len(data)):
            await feed(transport, [data[place : place + 1]])
            assert connection.may_move() == (place == len(data) - 1)
        await feed(transport, [b"\r\n"])
        assert connection.may_move(), "an empty line is no beginning of a request"
        await feed(transport, [b"G"])
        assert not connection.may_move()


async def test_a_freed_connection() -> None:
    """`freed` is called once a response is complete and the connection could move; also behind a late body."""
    for app, rest in ((echo, b""), (deaf, b"ab")):
        freed: list[Any] = []
        async with serving(app) as engine:
            engine.report_freed(freed.append)
            connection, transport = connect(engine)
            data = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab"
            await feed(transport, [data[: len(data) - len(rest)], *([rest] if rest else [])])
            assert freed == [connection]
            assert connection.may_move()


async def test_a_secure_connection_never_moves() -> None:
    """A connection over TLS can't move, since the state of TLS is in this process."""
    async with serving(echo) as engine:
        connection, transport = connect(engine, {"sslcontext": object()})
        await feed(transport, [GET])
        assert not connection.may_move()
        assert b'"scheme": "https"' in transport.output


async def test_wsgi_half_close_and_upgrade() -> None:
    """Both hold for WSGI apps, inline and in threads."""

    def app(environ: Message, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    for threads in (0, 2):
        async with serving(app, Interface.WSGI, threads=threads) as engine:
            _, transport = connect(engine)
            await feed(transport, [upgrade(b"abc", b"Content-Length: 3"), GET], half_close=True)
            for _ in range(1000):
                if transport.closed:
                    break
                await asyncio.sleep(0.001)
            assert statuses(bytes(transport.output)) == [200, 200]
            assert b"\r\n\r\nabcHTTP/1.1" in transport.output
            assert transport.closed


@pytest.mark.parametrize("threads", [0, 2])
async def test_wsgi_without_a_connection(threads: int) -> None:
    """A health check calls the app with messages of its own, without a request of a connection."""

    def app(environ: Message, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    told: list[Message] = []
    asked: list[Any] = []

    def wrap(call: Any, interface: Interface) -> Any:
        asked.append(call)
        return call

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        told.append(message)

    async with serving(app, Interface.WSGI, wrap=wrap, threads=threads) as engine:
        assert not engine.connections
        scope = {
            "type": "http", "method": "GET", "path": "/well", "raw_path": b"/well", "query_string": b"", "headers": [],
            "http_version": "1.1", "scheme": "http", "client": None, "server": ("a", 80),
        }  # fmt: skip
        await asked[0](scope, receive, send)
        assert [message["type"] for message in told] == ["http.response.start", "http.response.body"]
        assert told[1]["body"] == b"/well"


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("length", ["5", " 5 ", "6", "x"])
async def test_wsgi_lengths(threads: int, length: str) -> None:
    """A length that is right is sent, whatever stands around it; one that isn't becomes a 500, and the threads go on."""

    def app(environ: Message, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", length)])
        return [b"hello"]

    async with serving(app, Interface.WSGI, threads=threads) as engine:
        for _ in range(3):
            _, transport = connect(engine)
            await feed(transport, [GET])
            for _ in range(2000):
                if transport.output:
                    break
                await asyncio.sleep(0.001)
            right = length.strip() == "5"
            assert statuses(bytes(transport.output)) == [200 if right else 500]
            assert not right or b"content-length: 5\r\n" in transport.output
        assert engine.has_capacity()


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that invent targets and hosts take no memory for good; long and unusual targets aren't remembered at all."""
    monkeypatch.setattr(head, "TARGET_CACHE", {})
    monkeypatch.setattr(head, "VALID_HOSTS_CACHE", set())
    for number in range(5000):
        assert head.split_target(b"/%d?x" % number, b"GET") == ((f"/{number}", b"/%d" % number, b"x"), None)
        assert head.is_valid_host(b"host%d" % number)
    assert 0 < len(head.TARGET_CACHE) <= 1024
    assert 0 < len(head.VALID_HOSTS_CACHE) <= 1024
    for target in (b"/" + bytes(200).replace(b"\0", b"x"), b"*", b"http://a/b", b"/a#b"):
        head.split_target(target, b"OPTIONS")
        assert target not in head.TARGET_CACHE
