"""Thousands of idle connections: their cost, their wake-up, and those that a killed worker loses."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bench import control, heal, proc
from bench.client import run
from bench.memory import MIB
from bench.report import US, Figure, at_most
from bench.resting import Rest, rest
from bench.servers import Running, running
from bench.suites.plan import Plan, each, values_of

SETTLE = 5.0
"""Seconds of idleness, longer than `handoff_idle_after`'s default of 2, with time to move thousands."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The cost of idle connections.

    Attributes:
        resident: resident MiB of the process that keeps them; None: there is no such process.
        cpu: CPU of that process in percent of one core, while no connection wakes.
        tree: proportional set size of the whole tree in MiB.
    """

    rest: Rest
    resident: float | None
    cpu: float | None
    tree: float


def figures(plan: Plan) -> Iterator[Figure]:
    """Measure 18,000 idle connections, and 2,000 over the death of a worker."""
    yield from _kept(plan)
    yield _killed(plan)


def _keep(plan: Plan, server: Running, connections: int) -> Kept:
    resident: float | None = None
    cpu: float | None = None
    tree = 0.0

    def look() -> None:
        nonlocal resident, cpu, tree
        keeper = control.status(server.pids).keeper if server.name == US else None
        if keeper is not None:
            seconds = plan.size(10, 2)
            used = proc.cpu(keeper)
            time.sleep(seconds)
            cpu = round(100 * (proc.cpu(keeper) - used) / seconds, 4)
            resident = round(proc.rss(keeper) / MIB, 1)
        tree = round(proc.tree_pss(server.pid) / MIB, 1)

    found = run(rest(server.target, connections=connections, settle=SETTLE, rate=2000, seconds=8, at_rest=look))
    return Kept(found, resident, cpu, tree)


def _kept(plan: Plan) -> Iterator[Figure]:
    connections = int(plan.size(18_000, 1_000))

    def measure(name: str) -> Kept:
        with running(name, workers=plan.workers) as server:
            return _keep(plan, server, connections)

    found = each(plan.pick(US, "uvicorn", "granian", "gunicorn-asgi"), measure)
    resident = values_of(found, lambda one: one.resident)
    cpu = values_of(found, lambda one: one.cpu)
    p50 = values_of(found, lambda one: one.rest.latency.p50)
    p99 = values_of(found, lambda one: one.rest.latency.p99)
    lost = values_of(found, lambda one: one.rest.lost)
    what = f"{connections:,} connections at rest"
    yield Figure(f"keeper, {what}", "MiB resident", resident, [at_most(25, resident.get(US), "MiB")], found)
    yield Figure(f"keeper, {what}, nothing wakes", "% of a core", cpu, [at_most(0.1, cpu.get(US), "%")])
    yield Figure(f"whole tree, {what}", "MiB PSS", values_of(found, lambda one: one.tree))
    yield Figure(f"{what}, woken at 2,000/s, p50", "ms", p50)
    yield Figure(f"{what}, woken at 2,000/s, p99", "ms", p99, [at_most(3, p99.get(US), "ms")])
    yield Figure(f"{what}, woken at 2,000/s, lost", "connections", lost, [at_most(0, lost.get(US))])


def _killed(plan: Plan) -> Figure:
    connections = int(plan.size(2_000, 500))

    def measure(name: str) -> Rest:
        with running(name, workers=plan.workers) as server:
            victim = min(heal.workers(server))
            return run(
                rest(
                    server.target,
                    connections=connections,
                    settle=SETTLE,
                    seconds=10,
                    at_rest=lambda: os.kill(victim, signal.SIGKILL),
                )
            )

    found = each(plan.pick(US, "uvicorn", "granian", "gunicorn-asgi"), measure)
    lost = values_of(found, lambda one: one.lost)
    name = f"kill -9 of a worker, {connections:,} connections idle for {SETTLE:g} s, lost"
    return Figure(name, "connections", lost, [at_most(0, lost.get(US))], found)
