"""How long a killed worker is missing: from SIGKILL to its replacement's readiness.

cluster2 says itself when a worker is ready, and is asked each millisecond. Other servers don't: for them the time is
that to the first answer of a pid that nobody had seen before, over a connection a request. With several workers that
is later than readiness by some milliseconds, since siblings take most connections; their times are hundreds.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench import control
from bench.client import Connection, Failed, Target, run
from bench.errors import BenchError
from bench.report import US
from bench.servers import Running, wait

TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Heal:
    """Milliseconds from SIGKILL to readiness, one for each kill."""

    times: list[float]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.times)

    def __str__(self) -> str:
        return f"median {self.median:.1f} ms of {self.times}"


def measure(server: Running, *, kills: int = 5, pause: float = 2.0) -> Heal:
    """Kills workers one after the other.

    Args:
        kills: how many; fewer than what the server takes for a crash loop.
        pause: seconds between two of them.

    Raises:
        BenchError: a worker wasn't replaced within `TIMEOUT`.
    """
    kill = _kill_told if server.name == US else _kill_seen
    times = []
    for number in range(kills):
        if number:
            time.sleep(pause)
        times.append(round(kill(server) * 1000, 2))
    return Heal(times)


def workers(server: Running) -> set[int]:
    """Pids of the server's workers: as its master says, or as they answer `/pid`.

    Raises:
        BenchError: none answers.
    """
    if server.name == US:
        return set(control.status(server.pids).ready)
    found: set[int] = set()
    target = server.target.at("/pid")

    def complete() -> bool:
        found.add(run(_who(target)))
        return len(found - {0}) >= server.workers

    wait(complete, 5.0, every=0.002)  # siblings may take all connections of an idle server: some are enough
    if not found - {0}:
        raise BenchError(f"{server.name} doesn't answer {target.path}: {server.output()}")
    return found - {0}


def _kill(before: set[int]) -> float:
    victim = random.choice(sorted(before))
    began = time.perf_counter()
    os.kill(victim, signal.SIGKILL)
    return began


def _kill_told(server: Running) -> float:
    with control.Master(server.pids) as master:
        if not wait(lambda: len(master.status().ready) == server.workers, TIMEOUT):
            raise BenchError(f"{server.name} has not all of its {server.workers} workers: {server.output()}")
        before = set(master.status().ready)
        began = _kill(before)
        return _until(server, lambda: bool(master.status().ready - before), began)


def _kill_seen(server: Running) -> float:
    before = workers(server)
    target = server.target.at("/pid")
    began = _kill(before)
    return _until(server, lambda: run(_who(target)) not in before | {0}, began)


def _until(server: Running, replaced: Callable[[], bool], began: float) -> float:
    if not wait(replaced, TIMEOUT, every=0.001):
        raise BenchError(f"{server.name} has not replaced a worker within {TIMEOUT:.0f} s: {server.output()}")
    return time.perf_counter() - began


async def _who(target: Target) -> int:
    """The pid of the worker that takes a new connection; 0: none did."""
    try:
        connection = await Connection.open(target)
        return int((await connection.exchange(target.request(close=True))).body)
    except Failed:
        return 0
