"""The counting client: a closed loop over keep-alive connections that counts every failure by its kind.

A client of a server that reloads, recycles or dies can see three different things:

- A *failed* request was sent, and no complete and correct response arrived.
- A connection *closed* by the server was announced in a response (`Connection: close`), or closed silently before
  the next request was sent. No request is lost, but the client has to connect again.
- A *reconnect* is the new connection that the client opens after either.
"""

from __future__ import annotations

import asyncio
import collections
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bench.client import Connection, Failed, Target
from bench.http import Response
from bench.stats import Latencies


@dataclass(frozen=True, slots=True)
class Load:
    """The parameters of a load.

    Attributes:
        connections: clients, each with one connection.
        seconds: the duration; infinite: as long as the action on the server.
        think: a client waits for a random time of 0 to this many seconds before each request.
        close: a connection for each request.
        expect: the body of a correct response; None: any.
    """

    connections: int = 32
    seconds: float = 5.0
    think: float = 0.0
    close: bool = False
    expect: bytes | None = None
    method: str = "GET"


@dataclass(frozen=True, slots=True)
class Count:
    """The counts of all clients.

    Attributes:
        requests: those with a response, correct or not.
        kinds: the failures by kind.
        closed_announced: responses that said `Connection: close` without a client's request for that.
        closed_silent: idle connections that the server closed without an announcement.
        reconnects: connections opened beyond the first of each client.
    """

    requests: int
    failed: int
    kinds: dict[str, int]
    closed_announced: int
    closed_silent: int
    reconnects: int
    latency: Latencies

    @property
    def closed(self) -> int:
        """Return the number of connections that the server closed."""
        return self.closed_announced + self.closed_silent

    def __str__(self) -> str:
        kinds = f" {self.kinds}" if self.kinds else ""
        closed = f"closed {self.closed_announced} announced {self.closed_silent} silently"
        return (
            f"requests {self.requests} failed {self.failed}{kinds} {closed} reconnects {self.reconnects} {self.latency}"
        )


@dataclass(slots=True)
class _Tally:
    load: Load
    end: float
    message: bytes
    target: Target
    seen: collections.Counter[str] = field(default_factory=collections.Counter)
    kinds: collections.Counter[str] = field(default_factory=collections.Counter)
    latencies: list[float] = field(default_factory=list)
    moments: list[tuple[float, float]] | None = None

    def finish(self) -> None:
        self.end = 0.0

    async def connect(self) -> Connection | None:
        try:
            connection = await Connection.open(self.target)
        except Failed as why:
            self.kinds[str(why)] += 1
            await asyncio.sleep(0.01)  # a refused connection takes no time: don't spin
            return None
        self.seen["opened"] += 1
        return connection

    async def ask(self, connection: Connection) -> bool:
        """Make one exchange, and return whether the connection can be used again."""
        began = time.perf_counter()
        try:
            response = await connection.exchange(self.message)
        except Failed as why:
            self.kinds[str(why)] += 1
            return False
        took = time.perf_counter() - began
        self.latencies.append(took)
        if self.moments is not None:
            self.moments.append((began, took))
        self.judge(response)
        if self.load.close:
            return False
        if response.closing:
            self.seen["announced"] += 1
        return not response.closing

    def judge(self, response: Response) -> None:
        if response.status >= 400:
            self.kinds[f"status {response.status}"] += 1
        elif self.load.expect is not None and response.body != self.load.expect:
            self.kinds["wrong body"] += 1

    async def client(self) -> None:
        connection: Connection | None = None
        await asyncio.sleep(random.random() * min(self.load.think, 1.0))  # spread the start of thousands of clients
        while time.monotonic() < self.end:
            if connection is None:
                connection = await self.connect()
                continue
            if self.load.think:
                await asyncio.sleep(random.random() * self.load.think)
            if connection.closed:
                self.seen["silent"] += 1
                connection = None
            elif not await self.ask(connection):
                connection.close()
                connection = None
        if connection is not None:
            connection.close()


async def count(
    target: Target,
    load: Load,
    during: Callable[[], Awaitable[None]] | None = None,
    moments: list[tuple[float, float]] | None = None,
) -> Count:
    """Load a server for a while, and count the results of the clients.

    Args:
        during: the action on the server; it starts with the load, and is awaited.
        moments: called for each response with the time when its request was sent (`time.perf_counter`), and its latency in seconds.
    """
    message = target.request(close=load.close, method=load.method)
    tally = _Tally(load, time.monotonic() + load.seconds, message, target, moments=moments)
    disturbance = asyncio.ensure_future(during()) if during is not None else None
    if disturbance is not None and load.seconds == math.inf:
        disturbance.add_done_callback(lambda _: tally.finish())
    await asyncio.gather(*(tally.client() for _ in range(load.connections)))
    if disturbance is not None:
        await disturbance
    return Count(
        requests=len(tally.latencies),
        failed=tally.kinds.total(),
        kinds=dict(tally.kinds),
        closed_announced=tally.seen["announced"],
        closed_silent=tally.seen["silent"],
        reconnects=0 if load.close else max(0, tally.seen["opened"] - load.connections),
        latency=Latencies.of(tally.latencies),
    )
