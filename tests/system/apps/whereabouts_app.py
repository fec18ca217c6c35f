"""Apps that hold the loop or a thread, or wait: `/KIND/NAME` leaves the file `held.NAME.PID` before."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any


def mark(name: str) -> None:
    Path(f"held.{name}.{os.getpid()}").touch()


def hold(kind: str) -> None:
    """Hold what it is called on."""
    while kind == "spin":
        pass
    while True:
        time.sleep(1000)


async def steps() -> AsyncIterator[None]:
    await asyncio.Event().wait()
    yield


async def wait_for_ever() -> None:
    async for _ in steps():
        pass


async def work(path: str) -> None:
    _, kind, name = path.split("/")
    mark(name)
    if kind == "wait":
        await wait_for_ever()
    hold(kind)


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """Also for websockets."""
    if scope["type"] != "lifespan":
        await work(scope["path"])


async def rsgi(scope: Any, protocol: Any) -> None:
    await work(scope.path)


def wsgi(environ: Any, start_response: Callable[..., Any]) -> Any:
    _, kind, name = environ["PATH_INFO"].split("/")
    mark(name)
    hold(kind)


async def tcp(reader: Any, writer: Any) -> None:
    await work((await reader.readline()).decode().strip())
