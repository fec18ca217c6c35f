"""An app that says things, and then ends or goes on, for the tests of the logs. By path; the query is what it says."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

LINES, BLOCK = 20, b"x" * 4095 + b"\n"
MEGABYTE = 1 << 20


def say(kind: str, what: str) -> None:
    if kind == "print":
        print(what)
    elif kind == "killed":
        print(what)
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "exits":
        print(what, file=sys.stderr)
        os._exit(3)
    elif kind == "crashes":
        ctypes.string_at(0)
    elif kind == "child":
        subprocess.run(["sh", "-c", f"echo {what} >&2; echo out-{what}"], check=True)
    elif kind == "numbers":
        count(int(what))
    elif kind == "flood":
        flood(float(what))


def count(turn: int) -> None:
    """Some numbered lines, other ones each turn."""
    for at in range(turn * LINES, (turn + 1) * LINES):
        print(f"number {at} {'.' * 100}")


def flood(seconds: float) -> None:
    """As fast as the disk takes it, without ever coming round to the loop; a file tells how much it was."""
    end, written = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        written += os.write(1, BLOCK)
    with open("flooded", "w") as file:
        file.write(str(written))


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        say(scope["path"][1:], scope["query_string"].decode())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})


async def crashing(scope: Scope, receive: Receive, send: Send) -> None:
    """Is ready, says a megabyte, and dies."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        print("y" * MEGABYTE)
        asyncio.get_running_loop().call_later(0.05, os._exit, 3)
        await receive()


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]


def answers(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """With the status that the path says: whole, by parts (/parts), or not at all (/raises)."""
    path = environ["PATH_INFO"][1:]
    if path == "raises":
        raise ValueError(path)
    start_response("200 OK" if path == "parts" else f"{path} So", [])
    return iter([b"12345", b"678"]) if path == "parts" else [b"12345"]


print("the app is imported")
