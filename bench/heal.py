"""The time that a killed worker is missing: from SIGKILL until its replacement is ready.

cluster2 reports when a worker is ready, and is asked each millisecond. Other servers don't. For them the time ends with
the first response of a new pid, with a connection for each request. With several workers that
is some milliseconds later than readiness, since the other workers take most connections. Their times are hundreds of ms.
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

_HEAL_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Heal:
    """Milliseconds from SIGKILL to readiness, one for each kill."""

    times: list[float]

    @property
    def median(self) -> float:
        """Return the median."""
        return statistics.median(self.times)

    def __str__(self) -> str:
        return f"median {self.median:.1f} ms of {self.times}"


def measure(server: Running, *, kills: int = 5, pause: float = 2.0) -> Heal:
    """Kill workers one after the other.

    Args:
        kills: the number of workers; fewer than the server takes for a crash loop.
        pause: seconds between two kills.

    Raises:
        BenchError: a worker wasn't replaced within `_HEAL_TIMEOUT_S`.
    """
    kill = _kill_told if server.name == US else _kill_seen
    times = []
    for number in range(kills):
        if number:
            time.sleep(pause)
        times.append(round(kill(server) * 1000, 2))
    return Heal(times)


def workers(server: Running) -> set[int]:
    """Return the pids of the server's workers, by its master's status or by their responses to `/pid`.

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

    wait(complete, 5.0, every=0.002)  # a few workers may take all connections of an idle server: those are enough
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
        if not wait(lambda: len(master.status().ready) == server.workers, _HEAL_TIMEOUT_S):
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
    if not wait(replaced, _HEAL_TIMEOUT_S, every=0.001):
        raise BenchError(f"{server.name} has not replaced a worker within {_HEAL_TIMEOUT_S:.0f} s: {server.output()}")
    return time.perf_counter() - began


async def _who(target: Target) -> int:
    """Return the pid of the worker that takes a new connection. 0: none did."""
    try:
        connection = await Connection.open(target)
        return int((await connection.exchange(target.request(close=True))).body)
    except Failed:
        return 0
