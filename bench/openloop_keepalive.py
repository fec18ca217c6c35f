"""The open loop over a pool of keep-alive connections.

Each request takes a random idle connection of the pool. If none is idle, it opens a new one, and the pool grows. A
connection that stays with one worker makes its requests wait for that worker, however idle the others are. This load
shows that.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

from bench.client import Connection, Failed, Target
from bench.openloop import Arrivals, Record, Tail, arrive


@dataclass(slots=True)
class _Pool:
    target: Target
    record: Record
    chance: random.Random
    idle: list[Connection] = field(default_factory=list)

    async def open(self) -> Connection:
        self.record.opened += 1
        return await Connection.open(self.target)

    async def take(self) -> Connection:
        while self.idle:
            at = self.chance.randrange(len(self.idle))
            self.idle[at], self.idle[-1] = self.idle[-1], self.idle[at]
            connection = self.idle.pop()
            if not connection.closed:
                return connection
            self.record.closed += 1
        return await self.open()


async def load(target: Target, arrivals: Arrivals, *, pool: int = 64, warm: bool = True) -> Tail:
    """Run the load over a pool.

    Args:
        pool: the number of connections that are opened at once before the load.
        warm: each of them carries one request first; without it the load begins cold.
    """
    record = Record()
    messages = {slow: target.at("/slow" if slow else arrivals.fast).request() for slow in (False, True)}
    connections = _Pool(target, record, random.Random(arrivals.seed + 1))
    connections.idle += await asyncio.gather(*(connections.open() for _ in range(pool)))
    if warm:
        await asyncio.gather(*(connection.exchange(messages[False]) for connection in connections.idle))

    async def one(slow: bool) -> None:
        began = time.perf_counter()
        try:
            connection = await connections.take()
            response = await connection.exchange(messages[slow])
        except Failed:
            record.failed += 1
            return
        record.latencies[slow].append(time.perf_counter() - began)
        record.failed += response.status != 200
        if response.closing:
            record.closed += 1
            connection.close()
        else:
            connections.idle.append(connection)

    await arrive(arrivals, record, one)
    record.closed += sum(connection.closed for connection in connections.idle)
    for connection in connections.idle:
        connection.close()
    return record.tail()
