"""The balance probe: how many keep-alive connections each worker has, moment by moment.

All connections are opened at once, and each asks `/pid` ten times a second; where its last answer came from is where
it is.
"""

from __future__ import annotations

import asyncio
import collections
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bench.client import Connection, Failed, Target

PERIOD = 0.1
"""Seconds between two requests of a connection, and between two samples."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Connections by worker's pid, `at` seconds after they were opened."""

    at: float
    counts: dict[int, int]

    def row(self, workers: int) -> list[int]:
        """The counts, descending, with a 0 for each worker that has none."""
        counts = sorted(self.counts.values(), reverse=True)
        return counts + [0] * (workers - len(counts))

    def max_over_mean(self, workers: int) -> float:
        """1.0: all have the same."""
        row = self.row(workers)
        return max(row) * len(row) / sum(row) if sum(row) else 0.0

    def gap(self, workers: int) -> int:
        """The largest count less the smallest."""
        row = self.row(workers)
        return max(row) - min(row)


@dataclass(frozen=True, slots=True)
class Balance:
    """All samples, the connections that the server closed, and the requests that failed."""

    samples: list[Sample]
    closed: int
    failed: int

    def after(self, seconds: float) -> list[Sample]:
        """The samples later than so many seconds, a period for the answers to come in added."""
        return [sample for sample in self.samples if sample.at >= seconds + PERIOD]

    def __str__(self) -> str:
        rows = (f"{sample.at:.1f} s {sorted(sample.counts.values(), reverse=True)}" for sample in self.samples)
        return f"{'; '.join(rows)}; closed {self.closed} failed {self.failed}"


@dataclass(slots=True)
class _Probe:
    target: Target
    seconds: float
    began: float = field(default_factory=time.monotonic)
    where: dict[int, int] = field(default_factory=dict)
    closed: int = 0
    failed: int = 0

    async def client(self, number: int) -> None:
        message = self.target.at("/pid").request()
        connection: Connection | None = None
        while time.monotonic() - self.began < self.seconds:
            try:
                if connection is None or connection.closed:
                    self.closed += connection is not None
                    connection = await Connection.open(self.target)
                response = await connection.exchange(message)
            except Failed:
                self.failed += 1
                self.where.pop(number, None)
                connection = None
                await asyncio.sleep(0.01)
                continue
            self.where[number] = int(response.body)
            await asyncio.sleep(PERIOD * random.uniform(0.5, 1.5))
        if connection is not None:
            connection.close()

    async def sample(self, every: float) -> list[Sample]:
        samples = []
        for number in range(1, int(self.seconds / every) + 1):
            await asyncio.sleep(max(0.0, self.began + number * every - time.monotonic()))
            at = round(time.monotonic() - self.began, 3)
            samples.append(Sample(at, dict(collections.Counter(self.where.values()))))
        return samples


async def probe(
    target: Target,
    *,
    connections: int = 200,
    seconds: float = 3.0,
    every: float = PERIOD,
    during: Callable[[], Awaitable[None]] | None = None,
) -> Balance:
    """Opens the connections and samples where they are.

    Args:
        every: seconds between two samples.
        during: what to do to the server meanwhile.
    """
    run = _Probe(target, seconds)
    sampling = asyncio.ensure_future(run.sample(every))
    disturbance = asyncio.ensure_future(during()) if during is not None else None
    await asyncio.gather(*(run.client(number) for number in range(connections)))
    if disturbance is not None:
        await disturbance
    return Balance(await sampling, run.closed, run.failed)
