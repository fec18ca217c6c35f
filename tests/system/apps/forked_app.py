"""An app that forks in its calls, and whose child returns from the call as if it were the worker.

The path says how: `/return` before the response, `/raise` by an exception, `/stream` between two parts of the body. The parent
waits for its child, and responds with the child's pid and how the child has ended.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import anyio.to_thread

CHILD_TIMEOUT_S = 5.0
"""Seconds that the parent gives its child to end."""


class Returned(Exception):
    """The child leaves the call by this."""


def _fate(child: int) -> bytes:
    """Return a line with the child's pid, and its exit code, or the signal that has ended it, or that it still runs."""
    deadline = time.monotonic() + CHILD_TIMEOUT_S
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return b"%d %d\n" % (child, os.waitstatus_to_exitcode(status))
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return b"%d runs\n" % child


def _forked(path: str) -> bytes:
    """Fork; return the child's fate in the parent, and another text in the child."""
    child = os.fork()
    if child:
        return _fate(child)
    if path == "/raise":
        raise Returned
    return b"from the child\n"


def _parts(path: str) -> Iterator[bytes]:
    """Yield the body; a stream forks between its first two parts."""
    if path == "/stream":
        yield b"begun\n"
    yield _forked(path)
    yield b"end\n"


async def _in_anyio_thread(path: str) -> bytes:
    return await anyio.to_thread.run_sync(_forked, path)  # as Starlette calls sync handlers


async def _in_executor(path: str) -> bytes:
    return await asyncio.to_thread(_forked, path)


async def _then_yield(path: str) -> bytes:
    body = _forked(path)
    await asyncio.sleep(0)
    return body


AWAITED: dict[str, Callable[[str], Awaitable[bytes]]] = {
    "/anyio": _in_anyio_thread,
    "/executor": _in_executor,
    "/yield": _then_yield,
}
"""Handlers of ASGI that fork in a thread, or whose child yields to the loop."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Serve ASGI."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": _forked(scope["path"]).decode()})
        return
    if scope["type"] != "http":
        return
    await receive()
    if scope["path"] in AWAITED:
        body = await AWAITED[scope["path"]](scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body + b"end\n"})
        return
    streams = scope["path"] == "/stream"
    body = b"" if streams else b"".join(_parts(scope["path"]))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for part in _parts(scope["path"]) if streams else ():
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Serve WSGI."""
    parts = _parts(environ["PATH_INFO"])
    body = parts if environ["PATH_INFO"] == "/stream" else list(parts)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return body


class Rsgi:
    """Serve RSGI."""

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        protocol.response_bytes(200, [], b"".join(_parts(scope.path)))


rsgi = Rsgi()


async def tcp(reader: Any, writer: Any) -> None:
    """Serve raw TCP: a line with a path, then the lines of the response."""
    path = (await reader.readline()).decode().strip()
    for part in _parts(path):
        writer.write(part)
