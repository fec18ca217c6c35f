"""Apps that end requests in all ways, and configure their logging as many apps do: which disables the loggers that there are."""

from __future__ import annotations

import contextlib
import logging.config
from collections.abc import Callable, Iterator
from typing import Any

logging.config.dictConfig({"version": 1, "root": {"level": "INFO"}})

STATUSES = {"/ok": 200, "/moved": 302, "/missing": 404, "/busy": 503}
PART = b"x" * 1000


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """The path says how a request ends."""
    if scope["type"] == "lifespan":
        raise NotImplementedError
    path = scope["path"]
    if scope["type"] == "websocket":
        await receive()
        if path == "/denied":
            await send({"type": "websocket.close"})
            return
        await send({"type": "websocket.accept"})
        if path == "/raise":
            raise LookupError("no such thing")
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        if not message.get("more_body"):
            break
    if path == "/raise":
        raise LookupError("no such thing")
    await send({"type": "http.response.start", "status": STATUSES.get(path, 200), "headers": []})
    if path in ("/broken", "/endless"):
        await send({"type": "http.response.body", "body": PART, "more_body": True})
        while path == "/endless" and (await receive())["type"] != "http.disconnect":
            pass
        if path == "/broken":
            raise LookupError("no such thing")
    await send({"type": "http.response.body"})
    if path == "/late":
        raise LookupError("no such thing")


class Late:
    """A body that fails when it is closed."""

    def __iter__(self) -> Iterator[bytes]:
        yield PART

    def close(self) -> None:
        raise LookupError("no such thing")


def wsgi(environ: Any, start_response: Callable[..., Any]) -> Any:
    """The same."""
    path = environ["PATH_INFO"]
    environ["wsgi.input"].read()
    if path == "/raise":
        raise LookupError("no such thing")
    head = [("Content-Length", str(len(PART)))] if path == "/late" else []
    start_response(f"{STATUSES.get(path, 200)} Said", head)
    if path == "/late":
        return Late()
    return _parts(path) if path in ("/broken", "/endless") else [PART]


def _parts(path: str) -> Iterator[bytes]:
    yield PART
    if path == "/broken":
        raise LookupError("no such thing")
    while True:
        yield PART


async def rsgi(scope: Any, protocol: Any) -> None:
    """The same."""
    path = scope.path
    if scope.proto == "ws":
        if path == "/denied":
            protocol.close()
            return
        transport = await protocol.accept()
        if path == "/raise":
            raise LookupError("no such thing")
        with contextlib.suppress(Exception):  # granian's, when the client has closed
            await transport.receive()
        return
    if path == "/raise":
        raise LookupError("no such thing")
    if path == "/broken":
        await protocol.response_stream(200, []).send_bytes(PART)
        raise LookupError("no such thing")
    match path:
        case "/ok":
            protocol.response_empty()
        case "/moved":
            protocol.response_str(body="elsewhere", headers=[("location", "/ok")], status=302)
        case _:
            protocol.response_bytes(STATUSES.get(path, 200), [], PART)
    if path == "/late":
        raise LookupError("no such thing")


async def tcp(reader: Any, writer: Any) -> None:
    """Raise if the client says so."""
    if await reader.readline() == b"raise\n":
        raise LookupError("no such thing")
