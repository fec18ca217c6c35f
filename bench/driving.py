"""Calls in lanes: the load of all measurements of calls, for each kind of server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bench.stats import Latencies

VALUE = "x" * 32
"""The value that each call returns."""
Call = Callable[[], Awaitable[Any]]


async def drive(call: Call, lanes: int, seconds: float) -> dict[str, Any]:
    """Call in `lanes` lanes, one call at a time in each, for `seconds`. Return latencies in milliseconds."""
    samples: list[float] = []
    end = time.perf_counter() + seconds

    async def lane() -> None:
        begun = time.perf_counter()
        while begun < end:
            await call()
            now = time.perf_counter()
            samples.append(now - begun)
            begun = now

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(lanes)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    latencies = Latencies.of(samples)
    return {"calls": len(samples), "seconds": wall, "cpu": cpu, "p50": latencies.p50, "p99": latencies.p99}
