"""The results of clients while the workers are replaced, and the time that a worker takes to exit."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from bench import control, proc
from bench.counting import Count, Load, count
from bench.errors import BenchError
from bench.report import US
from bench.servers import Running


@dataclass(frozen=True, slots=True)
class Roll:
    """The results of a roll.

    Attributes:
        replaced: processes of the tree that have ended since the start.
        left: for cluster2, milliseconds from `draining` to the end, by worker.
    """

    count: Count
    replaced: int
    left: list[float]

    def __str__(self) -> str:
        return f"replaced {self.replaced} left after {self.left} ms; {self.count}"


@dataclass(slots=True)
class _Watch:
    """A thread that asks the master every other millisecond which workers drain, and notes their ends."""

    server: Running
    since: dict[int, float] = field(default_factory=dict)
    left: dict[int, float] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with suppress(BenchError), control.Master(self.server.pids) as master:  # it ends with the master
            while not self.over.wait(0.002):
                self.look(master.status().workers, time.perf_counter())

    def look(self, workers: dict[int, str], now: float) -> None:
        for pid, state in workers.items():
            if state == "draining":
                self.since.setdefault(pid, now)
        for pid, began in self.since.items():
            if pid not in self.left and (pid not in workers or proc.stat(pid) is None):
                self.left[pid] = round(1000 * (now - began), 1)


async def roll(server: Running, load: Load, *, times: int = 2) -> Roll:
    """Load a server and replace its workers, evenly spread over the load.

    Args:
        times: the number of rolls; 0: the undisturbed run to compare with.
    """
    before = proc.tree(server.pid)
    watch = _Watch(server)
    thread = threading.Thread(target=watch.run, daemon=True)
    if server.name == US and times:
        thread.start()

    async def disturb() -> None:
        for _ in range(times):
            await asyncio.sleep(load.seconds / (times + 1))
            server.roll()

    counted = await count(server.target, load, disturb)
    watch.over.set()
    if thread.is_alive():
        thread.join(control.TIMEOUT + 1)
    if server.process.poll() is not None:
        raise BenchError(f"{server.name} ended with {server.process.returncode} when it was rolled: {server.output()}")
    gone = sum(not proc.alive(member) for member in before)
    return Roll(counted, gone, sorted(watch.left.values()))
