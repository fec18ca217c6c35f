"""Thousands of mostly idle clients while all workers are replaced, twice."""

from __future__ import annotations

from collections.abc import Iterator

from bench.client import run
from bench.counting import Load
from bench.report import US, Figure, Mark, at_most, ratio
from bench.rolling import Roll, roll
from bench.servers import running
from bench.suites.plan import Plan, each, values_of

EVERYONE = (US, "uvicorn", "granian", "gunicorn-gthread", "gunicorn-asgi", "uwsgi")


def figures(plan: Plan) -> Iterator[Figure]:
    """Measure failed requests, closed connections, the time until a worker exits, and p99 beside that of an undisturbed run."""
    load = Load(int(plan.size(2000, 200)), plan.size(16, 6), think=plan.size(5, 1), expect=b"hello")

    def measure(name: str, times: int) -> Roll:
        with running(name, workers=plan.workers) as server:
            found = run(roll(server, load, times=times))
        return found

    names = plan.pick(*EVERYONE)
    calm = each(names, lambda name: measure(name, 0))
    rolled = each(names, lambda name: measure(name, 2))
    what = f"{load.connections:,} keep-alive connections thinking 0-{load.think:g} s, rolled twice"

    failed = values_of(rolled, lambda one: one.count.failed)
    closed = values_of(rolled, lambda one: one.count.closed)
    left = values_of(rolled, lambda one: max(one.left, default=None))
    p99 = values_of(rolled, lambda one: one.count.latency.p99)
    before = values_of(calm, lambda one: one.count.latency.p99)
    disturbed = ratio({US: p99.get(US), "calm": before.get(US)}, "calm")
    what = f"{load.connections:,} keep-alive connections thinking 0-{load.think:g} s, rolled twice"
    details = {"rolled": rolled, "calm": calm}
    yield Figure(f"failed, {what}", "requests", failed, [at_most(0, failed.get(US))], details)
    yield Figure(f"closed by the server, {what}", "connections", closed, [at_most(0, closed.get(US))])
    yield Figure(f"replaced, {what}", "processes", values_of(rolled, lambda one: one.replaced))
    yield Figure(f"slowest worker to leave, {what}", "ms", left, [at_most(20, left.get(US), "ms")])
    yield Figure(f"p99, {what}", "ms", p99, [Mark("≤ 2 × undisturbed", disturbed, 2.0)])
    yield Figure("p99 of the same clients undisturbed", "ms", before)
