"""Apps whose end takes its time, for the tests of what bounds it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cluster2 import worker


class Endless:
    """A body without an end; leaves a file when it is closed."""

    def __iter__(self) -> Iterator[bytes]:
        Path(f"held.body.{os.getpid()}").touch()
        while True:
            time.sleep(0.01)
            yield b"part"

    def close(self) -> None:
        Path("closed.body").touch()


def endless(environ: dict[str, Any], start_response: Callable[..., Any]) -> Endless:
    """Answer without an end."""
    start_response("200 OK", [])
    return Endless()


def generator(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    """Answer without an end, by a generator."""
    start_response("200 OK", [])
    body = Endless()
    try:
        yield from body
    finally:
        body.close()


def holds_the_loop(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Never answer, and be called inline."""
    Path(f"held.loop.{os.getpid()}").touch()
    while True:
        time.sleep(1000)


async def never_stops(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    """Say nothing at the end of the lifespan."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await asyncio.Event().wait()
    Path(f"held.loop.{os.getpid()}").touch()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


async def exits_in_a_hook(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    """Note the end of the lifespan; the module's hook of the end exits."""
    worker.on_stop(exits)
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    Path("stopped.lifespan").touch()
    await send({"type": "lifespan.shutdown.complete"})


def exits() -> None:
    """Raise SystemExit."""
    raise SystemExit(7)


class Flood(Endless):
    """A body that no kernel takes at once."""

    def __iter__(self) -> Iterator[bytes]:
        Path(f"held.body.{os.getpid()}").touch()
        while True:
            yield bytes(1_000_000)


def flood(environ: dict[str, Any], start_response: Callable[..., Any]) -> Flood:
    """Answer with more than the client takes."""
    start_response("200 OK", [])
    return Flood()
