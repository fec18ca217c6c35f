"""The open loop with a connection for each request: arrivals don't wait for responses.

A closed loop sends fewer requests to a slow server, and so hides its tail. Here requests arrive at random (Poisson) at a
given rate whatever happens to earlier ones, as those of many independent users do. About one in ten requests `/slow`,
which holds its worker. The figure is the latency of the others.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bench.client import Connection, Failed, Target
from bench.stats import Latencies


@dataclass(frozen=True, slots=True)
class Arrivals:
    """The arrivals of requests.

    Attributes:
        rate: requests a second, on average.
        slow: the share of `/slow`, from 0 to 1.
        fast: the path of the others.
        seed: an equal seed gives equal arrivals, so that two servers get the same load.
    """

    rate: float
    slow: float = 0.1
    seconds: float = 5.0
    seed: int = 1
    fast: str = "/"


@dataclass(frozen=True, slots=True)
class Tail:
    """The results of the clients.

    Attributes:
        fast: latencies of `/`.
        slow: latencies of `/slow`.
        opened, closed: keep-alive connections opened in total, and closed by the server; 0 with a connection for each request.
        late: the delay of the generator itself; a p99 near that of the fast ones means that the generator was the limit.
    """

    fast: Latencies
    slow: Latencies
    failed: int
    opened: int
    closed: int
    late: Latencies

    def __str__(self) -> str:
        return f"fast: {self.fast}; slow: {self.slow}; failed {self.failed} opened {self.opened} closed {self.closed}"


@dataclass(slots=True)
class Record:
    """The record of a load while it runs."""

    latencies: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    late: list[float] = field(default_factory=list)
    failed: int = 0
    opened: int = 0
    closed: int = 0

    def tail(self) -> Tail:
        """Return the summary."""
        fast, slow = Latencies.of(self.latencies[False]), Latencies.of(self.latencies[True])
        return Tail(fast, slow, self.failed, self.opened, self.closed, Latencies.of(self.late))


async def arrive(arrivals: Arrivals, record: Record, one: Callable[[bool], Awaitable[None]]) -> None:
    """Start `one(slow)` for each arrival, and wait for all."""
    chance = random.Random(arrivals.seed)
    due = time.perf_counter()
    end = due + arrivals.seconds
    tasks: set[asyncio.Future[None]] = set()
    while (due := due + chance.expovariate(arrivals.rate)) < end:
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        record.late.append(max(0.0, time.perf_counter() - due))
        task = asyncio.ensure_future(one(chance.random() < arrivals.slow))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


async def load(target: Target, arrivals: Arrivals) -> Tail:
    """Run the load with a connection for each request. A latency includes the connect."""
    record = Record()
    targets = {slow: target.at("/slow" if slow else arrivals.fast) for slow in (False, True)}
    messages = {slow: targets[slow].request(close=True) for slow in (False, True)}

    async def one(slow: bool) -> None:
        began = time.perf_counter()
        try:
            connection = await Connection.open(targets[slow])
            response = await connection.exchange(messages[slow])
        except Failed:
            record.failed += 1
            return
        record.latencies[slow].append(time.perf_counter() - began)
        record.failed += response.status != 200
        connection.close()

    await arrive(arrivals, record, one)
    return record.tail()
