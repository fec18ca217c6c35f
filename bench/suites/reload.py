"""The cost of a reload: clients of all servers under equal load, each with its own kind of reload, and cluster2's duration.

nginx and HAProxy answer by themselves here, so that the figure is that of their own reload, not of a server behind them.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bench import control, proc
from bench.catalogue import ENDPOINTS, environment
from bench.client import Connection, Failed, Target, run
from bench.counting import Count, Load, count
from bench.errors import BenchError
from bench.memory import MIB
from bench.reloading import Reloads, reload
from bench.report import US, Figure, Mark, at_most
from bench.resting import Rest, rest
from bench.servers import Running, running
from bench.suites.plan import Plan, each, values_of

EVERYONE = (
    US,
    "uvicorn",
    "granian",
    "gunicorn-sync",
    "gunicorn-gthread",
    "gunicorn-asgi",
    "uwsgi",
    "nginx",
    "haproxy",
)
SLOWER = 0.7
"""Seconds that are added to the FastAPI app's import where the duration of a reload is measured."""
SLACK = 0.3


def figures(plan: Plan) -> Iterator[Figure]:
    """Measure all servers under load, then cluster2's own speed: a reload, a stuck worker, thousands of idle connections."""
    for name, close in (("keep-alive", False), ("a connection a request", True)):
        load = Load(32, math.inf, think=0.02, close=close, expect=b"hello")
        yield from _clients(plan, name, load)
    yield _speed(plan)
    yield _stuck(plan)
    yield from _idle(plan)


def _clients(plan: Plan, name: str, load: Load) -> Iterator[Figure]:
    times = plan.times(5, 2)

    def measure(server_name: str) -> Reloads:
        with running(server_name, workers=plan.workers) as server:
            return run(reload(server, load, times=times))

    found = each(plan.pick(*EVERYONE), measure)
    what = f"{times} reloads, {load.connections} clients, {name}"
    failed = values_of(found, lambda one: one.count.failed)
    yield Figure(f"failed, {what}", "requests", failed, [at_most(0, failed.get(US))], found)
    yield Figure(f"answered, {what}", "requests", values_of(found, lambda one: one.count.requests))
    if not load.close:
        closed = values_of(found, lambda one: one.count.closed)
        again = values_of(found, lambda one: one.count.reconnects)
        yield Figure(f"closed by the server, {what}", "connections", closed, [at_most(0, closed.get(US))])
        yield Figure(f"reconnects, {what}", "connections", again, [at_most(0, again.get(US))])
    ratios = values_of(found, lambda one: one.ratio)
    yield Figure(f"p99 during, {what}", "ms", values_of(found, lambda one: one.during.p99))
    yield Figure(f"p99 otherwise, {what}", "ms", values_of(found, lambda one: one.steady.p99))
    yield Figure(f"p99 during / otherwise, {what}", "×", ratios, [Mark("≤ 2", ratios.get(US), 2.0)])


@dataclass(frozen=True, slots=True)
class Speed:
    """The durations of a reload and its parts.

    Attributes:
        seconds: of each reload.
        importing: seconds of each import of the app by a new interpreter.
        replacing: seconds of each replacement of a worker, from the fork to the predecessor's end.
    """

    seconds: list[float]
    importing: list[float]
    replacing: list[float]

    @property
    def bound(self) -> float:
        """Return the bound for a reload of four workers."""
        return statistics.median(self.importing) + 4 * statistics.median(self.replacing) + SLACK

    def __str__(self) -> str:
        return f"{self.seconds} s, may take {self.bound:.2f}; import {self.importing} s, one worker {self.replacing} s"


def _speed(plan: Plan) -> Figure:
    """Measure a reload under load, over connections that can all move."""
    load = Load(16, math.inf, think=0.05)
    env = {"BENCH_IMPORT_SECONDS": str(SLOWER)}

    def measure(name: str) -> Speed:
        speed = Speed([], [], [])

        async def during(server: Running) -> None:
            for _ in range(plan.times(5, 2)):
                await asyncio.sleep(0.5)
                speed.importing.append(await asyncio.to_thread(_import, env))
                speed.replacing.append(await _timed(server, "recycle", "0"))
                speed.seconds.append(await _timed(server, "reload"))

        with running(name, ENDPOINTS, workers=4, env=env) as server:
            counted: Count = run(count(server.target, load, lambda: during(server)))
        if counted.failed or counted.closed:
            raise BenchError(f"a reload cost something: {counted}")
        return speed

    found = each(plan.pick(US), measure)
    values = values_of(found, lambda one: statistics.median(one.seconds))
    ours = found.get(US)
    bound = math.nan if ours is None else round(ours.bound, 3)
    mark = Mark(f"≤ import + 4 × one worker + {SLACK} s = {bound}", values.get(US), bound)
    return Figure("a reload of 4 workers, a FastAPI app whose import takes 1.2 s", "s", values, [mark], found)


def _import(env: dict[str, str]) -> float:
    """Return the seconds that a new interpreter takes to import the app."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", f"import {ENDPOINTS.asgi.partition(':')[0]}"], env=environment(env), check=True
    )
    return round(time.perf_counter() - began, 3)


async def _timed(server: Running, *words: str) -> float:
    """Return the seconds that a command takes, from the request on the control socket to the response."""
    verb, params = words[0], {"worker": int(words[1])} if words[1:] else {}
    began = time.perf_counter()
    await asyncio.to_thread(control.ask, server.pids, verb, params)
    return round(time.perf_counter() - began, 3)


def _stuck(plan: Plan) -> Figure:
    """Measure new connections while one of four workers computes for a second, again and again."""
    load = Load(16, plan.size(8, 3), think=0.05, close=True, expect=b"hello")

    async def one(target: Target) -> None:
        try:
            connection = await Connection.open(target)
            await connection.exchange(target.request(close=True))
        except Failed:
            return
        connection.close()

    async def load_it(target: Target) -> Count:
        async def during() -> None:
            end = time.monotonic() + load.seconds - 1
            while time.monotonic() < end:
                await one(target.at("/stuck"))

        return await count(target, load, during)

    def measure(name: str) -> Count:
        with running(name, workers=4) as server:
            return run(load_it(server.target))

    found = each(plan.pick(*(name for name in EVERYONE if name not in ("nginx", "haproxy"))), measure)
    values = values_of(found, lambda one: one.latency.p99)
    return Figure(
        "p99 of new connections, one of 4 workers computes for 1 s", "ms", values, [at_most(20, values.get(US), "ms")],
        found,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Idle:
    """Idle connections through a reload.

    Attributes:
        seconds: the duration of the reload.
        peak: the maximum of the biggest process's resident MiB during the reload.
        before: the biggest process's resident MiB before the reload.
    """

    rest: Rest
    seconds: float
    peak: float
    before: float

    def __str__(self) -> str:
        return f"{self.rest}; {self.seconds} s; biggest process {self.before} MiB, at most {self.peak}"


def _idle(plan: Plan) -> Iterator[Figure]:
    """Measure idle connections at the keeper, and idle connections with the workers, which have to hand over all of them."""
    number = int(plan.size(10_000, 2_000))
    for where, settle in (("at the keeper", 4.0), ("with their workers", 0.0)):

        def measure(name: str, settle: float = settle) -> Idle:
            with running(name, workers=plan.workers) as server:
                return _through(server, number, settle)

        found = each(plan.pick(US), measure)
        what = f"{number:,} idle connections {where}, a reload"
        lost = values_of(found, lambda one: one.rest.lost + one.rest.closed)
        seconds = values_of(found, lambda one: one.seconds)
        peak = values_of(found, lambda one: one.peak)
        yield Figure(f"closed or lost, {what}", "connections", lost, [at_most(0, lost.get(US))], found)
        yield Figure(f"duration, {what}", "s", seconds, [at_most(3, seconds.get(US), "s")])
        yield Figure(f"biggest process, {what}", "MiB resident", peak, [at_most(80, peak.get(US), "MiB")])


def _through(server: Running, number: int, settle: float) -> Idle:
    took, peak, before = 0.0, 0.0, 0.0

    def roll() -> None:
        nonlocal took, peak, before
        before = peak = _biggest(server)
        began = time.perf_counter()
        with control.Asking(server.pids, "reload", {}) as asking:
            while not asking.answered(0.05):
                peak = max(peak, _biggest(server))
        took = round(time.perf_counter() - began, 2)
        peak = max(peak, _biggest(server))

    found = run(rest(server.target, connections=number, settle=settle, rate=2000.0, seconds=math.inf, at_rest=roll))
    return Idle(found, took, peak, before)


def _biggest(server: Running) -> float:
    return round(max((proc.rss(each.pid) for each in proc.tree(server.pid)), default=0) / MIB, 1)
