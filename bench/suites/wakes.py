"""The cost of many workers: each new connection, and each ready one, wakes all that are free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench import proc
from bench.openloop import Arrivals, Tail
from bench.report import US, Figure, Mark, ratio
from bench.servers import Running, all_running
from bench.stats import middle
from bench.suites.plan import Plan, say
from bench.suites.tail import EACH, KEPT, SLOW, Way

RATE = 400.0


@dataclass(frozen=True, slots=True)
class Price:
    """CPU microseconds for each request of the whole tree, and the tail."""

    cpu: float
    tail: Tail


def figures(plan: Plan) -> Iterator[Figure]:
    """Measure CPU for each request and p99 of the fast ones, with 4, 16 and 48 workers, both ways."""
    first: dict[str, tuple[float | None, float | None]] = {}
    for workers in (4, 16) if plan.quick else (4, 16, 48):
        with all_running(plan.pick(US, "uvicorn"), workers=workers) as servers:
            for way in (EACH, KEPT):
                found = {
                    server.name: [_price(plan, server, way, n) for n in range(plan.times(3))] for server in servers
                }
                cpu = {name: middle([one.cpu for one in prices]) for name, prices in found.items()}
                p99 = {name: middle([one.tail.fast.p99 for one in prices]) for name, prices in found.items()}
                base_cpu, base_p99 = first.setdefault(way.name, (cpu.get(US), p99.get(US)))
                what = f"{workers} workers, {RATE:g} requests/s, {way.name}"
                marks = [_mark(2.0, cpu.get(US), base_cpu)] if workers > 4 else []
                yield Figure(f"CPU time a request, {what}", "µs", cpu, marks, dict(found))
                marks = [_mark(1.0, p99.get(US), base_p99)] if workers > 4 else []
                yield Figure(f"p99 of the fast ones, {what}", "ms", p99, marks)


def _mark(bound: float, value: float | None, base: float | None) -> Mark:
    return Mark(f"≤ {bound:g} × with 4 workers", ratio({US: value, "base": base}, "base"), bound)


def _price(plan: Plan, server: Running, way: Way, number: int) -> Price:
    used = proc.tree_cpu(server.pid)
    tail = way.load(server.target, Arrivals(RATE, SLOW, plan.size(8, 2), number + 1))
    used = proc.tree_cpu(server.pid) - used
    requests = tail.fast.count + tail.slow.count
    price = Price(round(used / requests * 1e6, 1) if requests else 0.0, tail)
    say(f"{server.name}, {server.workers} workers, {way.name}: {price.cpu} µs a request, {tail}")
    return price
