"""The shares of workers in keep-alive connections that arrive at once, and the share of a worker that starts later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from bench.balance import Balance, Sample, probe
from bench.client import run
from bench.report import US, Figure, at_most
from bench.servers import Running, running
from bench.suites.plan import Plan, each, values_of

MANY, FEW = 200, 16
SETTLE = 0.5
FAIR = 0.9
"""The share of the mean from which on a new worker counts as having its share."""


def figures(plan: Plan) -> Iterator[Figure]:
    """Measure 200 connections, 16 connections, and a worker that is added under the load of 200."""
    yield from _many(plan)
    yield _few(plan)
    yield _added(plan)


def _probe(plan: Plan, name: str, connections: int) -> Balance:
    with running(name, workers=plan.workers) as server:
        return run(probe(server.target, connections=connections, seconds=plan.size(5, 2)))


def _many(plan: Plan) -> Iterator[Figure]:
    names = plan.pick(US, "uvicorn", "granian", "gunicorn-asgi")
    found = each(names, lambda name: _probe(plan, name, MANY))
    worst = values_of(
        found, lambda one: max((sample.max_over_mean(plan.workers) for sample in one.after(SETTLE)), default=None)
    )
    closed = values_of(found, lambda one: one.closed)
    yield Figure(
        f"{MANY} connections at once, max/mean from {SETTLE} s on",
        "ratio",
        worst,
        [at_most(1.05, worst.get(US))],
        found,
    )
    yield Figure("connections closed for it", "connections", closed, [at_most(0, closed.get(US))])


def _few(plan: Plan) -> Figure:
    names = plan.pick(US, "uvicorn", "granian", "gunicorn-asgi")
    found = each(names, lambda name: _probe(plan, name, FEW))
    gap = values_of(found, lambda one: max((sample.gap(plan.workers) for sample in one.after(SETTLE)), default=None))
    return Figure(
        f"{FEW} connections at once, max - min from {SETTLE} s on", "connections", gap, [at_most(2, gap.get(US))], found
    )


def share_after(samples: list[Sample], added: float, workers: int) -> float | None:
    """Return the seconds from `added` to the first sample in which a new worker has its share. None: in none.

    Args:
        added: the time of the request for the worker, on the clock of the samples.
        workers: the number of workers, including the new one.
    """
    known = {pid for sample in samples if sample.at <= added for pid in sample.counts}
    for sample in samples:
        mean = sum(sample.counts.values()) / workers
        if any(number >= FAIR * mean for pid, number in sample.counts.items() if pid not in known):
            return round(sample.at - added, 3)
    return None


def _added(plan: Plan) -> Figure:
    at = plan.size(2, 1)

    async def add(server: Running) -> float | None:
        began, added = time.monotonic(), 0.0

        async def during() -> None:
            nonlocal added
            await asyncio.sleep(at)
            added = time.monotonic() - began
            server.add_worker()

        found = await probe(server.target, connections=MANY, seconds=at + plan.size(6, 3), every=0.05, during=during)
        return share_after(found.samples, added, plan.workers + 1)

    def measure(name: str) -> float | None:
        with running(name, workers=plan.workers) as server:
            return run(add(server))

    values = each(plan.pick(US, "uvicorn", "gunicorn-asgi"), measure)
    return Figure("a worker added under that load has its share after", "s", values, [at_most(1, values.get(US), "s")])
