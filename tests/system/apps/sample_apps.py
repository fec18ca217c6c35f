"""Apps that the system tests serve. Stdlib only, so that each process starts quickly."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

not_callable = 3


async def answer(send: Send, body: bytes, status: int = 200) -> None:
    headers = [(b"content-length", b"%d" % len(body)), (b"x-worker", b"%d" % os.getpid())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def plain(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers "hello"; /scope: facts of the request; /crash: never; /held/NAME, /waiting: when the file `release` is there."""
    if scope["type"] != "http":
        return
    path = scope["path"]
    if path == "/scope":
        facts = {name: scope[name] for name in ("scheme", "client", "server", "method")}
        await answer(send, json.dumps(facts).encode())
    elif path == "/crash":
        os._exit(9)
    elif path.startswith("/held/") or path == "/waiting":
        if path != "/waiting":
            Path(f"held.{path.rpartition('/')[2]}.{os.getpid()}").touch()
        while not Path("release").exists():
            await asyncio.sleep(0.01 if path != "/waiting" else 0.5)
        await answer(send, b"released")
    else:
        await answer(send, b"hello")


async def unending(scope: Scope, receive: Receive, send: Send) -> None:
    """/held/NAME, /stream/NAME: never an end, before or after the head of the answer; notes when it is cancelled."""
    if scope["type"] != "http":
        return
    _, kind, name = scope["path"].split("/")
    name = name.strip()
    Path(f"held.{name}.{os.getpid()}").touch()
    if kind == "stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"so far", "more_body": True})
    try:
        await asyncio.Event().wait()
    finally:
        Path(f"cancelled.{name}").touch()


async def slow_targets(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers "hello"; /body when the whole body is there; /large with 1 MiB."""
    if scope["type"] != "http":
        return
    while scope["path"] == "/body" and (message := await receive())["type"] == "http.request":
        if not message["more_body"]:
            break
    await answer(send, bytes(1 << 20) if scope["path"] == "/large" else b"hello")


async def other(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers "other"."""
    if scope["type"] == "http":
        await answer(send, b"other")


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The same as `plain`, for WSGI."""
    path = environ["PATH_INFO"]
    body = b"hello"
    if path.startswith("/held/"):
        Path(f"held.{path.rpartition('/')[2]}.{os.getpid()}").touch()
        while not Path("release").exists():
            time.sleep(0.01)
        body = b"released"
    start_response("200 OK", [("Content-Length", str(len(body))), ("X-Worker", str(os.getpid()))])
    return [body]


async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echoes lines, each with the worker's pid before it; "hold NAME" is answered when the file `release` is there."""
    while line := await reader.readline():
        if line.startswith(b"hold "):
            Path(f"held.{line[5:].decode().strip()}.{os.getpid()}").touch()
            while not Path("release").exists():
                await asyncio.sleep(0.01)
        writer.write(b"%d " % os.getpid() + line)
        await writer.drain()
    writer.close()


async def with_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """Notes its startup and its shutdown in files."""
    if scope["type"] == "http":
        await answer(send, b"hello")
    elif scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            Path(f"{phase}.{os.getpid()}").touch()
            await send({"type": f"lifespan.{phase}.complete"})


async def failing_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """Can't start: its database is away."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "the database is away"})


async def never_starts(scope: Scope, receive: Receive, send: Send) -> None:
    """Its lifespan never answers."""
    if scope["type"] == "lifespan":
        await asyncio.Event().wait()


async def socket_echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Echoes websocket messages."""
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


def factory() -> Callable[..., Awaitable[None]]:
    """Makes an app."""
    return plain


async def async_factory() -> Callable[..., Awaitable[None]]:
    """Would have to be awaited."""
    return plain


def broken_factory() -> Callable[..., Awaitable[None]]:
    """Raises."""
    raise LookupError("no such tenant")
