"""Websockets on the engine `http`: from a request with `Upgrade: websocket` to the end of the worker."""

from __future__ import annotations

import asyncio
import base64
import contextvars
from typing import Any

import pytest

from cluster2.engines.base import Interface
from cluster2.engines.http import websocket
from cluster2.engines.http.limits import MAX_HEADERS
from tests.unit.engines.http.test_engine import Served
from tests.unit.engines.http.test_websocket_session import frame
from tests.unit.http_exchange import connect, exchange, feed, serving, settle
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio
KEY = base64.b64encode(bytes(16)).decode()
FIELDS = {
    "Host": "test",
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY,
}
GET = b"GET /after HTTP/1.1\r\nHost: test\r\n\r\n"


def handshake(*more: str, line: str = "GET /ws?a=b HTTP/1.1", **changed: str | None) -> bytes:
    """Return the head of a handshake; keywords replace fields, or leave them out."""
    fields = FIELDS | {name.replace("_", "-"): value for name, value in changed.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([line, *lines, *more, "", ""]).encode()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Echoes messages. Responds to requests that aren't websockets."""
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"http"})
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (handshake(line="POST /ws HTTP/1.1"), 405),
        (handshake(line="POST /ws HTTP/1.1", Content_Length="5") + b"hello", 405),
        (handshake(Content_Length="5") + b"hello", 400),
        (handshake(Transfer_Encoding="chunked") + b"5\r\nhello\r\n0\r\n\r\n", 400),
        (handshake(Sec_WebSocket_Version="8"), 426),
        (handshake(Sec_WebSocket_Version=None), 426),
        (handshake(Sec_WebSocket_Key=None), 400),
        (handshake(Sec_WebSocket_Key="x"), 400),
        (handshake(*["X: y"] * (MAX_HEADERS + 1)), 431),
        (handshake("X: " + "y" * 200_000), 431),
        (handshake("Sec-WebSocket-Protocol: " + "y" * 9000), 431),
        (handshake(Host=None), 400),
        (handshake("Host: other"), 400),
    ],
    ids=range(13),
)
async def test_refused_handshakes(request_: bytes, status: int) -> None:
    """A handshake that isn't valid is answered at once, counted, and ends the connection, however its bytes are split."""
    async with serving(echo) as engine:
        whole = await exchange(engine, [request_ + GET])
        assert whole.startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nconnection: close\r\n" in whole
        assert (b"\r\nsec-websocket-version: 13\r\n" in whole) == (status == 426)
        assert whole.count(b"HTTP/1.1 ") == 1
        if len(request_) < 1000:
            for cut in range(1, len(request_)):
                assert await exchange(engine, [request_[:cut], request_[cut:] + GET]) == whole
        assert set(engine.ended) == {status}
        assert not engine.websockets


@pytest.mark.parametrize("behind", [b"", GET, GET + b"POST /b HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\nx"])
async def test_a_websocket_however_split(behind: bytes) -> None:
    """A handshake, alone or after other requests, with frames at once behind it: the same for all splits."""
    data = behind + handshake() + frame(1, b"hello") + frame(2, b"x" * 300) + frame(8, b"\x03\xe8")
    async with serving(echo) as engine:
        outputs = set()
        for cut in range(len(data) + 1):
            _, transport = connect(engine)
            await feed(transport, [data[:cut], data[cut:]])
            outputs.add(bytes(transport.output).partition(b"HTTP/1.1 101 ")[0] + b"|" + transport.output[-4:])
            await settle()
            assert transport.ended or transport.closed
            transport.close()
            await settle()
    assert len(outputs) == 1
    before, _, last = outputs.pop().partition(b"|")
    assert before.count(b"\r\n\r\nhttp") == behind.count(b"HTTP/1.1")
    assert last == b"\x88\x02\x03\xe8"


async def test_behind_a_request_that_is_served() -> None:
    """A handshake behind requests under way waits for them, and begins with context variables of its own."""
    gate, variable = asyncio.Event(), contextvars.ContextVar("variable", default="none")
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(variable.get())
        if scope["type"] == "http":
            variable.set("of a request")
            await gate.wait()
        await echo(scope, receive, send)

    async with serving(app) as engine:
        _, transport = connect(engine)
        await feed(transport, [GET + handshake() + frame(1, b"hello")])
        assert not transport.output
        gate.set()
        await settle()
        assert transport.output.endswith(b"\r\n\r\n\x81\x05hello")
        assert seen == ["none", "none"]
        _, transport = connect(engine)
        await feed(transport, [GET + handshake(Sec_WebSocket_Key=None)])
        assert transport.output.count(b"HTTP/1.1 200 ") == transport.output.count(b"HTTP/1.1 400 ") == 1
        assert transport.ended


async def test_frames_in_one_large_read() -> None:
    """Frames that come with the handshake, in one read that is parsed in slices, all reach the app."""
    data = handshake() + frame(2, bytes(range(256)) * 40) * 20 + frame(8, b"\x03\xe8")
    got: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            got.append(message["bytes"])

    async with serving(app) as engine:
        _, transport = connect(engine)
        await feed(transport, [data])
        await until(lambda: transport.ended)
        transport.close()
        await settle()
        assert not engine.websockets
    assert got == [bytes(range(256)) * 40] * 20


async def test_the_scope() -> None:
    """The scope has the request's parts. A trusted proxy names client and scheme, and root_path stands before the path."""
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await send({"type": "websocket.close"})

    async with serving(app, forwarded_allow_ips="*", root_path="/app") as engine:
        engine.state["key"] = "value"
        data = handshake("X-Forwarded-For: 192.0.2.7", "X-Forwarded-Proto: https", "Sec-WebSocket-Protocol: a, b")
        assert (await exchange(engine, [data])).startswith(b"HTTP/1.1 403 ")
    (scope,) = scopes
    assert scope["type"] == "websocket"
    assert (scope["client"], scope["scheme"]) == (("192.0.2.7", 0), "wss")
    assert (scope["path"], scope["root_path"], scope["query_string"]) == ("/app/ws", "/app", b"a=b")
    assert (scope["subprotocols"], scope["state"]) == (["a", "b"], {"key": "value"})
    assert (b"sec-websocket-version", b"13") in scope["headers"]
    assert "method" not in scope


async def test_wsgi() -> None:
    """A WSGI app has no websockets: the handshake is a request like others."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "4")])
        return [b"wsgi"]

    async with serving(app, Interface.WSGI, threads=0) as engine:
        output = await exchange(engine, [handshake() + GET])
        assert output.count(b"\r\n\r\nwsgi") == 2


async def test_counts() -> None:
    """A websocket is a connection and a request under way, and one that was answered."""
    async with serving(echo) as engine:
        before = engine.stats()
        _, transport = connect(engine)
        await feed(transport, [handshake()])
        census = engine.stats()
        assert (census.connections, census.in_flight) == (1, 1)
        assert not engine.idle()
        await feed(transport, [frame(8, b"\x03\xe8")])
        transport.close()
        await settle()
        after = engine.stats()
        assert before.requests is not None
        assert (after.connections, after.in_flight, after.requests) == (0, 0, before.requests + 1)
        assert engine.idle()


async def test_drain() -> None:
    """At drain open websockets are closed once with 1012; the client's answer ends them."""
    async with serving(echo) as engine:
        _, transport = connect(engine)
        await feed(transport, [handshake()])
        engine.drain(moving=True)
        for _ in range(3):
            engine.close_idle(0)
        assert bytes(transport.output).endswith(b"\r\n\r\n\x88\x02\x03\xf4")
        await feed(transport, [frame(8, b"\x03\xf4")])
        assert transport.ended
        transport.close()
        await settle()
        assert engine.idle()


async def test_drain_in_a_handshake() -> None:
    """A handshake that the app hasn't answered at drain is answered, and closed with 1012."""
    gate = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await gate.wait()
        await echo(scope, receive, send)

    async with serving(app) as engine:
        _, transport = connect(engine)
        await feed(transport, [handshake()])
        engine.drain(moving=True)
        engine.close_idle(0)
        assert not transport.output
        gate.set()
        await settle()
        assert bytes(transport.output).startswith(b"HTTP/1.1 101 ")
        assert bytes(transport.output).endswith(b"\r\n\r\n\x88\x02\x03\xf4")


async def test_cut() -> None:
    """When the time is over websockets are reset, their tasks cancelled, and their paths returned."""
    ended: list[type[BaseException]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            ended.append(type(error))
            raise

    async with serving(app) as engine:
        _, transport = connect(engine)
        await feed(transport, [handshake()])
        assert await asyncio.wait_for(engine.abort(1.0), PATIENCE) == ["/ws"]
        assert transport.aborted
        await settle()
        assert engine.idle()
    assert ended == [asyncio.CancelledError]


async def test_pings_by_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine looks after its websockets once a second: a silent client is pinged, and given up."""
    monkeypatch.setattr(websocket, "PING_INTERVAL_S", 0.0)
    monkeypatch.setattr(websocket, "PING_TIMEOUT_S", 0.0)
    async with serving(echo) as engine:
        _, transport = connect(engine)
        await feed(transport, [handshake()])
        for _ in range(3):
            engine.on_second()
        assert b"\x89\x00" in transport.output
        assert b"\x03\xf3no answer to a ping" in transport.output


async def test_a_refusal_reaches_a_client_that_sends_on() -> None:
    """A client that sends a long body with its handshake gets the refusal, not a reset."""
    async with Served(echo).running() as served, served.connected() as client:
        body = 2 << 20
        client.writer.write(handshake(Content_Length=str(body)) + bytes(body))
        assert "400 bad request" in await client.head()
