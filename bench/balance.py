"""The balance probe: the number of keep-alive connections of each worker over time.

The probe opens all connections at once. Each requests `/pid` ten times a second, and belongs to the worker of its last
response.
"""

from __future__ import annotations

import asyncio
import collections
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bench.client import Connection, Failed, Target

_PERIOD_S = 0.1
"""Seconds between two requests of a connection, and between two samples."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The numbers of connections by pid of the worker, `at` seconds after they were opened."""

    at: float
    counts: dict[int, int]

    def row(self, workers: int) -> list[int]:
        """Return the counts in descending order, with a 0 for each worker that has none."""
        counts = sorted(self.counts.values(), reverse=True)
        return counts + [0] * (workers - len(counts))

    def max_over_mean(self, workers: int) -> float:
        """Return the largest count divided by the mean: 1.0 if all are equal."""
        row = self.row(workers)
        return max(row) * len(row) / sum(row) if sum(row) else 0.0

    def gap(self, workers: int) -> int:
        """Return the largest count minus the smallest."""
        row = self.row(workers)
        return max(row) - min(row)


@dataclass(frozen=True, slots=True)
class Balance:
    """All samples, the connections that the server closed, and the requests that failed."""

    samples: list[Sample]
    closed: int
    failed: int

    def after(self, seconds: float) -> list[Sample]:
        """Return the samples later than this many seconds, with a period added for the responses to arrive."""
        return [sample for sample in self.samples if sample.at >= seconds + _PERIOD_S]

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
            await asyncio.sleep(_PERIOD_S * random.uniform(0.5, 1.5))
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
    every: float = _PERIOD_S,
    during: Callable[[], Awaitable[None]] | None = None,
) -> Balance:
    """Open the connections, and sample to which workers they belong.

    Args:
        every: seconds between two samples.
        during: the action on the server during the load.
    """
    run = _Probe(target, seconds)
    sampling = asyncio.ensure_future(run.sample(every))
    disturbance = asyncio.ensure_future(during()) if during is not None else None
    await asyncio.gather(*(run.client(number) for number in range(connections)))
    if disturbance is not None:
        await disturbance
    return Balance(await sampling, run.closed, run.failed)
