"""Thousands of idle keep-alive connections that wake up one by one at a given rate."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.client import Connection, Failed, Target, raise_descriptor_limit
from bench.errors import BenchError
from bench.stats import Latencies

_MAX_OPENING = 100
"""Number of connections that are opened at a time: fewer than any server's backlog."""


@dataclass(frozen=True, slots=True)
class Rest:
    """The results of the connections.

    Attributes:
        opened: connections whose first request was answered.
        lost: the number of woken connections that got no response.
        closed: the number of woken connections that the server had closed visibly; they are included in `lost`.
        latency: the latency of the first request after the idle time.
    """

    opened: int
    woken: int
    lost: int
    closed: int
    latency: Latencies

    def __str__(self) -> str:
        return f"opened {self.opened} woken {self.woken} lost {self.lost} (closed {self.closed}) {self.latency}"


async def _open(target: Target, message: bytes, number: int) -> list[Connection]:
    gate = asyncio.Semaphore(_MAX_OPENING)

    async def one() -> Connection:
        async with gate:
            connection = await Connection.open(target)
            await connection.exchange(message)
            return connection

    try:
        return await asyncio.gather(*(one() for _ in range(number)))
    except Failed as why:
        raise BenchError(f"{target.url}: not all of {number} connections could be opened: {why}") from None


@dataclass(slots=True)
class _Waking:
    message: bytes
    latencies: list[float] = field(default_factory=list)
    woken: int = 0
    lost: int = 0
    closed: int = 0

    async def one(self, connection: Connection) -> None:
        began = time.perf_counter()
        self.woken += 1
        self.closed += connection.closed
        try:
            await connection.exchange(self.message)
        except Failed:
            self.lost += 1
        else:
            self.latencies.append(time.perf_counter() - began)

    async def run(self, resting: list[Connection], rate: float, seconds: float) -> None:
        chance = random.Random(1)
        due = time.perf_counter()
        end = due + seconds
        tasks = []
        for connection in chance.sample(resting, len(resting)):
            due += chance.expovariate(rate)
            if due > end:
                break
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.ensure_future(self.one(connection)))
        await asyncio.gather(*tasks)


async def rest(
    target: Target,
    *,
    connections: int = 2000,
    settle: float = 4.0,
    rate: float = 2000.0,
    seconds: float = 6.0,
    at_rest: Callable[[], None] | None = None,
) -> Rest:
    """Open the connections, leave them idle, and wake them in random order.

    Args:
        settle: the idle time in seconds.
        rate: wakes a second, of a Poisson process.
        seconds: the wakes end after this time, or with the last connection.
        at_rest: called between the idle time and the wakes; it may block.

    Raises:
        BenchError: a connection can't be opened, or there are too few descriptors.
    """
    limit = raise_descriptor_limit()
    if connections > limit - 100:
        raise BenchError(f"{connections} connections need more descriptors than the {limit} allowed: ulimit -Hn")
    message = target.request()
    resting = await _open(target, message, connections)
    await asyncio.sleep(settle)
    if at_rest is not None:
        at_rest()
        await asyncio.sleep(0.05)  # time to notice closed connections
    waking = _Waking(message)
    await waking.run(resting, rate, seconds)
    for connection in resting:
        connection.close()
    return Rest(len(resting), waking.woken, waking.lost, waking.closed, Latencies.of(waking.latencies))
