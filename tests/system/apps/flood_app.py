"""Apps that do wrong with each request, in as many ways as there are lines about it in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from cluster2 import Cluster, worker


def setup(cluster: Cluster) -> None:
    """Handlers in the master that raise."""

    @cluster.on("noise")
    def noise(event: Any) -> None:
        raise RuntimeError("a handler fails")

    @cluster.on_delegate("fails")
    def fails(params: Any) -> None:
        raise RuntimeError("delegated work fails")


def talk() -> None:
    """Have the master log something."""
    worker.emit("noise", {})
    worker.delegate_nowait("unknown", {})
    worker.delegate_nowait("fails", {})
    worker.register_status("read-only", view=lambda: 1)


def body_of(path: str) -> bytes:
    if path == "/talk":
        talk()
    if path == "/raise":
        raise RuntimeError("the app fails")
    return b"ok"


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """For ASGI: /raise, /nothing (no answer), /short (a body that is shorter than it says), /orphan (a task that fails)."""
    if scope["type"] != "http":
        raise RuntimeError(f"the app fails on {scope['type']}")
    path = scope["path"]
    body = body_of(path)
    if path == "/nothing":
        return
    if path == "/orphan":
        asyncio.get_running_loop().create_task(_orphan())
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"o" if path == "/short" else body})


async def _orphan() -> None:
    raise RuntimeError("a task that nobody waits for fails")


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """For WSGI: /raise, /nothing (no start_response), /short."""
    path = environ["PATH_INFO"]
    body = body_of(path)
    if path == "/nothing":
        return []
    start_response("200 OK", [("Content-Length", "2")])
    return [b"o" if path == "/short" else body]


async def rsgi(scope: Any, protocol: Any) -> None:
    """For RSGI: /raise, /nothing."""
    body = body_of(scope.path)
    if scope.path != "/nothing":
        protocol.response_bytes(200, [], body)


async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Raises."""
    await reader.readline()
    raise RuntimeError("the handler fails")


class protocol(asyncio.Protocol):
    """Raises at what comes."""

    def data_received(self, data: bytes) -> None:
        """Fail."""
        raise RuntimeError("the protocol fails")
