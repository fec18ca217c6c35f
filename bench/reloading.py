"""Clients while a server reloads in its own way (SIGHUP, to all of these): what they see then, beside what they see otherwise.

A reload lasts from the signal until as many of the processes that were there before have ended as serve requests, and `AFTER`
seconds more, or `LONGEST` where old processes stay on with their connections. Requests that were sent in that time are held
against all others of the same run.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from bench import proc
from bench.counting import Count, Load, count
from bench.errors import BenchError
from bench.servers import Running
from bench.stats import Latencies

AFTER = 0.2
LONGEST = 6.0
PAUSE = 2.0
"""Seconds without a reload before each, and after the last."""


@dataclass(frozen=True, slots=True)
class Reloads:
    """What some reloads did.

    Attributes:
        count: over the whole run.
        steady: latencies of requests that were sent while nothing happened.
        during: of those that were sent during a reload.
        seconds: for how long each lasted.
    """

    count: Count
    steady: Latencies
    during: Latencies
    seconds: list[float]

    @property
    def ratio(self) -> float | None:
        """p99 during, through the steady one."""
        during, steady = self.during.p99, self.steady.p99
        return during / steady if during is not None and steady else None

    def __str__(self) -> str:
        return f"{self.count}; p99 steady {self.steady.p99} during {self.during.p99} ms; lasted {self.seconds} s"


async def reload(server: Running, load: Load, *, times: int = 2) -> Reloads:
    """Loads a server, and reloads it again and again; give the load infinite `seconds`: it ends with that."""
    spans: list[tuple[float, float]] = []

    async def disturb() -> None:
        for _ in range(times):
            await asyncio.sleep(PAUSE)
            before, began = proc.tree(server.pid), time.perf_counter()
            server.roll()
            while time.perf_counter() < began + LONGEST:
                await asyncio.sleep(0.02)
                if sum(not proc.alive(each) for each in before) >= server.processes:
                    break
            await asyncio.sleep(AFTER)
            spans.append((began, time.perf_counter()))
        await asyncio.sleep(PAUSE)

    moments: list[tuple[float, float]] = []
    counted = await count(server.target, load, disturb, moments)
    if server.process.poll() is not None:
        raise BenchError(f"{server.name} ended with {server.process.returncode} at a reload: {server.output()}")
    during = [took for sent, took in moments if _within(sent, spans)]
    steady = [took for sent, took in moments if not _within(sent, spans)]
    seconds = [round(end - began - AFTER, 2) for began, end in spans]
    return Reloads(counted, Latencies.of(steady), Latencies.of(during), seconds)


def _within(moment: float, spans: list[tuple[float, float]]) -> bool:
    return any(began <= moment < end for began, end in spans)
