"""Apps with clients that misbehave while their worker drains. Each notes that it was stopped properly."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from cluster2 import worker

LARGE = 20_000_000
"""Bytes of a body that no kernel takes at once."""
PIECE = 1 << 16


@worker.on_stop
def stopped() -> None:
    """Leave a file that shows that the hook has run."""
    Path(f"stopped.hook.{os.getpid()}").touch()


def hold(path: str) -> None:
    """Show that the handler of this path runs."""
    Path(f"held.{path.rpartition('/')[2]}.{os.getpid()}").touch()


async def released() -> None:
    """Wait for the file that lets held requests go on."""
    while not Path("release").exists():
        await asyncio.sleep(0.01)


async def asgi(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """`/held/NAME` waits for the file, `/body/NAME` for the body, `/large` is large; all else says hello.

    A websocket is accepted; at `/flood` it is sent messages without an end, elsewhere nothing.
    """
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        Path(f"stopped.lifespan.{os.getpid()}").touch()
        await send({"type": "lifespan.shutdown.complete"})
        return
    path = scope["path"]
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        hold(path)
        while path.startswith("/flood"):
            await send({"type": "websocket.send", "bytes": bytes(PIECE)})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    if path.startswith("/held/"):
        hold(path)
        await released()
    if path.startswith("/body/"):
        hold(path)
        while (await receive()).get("more_body"):
            pass
    body = bytes(LARGE) if path == "/large" else b"hello"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Return the same for WSGI, without websockets."""
    path = environ["PATH_INFO"]
    if path.startswith("/held/"):
        hold(path)
        while not Path("release").exists():
            time.sleep(0.01)
    if path.startswith("/body/"):
        hold(path)
        environ["wsgi.input"].read()
    body = bytes(LARGE) if path == "/large" else b"hello"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


class Rsgi:
    """The same for RSGI."""

    def __rsgi_del__(self, loop: Any) -> None:
        Path(f"stopped.lifespan.{os.getpid()}").touch()

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        path = scope.path
        if scope.proto == "ws":
            transport = await protocol.accept()
            hold(path)
            while path.startswith("/flood"):
                await transport.send_bytes(bytes(PIECE))
            await transport.receive()
            return
        if path.startswith("/held/"):
            hold(path)
            await released()
        if path.startswith("/body/"):
            hold(path)
            await protocol()
        protocol.response_bytes(200, [], bytes(LARGE) if path == "/large" else b"hello")


rsgi = Rsgi()


async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each line with `hello`; `/held/NAME` waits for the file, `/large` is answered without an end."""
    while line := await reader.readline():
        path = line.decode(errors="replace").strip()
        if path.startswith("/held/"):
            hold(path)
            await released()
        while path == "/large":
            writer.write(bytes(PIECE))
            await writer.drain()
        writer.write(b"hello\n")
        await writer.drain()


class Protocol(asyncio.Protocol):
    """Answers each line with `hello`; `/held/NAME` when the file is there. Its `drain` raises after the line `/broken`."""

    transport: asyncio.Transport
    task: asyncio.Task[None] | None = None
    broken = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        path = data.decode(errors="replace").strip()
        self.broken = path == "/broken"
        if path.startswith("/held/"):
            hold(path)
            self.task = asyncio.get_running_loop().create_task(self.answer())
        else:
            self.transport.write(b"hello\n")

    async def answer(self) -> None:
        await released()
        self.transport.write(b"hello\n")
        self.transport.close()

    def drain(self) -> None:
        if self.broken:
            raise RuntimeError("this connection cannot drain")
        if self.task is None:
            self.transport.close()
