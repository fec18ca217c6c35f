"""The results of clients while a server reloads in its own way (SIGHUP for all of these), compared with the rest of the time.

A reload lasts from the signal until as many of the earlier processes have ended as serve requests, and `_AFTER_S`
seconds more, or `_MAX_RELOAD_S` if old processes stay with their connections. Requests that were sent in that time are compared
with all others of the run.
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

_AFTER_S = 0.2
_MAX_RELOAD_S = 6.0
_PAUSE_S = 2.0
"""Seconds without a reload before each one, and after the last."""


@dataclass(frozen=True, slots=True)
class Reloads:
    """The results of some reloads.

    Attributes:
        count: the counts of the whole run.
        steady: latencies of requests that were sent without a reload.
        during: latencies of requests that were sent during a reload.
        seconds: the duration of each reload.
    """

    count: Count
    steady: Latencies
    during: Latencies
    seconds: list[float]

    @property
    def ratio(self) -> float | None:
        """Return the p99 during reloads, divided by the steady one."""
        during, steady = self.during.p99, self.steady.p99
        return during / steady if during is not None and steady else None

    def __str__(self) -> str:
        return f"{self.count}; p99 steady {self.steady.p99} during {self.during.p99} ms; lasted {self.seconds} s"


async def reload(server: Running, load: Load, *, times: int = 2) -> Reloads:
    """Load a server, and reload it again and again. The load needs infinite `seconds`, and ends with the last reload."""
    spans: list[tuple[float, float]] = []

    async def disturb() -> None:
        for _ in range(times):
            await asyncio.sleep(_PAUSE_S)
            before, began = proc.tree(server.pid), time.perf_counter()
            server.roll()
            while time.perf_counter() < began + _MAX_RELOAD_S:
                await asyncio.sleep(0.02)
                if sum(not proc.alive(each) for each in before) >= server.processes:
                    break
            await asyncio.sleep(_AFTER_S)
            spans.append((began, time.perf_counter()))
        await asyncio.sleep(_PAUSE_S)

    moments: list[tuple[float, float]] = []
    counted = await count(server.target, load, disturb, moments)
    if server.process.poll() is not None:
        raise BenchError(f"{server.name} ended with {server.process.returncode} at a reload: {server.output()}")
    during = [took for sent, took in moments if _within(sent, spans)]
    steady = [took for sent, took in moments if not _within(sent, spans)]
    seconds = [round(end - began - _AFTER_S, 2) for began, end in spans]
    return Reloads(counted, Latencies.of(steady), Latencies.of(during), seconds)


def _within(moment: float, spans: list[tuple[float, float]]) -> bool:
    return any(began <= moment < end for began, end in spans)
