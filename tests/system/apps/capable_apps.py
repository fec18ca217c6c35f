"""One app for each interface, on which each thing that an engine may be able to do can be seen from outside."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cluster2

started: list[str] = []
meeting = threading.Barrier(2)


def body_of(path: str, client: str, mounted: str) -> tuple[int, bytes]:
    """The answer to a path: `/health`, `/client`, `/lifespan`, or the worker's pid."""
    if path == "/health":
        return (500, b"sick") if Path("sick").exists() else (200, b"well")
    if path == "/client":
        return 200, f"{client} {mounted}".encode()
    if path == "/lifespan":
        return 200, b" ".join(each.encode() for each in started)
    return 200, b"%d" % os.getpid()


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """For ASGI, with websockets and a lifespan."""
    if scope["type"] == "lifespan":
        await receive()
        started.append("started")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": (await receive())["text"]})
    else:
        path = scope["path"].removeprefix(scope["root_path"])
        if path == "/hang":
            await asyncio.Event().wait()
        status, body = body_of(path, scope["client"][0], scope["root_path"])
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """For WSGI; `/meet` is answered when two requests are in it at the same time."""
    path = environ["PATH_INFO"]
    if path == "/hang":
        time.sleep(1000)
    if path == "/meet":
        meeting.wait(60)
    status, body = body_of(path, environ["REMOTE_ADDR"], environ["SCRIPT_NAME"])
    start_response(f"{status} Status", [("Content-Length", str(len(body))), ("Content-Type", "text/plain")])
    return [body]


async def rsgi(scope: Any, protocol: Any) -> None:
    """For RSGI, with websockets."""
    if scope.proto == "ws":
        socket = await protocol.accept()
        await socket.send_str((await socket.receive()).data)
        return
    if scope.path == "/hang":
        await asyncio.Event().wait()
    status, body = body_of(scope.path, scope.client, "")
    protocol.response_bytes(status, [("content-type", "text/plain")], body)


async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each line with the worker's pid."""
    while await cluster2.tcp.boundary(reader, writer):
        if not await reader.readline():
            break
        writer.write(b"%d\n" % os.getpid())
        await writer.drain()
