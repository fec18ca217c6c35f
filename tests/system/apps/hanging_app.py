"""An app that hangs, in each of the ways that there are. `/KIND/NAME` leaves the file `held.NAME.PID` before it does."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def mark(name: str) -> None:
    """Say that this request's handler has begun."""
    Path(f"held.{name}.{os.getpid()}").touch()


def spin_for_ever() -> None:
    while True:
        pass


def compute_for_ever() -> None:
    re.match("(a+)+$", "a" * 60 + "b")


def sleep_for_ever() -> None:
    time.sleep(1000)


async def answer(send: Any, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body)), (b"x-worker", b"%d" % os.getpid())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def app(scope: Any, receive: Any, send: Any) -> None:
    """For ASGI."""
    if scope["type"] != "http":
        return
    _, kind, name = [*scope["path"].split("/"), "", ""][:3]
    if kind:
        mark(name)
    match kind:
        case "spin":
            spin_for_ever()
        case "compute":
            compute_for_ever()
        case "sleep":
            sleep_for_ever()
        case "forever":
            await asyncio.Event().wait()
        case "held":
            while not Path("release").exists():
                await asyncio.sleep(0.01)
            await answer(send, b"released")
        case _:
            await answer(send, b"hello")


def forever() -> None:
    """Wait in a thread for what never comes."""
    threading.Event().wait()


def held() -> None:
    while not Path("release").exists():
        time.sleep(0.01)


def make() -> Any:
    return app


def make_wsgi() -> Any:
    return wsgi


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """For WSGI: in threads."""
    _, kind, name = [*environ["PATH_INFO"].split("/"), "", ""][:3]
    if kind:
        mark(name)
    if kind == "forever":
        forever()
    if kind == "held":
        held()
    start_response("200 OK", [("Content-Length", "8")])
    return [b"released"]


def make_fastapi() -> Any:
    """A FastAPI app with `def` endpoints: in threads."""
    from fastapi import FastAPI, Response

    made = FastAPI()

    @made.get("/forever/{name}")
    def endless(name: str) -> None:
        mark(name)
        forever()

    @made.get("/held/{name}")
    def patient(name: str) -> Response:
        mark(name)
        held()
        return Response(b"released")

    return made
