"""The bare applications under test: the same paths as ASGI, as RSGI and as WSGI, without a framework.

| path | response |
|---|---|
| `/` | `hello`, at once |
| `/slow` | `hello`, after holding its worker for 30 ms: asleep, or computing if `BENCH_SLOW=compute` |
| `/stuck` | `hello`, after computing for a second |
| `/pid` | the pid of the worker that answers |
| `/megabyte` | 1 MiB |
| `/chunks` (ASGI) | 64 KiB in pieces of 1 KiB |
| `/upload` (ASGI) | the number of bytes received |

Websockets echo each message.

They import only the standard library, so that they add nothing to the cost of a server. `BENCH_IMPORT_SECONDS` is the time that
the import takes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

HOLD = 0.030
"""Seconds for which a slow request holds its worker."""
KIBIBYTE, MEBIBYTE = bytes(1 << 10), bytes(1 << 20)
STUCK = 1.0
"""Seconds for which `/stuck` computes."""

Message = MutableMapping[str, Any]


def compute(seconds: float = HOLD) -> None:
    """Use this much CPU time of the thread, however long the machine takes to provide it."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


time.sleep(float(os.environ.get("BENCH_IMPORT_SECONDS", "0")))

_COMPUTES = os.environ.get("BENCH_SLOW") == "compute"


def hold() -> None:
    """Hold the worker."""
    if _COMPUTES:
        compute()
    else:
        time.sleep(HOLD)


def answer(path: str) -> bytes:
    """Return the body for a path."""
    if path == "/slow":
        hold()
    if path == "/stuck":
        compute(STUCK)
    if path == "/megabyte":
        return MEBIBYTE
    return str(os.getpid()).encode() if path == "/pid" else b"hello"


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Serve ASGI. The application has no lifespan: it raises, and servers go on without one."""
    if scope["type"] == "websocket":
        await _echo(receive, send)
        return
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    path = scope["path"]
    if path == "/chunks":
        await _stream(send)
        return
    body = await _uploaded(receive) if path == "/upload" else answer(path)
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(send: Callable[[Message], Awaitable[None]]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for _ in range(64):
        await send({"type": "http.response.body", "body": KIBIBYTE, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _uploaded(receive: Callable[[], Awaitable[Message]]) -> bytes:
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    return str(size).encode()


async def _echo(receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


def wsgi(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], Any]) -> Iterable[bytes]:
    """Serve WSGI."""
    body = answer(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def rsgi(scope: Any, protocol: Any) -> None:
    """Serve RSGI."""
    body = answer(scope.path)
    protocol.response_bytes(200, [("content-type", "text/plain"), ("content-length", str(len(body)))], body)
