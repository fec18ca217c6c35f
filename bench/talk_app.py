"""The app whose workers make calls: an event starts them, and a component status returns their results.

A *driver* is one call to a server: the master (by a delegated call), Redis, or a `multiprocessing.Manager`. All return
an equal short text, and all run in the worker's own event loop, so that its cost is equal for them.
"""

from __future__ import annotations

import asyncio
import os
import time
from multiprocessing.managers import BaseManager
from typing import Any

from bench.apps import app as app
from bench.driving import VALUE, Call, drive
from cluster2 import worker

found: list[dict[str, Any]] = []
_delays: list[float] = []


class Manager(BaseManager):
    """A manager that serves `get`."""


Manager.register("get")


async def _delegate(place: str) -> Call:
    # `key` makes the calls unequal, so that each one runs the handler, as Redis answers each GET separately.
    numbers = iter(range(1 << 60))

    async def call() -> Any:
        return await worker.delegate("get", next(numbers))

    return call


async def _same(place: str) -> Call:
    async def call() -> Any:
        return await worker.delegate("slow-get", "key", timeout=60)

    return call


async def _redis(place: str) -> Call:
    from redis.asyncio import Redis

    client = Redis(unix_socket_path=place, max_connections=64)
    await client.set("key", VALUE)
    return lambda: client.get("key")


async def _manager(place: str) -> Call:
    manager = Manager(place, authkey=b"bench")
    manager.connect()
    proxy = manager.get()  # type: ignore[attr-defined]

    async def call() -> Any:
        return proxy.get("key")  # a Manager has only a blocking form

    return call


_DRIVERS = {"cluster2": _delegate, "same": _same, "redis": _redis, "manager": _manager}


@worker.on("drive")
async def make_calls(event: Any) -> None:
    """Make the calls that the event describes: driver, place, lanes, seconds."""
    asked = event.data
    call = await _DRIVERS[asked["driver"]](asked["place"])
    await call()
    if "times" in asked:
        answers = await asyncio.gather(*(call() for _ in range(asked["times"])))
        found.append({"run": asked["run"], "pid": os.getpid(), "calls": len(answers), "answers": sorted(set(answers))})
    else:
        found.append({"run": asked["run"], "pid": os.getpid(), **await drive(call, asked["lanes"], asked["seconds"])})


@worker.on("ring")
async def ring(event: Any) -> None:
    """Send `count` stamps to all workers, evenly over the given seconds."""
    asked = event.data
    if asked["pid"] == os.getpid():
        for _ in range(asked["times"]):
            worker.emit("stamp", time.monotonic(), targets="all")
            await asyncio.sleep(asked["seconds"] / asked["times"])


@worker.on("stamp")
def stamp(event: Any) -> None:
    """Note the time that a stamp took to arrive."""
    _delays.append(time.monotonic() - event.data)


worker.register_status("found", view=lambda run: [each for each in found if each["run"] == run], reducer="concat")
worker.register_status("delays", view=lambda: _delays, reducer="concat")
