"""Apps for the tests of granian."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

from starlette.requests import Request

SLOW = 0.1
"""Seconds that a handler takes on purpose."""


def mark(name: str) -> None:
    """Create a file which shows that this request's handler has begun."""
    Path(f"held.{name}.{os.getpid()}").touch()


async def released() -> None:
    """Wait until the file `released` exists."""
    while not Path("released").exists():
        await asyncio.sleep(0.02)


class Rsgi:
    """An RSGI app with hooks. `/raise` raises, `/spin/NAME` spins, `/forever/NAME` waits, `/big` is 20 MB.

    `/later/NAME` waits until it is released. `/slow` takes `SLOW` seconds.

    `/upload/NAME` reads the body first, in one piece, `/pieces/NAME` piece by piece. Other paths say hello.
    """

    def __rsgi_init__(self, loop: Any) -> None:
        async def begin() -> str:
            await asyncio.sleep(0)
            return "begun"

        Path(f"{loop.run_until_complete(begin())}.{os.getpid()}").touch()

    def __rsgi_del__(self, loop: Any) -> None:
        Path(f"ended.{os.getpid()}").touch()

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        if scope.proto == "ws":
            transport = await protocol.accept()
            while (message := await transport.receive()).data is not None:
                await transport.send_str(str(message.data))
            return
        _, kind, name = [*scope.path.split("/"), "", ""][:3]
        if name:
            mark(name)
        if kind == "raise":
            raise RuntimeError("broken on purpose")
        if kind == "spin":
            while True:
                pass
        if kind == "forever":
            await asyncio.Event().wait()
        if kind == "upload":
            await protocol()
        if kind == "pieces":
            async for _ in protocol:
                pass
        if kind in ("later", "upload", "pieces"):
            await released()
            protocol.response_str(200, [], "released")
            return
        if kind == "slow":
            await asyncio.sleep(SLOW)
        if kind == "big":
            protocol.response_bytes(200, [], bytes(20_000_000))
            return
        protocol.response_str(200, [("x-worker", str(os.getpid()))], "hello")


rsgi = Rsgi()


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """Wait for `/later/NAME`, `/upload` and `/pieces`, which read the body first, send 20 MB for `/big`, or say hello."""
    if scope["type"] != "http":
        return
    _, kind, name = [*scope["path"].split("/"), "", ""][:3]
    body = b"hello"
    if kind in ("later", "upload", "pieces"):
        mark(name)
        if kind == "upload":
            while (await receive()).get("more_body"):
                pass
        if kind == "pieces":  # as frameworks do it
            async for _ in Request(scope, receive).stream():
                pass
        await released()
        body = b"released"
    if kind == "slow":
        await asyncio.sleep(SLOW)
    if kind == "big":
        body = bytes(20_000_000)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def broken_start(scope: Any, receive: Any, send: Any) -> None:
    """Fail at startup."""
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "the database is away"})


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Never answer `/forever/NAME`, send 20 MB for `/big` and the environ for `/environ`, or say hello."""
    _, kind, name = [*environ["PATH_INFO"].split("/"), "", ""][:3]
    if kind == "forever":
        mark(name)
        time.sleep(1000)
    if kind == "slow":
        time.sleep(SLOW)
    if kind == "environ":
        told = json.dumps({key: value for key, value in environ.items() if isinstance(value, str)}).encode()
        start_response("200 OK", [("Content-Length", str(len(told)))])
        return [told]
    if kind == "big":
        start_response("200 OK", [])
        return [bytes(20_000_000)]
    start_response("200 OK", [("Content-Length", "5"), ("X-Worker", str(os.getpid()))])
    return [b"hello"]
