"""Clients of HTTP/1.0 get no chunks: the end of the connection is the end of their body, and a body that breaks off is reset."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from cluster2.engines.base import Interface
from tests.unit.test_engine_uvicorn import Served

pytestmark = pytest.mark.anyio
Message = dict[str, Any]
PLAIN = [(b"content-type", b"text/plain")]
CHUNKED = [*PLAIN, (b"Transfer-Encoding", b"chunked")]
LENGTH = [*PLAIN, (b"Content-Length", b"10")]


def answering(headers: Iterable[tuple[bytes, bytes]], *parts: bytes, breaks: bool = False) -> Callable[..., Any]:
    """An app that answers so; its body may break off."""

    async def app(scope: Message, receive: Callable[[], Any], send: Callable[[Message], Any]) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": iter(headers)})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if breaks:
            raise RuntimeError("broken on purpose")
        await send({"type": "http.response.body"})

    return app


async def asked(app: Any, request: bytes, interface: Interface = Interface.ASGI) -> tuple[bytes, bytes]:
    """Head and body of what comes until the connection ends. Raises ConnectionResetError."""
    async with Served(app, interface).running() as served, served.connected() as client:
        client.writer.write(request + b"\r\nHost: test\r\n\r\n")
        head, _, body = (await client.reader.read()).partition(b"\r\n\r\n")
        return head.lower(), body


@pytest.mark.parametrize("headers", [PLAIN, CHUNKED], ids=["no framing", "chunks"])
async def test_no_length(headers: list[tuple[bytes, bytes]]) -> None:
    """A body whose length nobody knows comes as it is, to the end of the connection."""
    head, body = await asked(answering(headers, b"hello", b" ", b"world"), b"GET / HTTP/1.0")
    assert body == b"hello world"
    assert b"\r\nconnection: close" in head
    assert b"transfer-encoding" not in head
    assert b"content-length" not in head


async def test_a_length() -> None:
    """One whose length is told is held to it."""
    head, body = await asked(answering(LENGTH, b"hello", b"world"), b"GET / HTTP/1.0")
    assert body == b"helloworld"
    assert b"\r\ncontent-length: 10" in head


async def test_head() -> None:
    """A HEAD has no body, and no length either."""
    head, body = await asked(answering(PLAIN, b"hello"), b"HEAD / HTTP/1.0")
    assert body == b""
    assert b"transfer-encoding" not in head


async def test_newer_clients_get_chunks() -> None:
    """One of HTTP/1.1 that wants the connection closed gets chunks as ever."""
    head, body = await asked(answering(PLAIN, b"hello"), b"GET / HTTP/1.1\r\nConnection: close")
    assert body == b"5\r\nhello\r\n0\r\n\r\n"
    assert b"\r\ntransfer-encoding: chunked" in head


async def test_a_body_that_breaks_off() -> None:
    """Its connection is reset, since it would look whole otherwise; one with a length is seen to be short."""
    with pytest.raises(ConnectionResetError):
        await asked(answering(PLAIN, b"hello", breaks=True), b"GET / HTTP/1.0")
    _, body = await asked(answering(LENGTH, b"hello", breaks=True), b"GET / HTTP/1.0")
    assert body == b"hello"


async def test_an_app_that_fails_at_once() -> None:
    """An error before the head is a 500 like any other."""
    head, body = await asked(lambda scope, receive, send: 1 / 0, b"GET / HTTP/1.0")
    assert head.startswith(b"http/1.1 500 ")
    assert body == b"Internal Server Error"


async def test_wsgi() -> None:
    """A WSGI app's as well."""

    def app(environ: Message, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", PLAIN_TEXT)
        yield b"hello "
        yield environ["SERVER_PROTOCOL"].encode()

    head, body = await asked(app, b"GET / HTTP/1.0", Interface.WSGI)
    assert body == b"hello HTTP/1.0"
    assert b"transfer-encoding" not in head


PLAIN_TEXT = [("Content-Type", "text/plain")]
