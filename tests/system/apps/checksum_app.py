"""The app of the randomized requests, for ASGI and WSGI: its response carries the request's id and a checksum of what came.

`/KIND/ID/SIZE/SLEEP/BLOCK`: SIZE bytes of response body, SLEEP ms of waiting and BLOCK ms of holding the loop. The kinds:

- *echo*: the body has a length; *stream*: it comes in parts, without one.
- *unread*: the request's body isn't read.
- *duplex*: each part of the request's body is sent back as soon as it comes, then the checksum.
- *empty*: status 204.

`x-before` tells whether the context variables of another request are seen.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

PART = 65_536
"""Bytes that the WSGI app reads at a time."""

_current: ContextVar[str] = ContextVar("current", default="none")


def _before(number: str) -> str:
    """What a context variable was set to before this request set it: it must be nothing."""
    before = _current.get()
    _current.set(number)
    return before


def expected(kind: str, number: str, method: str, mark: str, body: bytes, size: int) -> bytes:
    """The response's body; a HEAD gets its length only."""
    if kind == "empty":
        return b""
    if kind == "unread":
        body = b""
    unit = f"{number}:{method}:{mark}:{len(body)}:{hashlib.sha256(body).hexdigest()};".encode()
    return body + unit if kind == "duplex" else unit * max(1, -(-size // len(unit)))


def _parts(whole: bytes) -> Iterator[bytes]:
    part = max(1, len(whole) // 5)
    for begin in range(0, len(whole), part):
        yield whole[begin : begin + part]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """ASGI."""
    if scope["type"] != "http":
        return
    _, kind, number, size, sleep, block = scope["path"].split("/")
    headers = [(b"x-id", number.encode()), (b"x-worker", b"%d" % os.getpid()), (b"x-before", _before(number).encode())]
    mark = next((value.decode() for name, value in scope["headers"] if name == b"x-mark"), "")
    body = b""
    if kind == "duplex":
        await send({"type": "http.response.start", "status": 200, "headers": headers})
    while kind != "unread":
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if kind == "duplex":
            await send({"type": "http.response.body", "body": message["body"], "more_body": True})
        if not message["more_body"]:
            break
    await asyncio.sleep(float(sleep) / 1000)
    time.sleep(float(block) / 1000)
    whole = expected(kind, number, scope["method"], mark, body, int(size))
    if kind == "duplex":
        await send({"type": "http.response.body", "body": whole[len(body) :]})
    elif kind == "stream":
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for part in _parts(whole):
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(0.001)
        await send({"type": "http.response.body"})
    else:
        status = 204 if kind == "empty" else 200
        headers += [(b"content-length", b"%d" % len(whole))] if whole else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": whole})


def wsgi_app(environ: Any, start_response: Any) -> Any:
    """WSGI."""
    _, kind, number, size, sleep, block = environ["PATH_INFO"].split("/")
    headers = [("x-id", number), ("x-worker", str(os.getpid())), ("x-before", _before(number))]
    method, mark = environ["REQUEST_METHOD"], environ.get("HTTP_X_MARK", "")
    if kind == "duplex":
        start_response("200 OK", headers)
        return _duplex(environ["wsgi.input"], number, method, mark)
    body = environ["wsgi.input"].read() if kind != "unread" else b""
    time.sleep((float(sleep) + float(block)) / 1000)
    whole = expected(kind, number, method, mark, body, int(size))
    if kind == "stream":
        start_response("200 OK", headers)
        return _parts(whole)
    start_response("204 No Content" if kind == "empty" else "200 OK", headers)
    return [whole]


def _duplex(file: Any, number: str, method: str, mark: str) -> Iterator[bytes]:
    body = b""
    while part := file.read(PART):
        body += part
        yield part
    yield expected("duplex", number, method, mark, body, 0)[len(body) :]
