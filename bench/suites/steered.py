"""granian as cluster2's engine, beside granian alone: throughput, tail, and failures in rolls."""

from __future__ import annotations

from collections.abc import Iterator

from bench import openloop
from bench.apps import HOLD
from bench.catalogue import HELLO
from bench.client import run
from bench.counting import Load
from bench.openloop import Arrivals
from bench.report import US, Figure, Mark, Values, at_most, ratio
from bench.rolling import Roll, roll
from bench.rounds import Rounds, compare, measure
from bench.servers import Running, all_running, running
from bench.suites.plan import Plan, each, medians, rate, say, values_of

PAIRS = {
    "cluster2-granian": "granian",
    "cluster2-granian-rsgi": "granian-rsgi",
    "cluster2-granian-wsgi": "granian-wsgi",
}
"""cluster2's server, and the one that it is compared with."""


def figures(plan: Plan) -> Iterator[Figure]:
    """Measure throughput and tail for each interface, compared with granian's own, then failures in four rolls."""
    for ours, alone in PAIRS.items():
        with all_running(plan.pick(alone, ours), HELLO, plan.workers) as servers:
            found = compare(measure(servers, Rounds(64, int(plan.size(3, 1)), plan.times(7, 3), False)), cpu=False)
            say(f"{ours}: {found}")
            mark = Mark("≥ 0.97 × alone", _through(found.medians, ours, alone), 0.97, True)
            yield Figure(f"throughput, {ours}", "requests/s", found.medians, [mark])
            p99 = _tails(plan, servers)
            mark = Mark("≤ 0.6 × alone", _through(p99, ours, alone), 0.6)
            yield Figure(f"p99 of the fast ones at 60 %, {ours}", "ms", p99, [mark])
    yield _rolls(plan)


def _through(values: Values, ours: str, alone: str) -> float | None:
    return ratio({US: values.get(ours), "alone": values.get(alone)}, "alone")


def _tails(plan: Plan, servers: list[Running]) -> Values:
    tails: dict[str, list[float | None]] = {server.name: [] for server in servers}
    for number in range(plan.times(5)):
        for server in servers:
            arrivals = Arrivals(rate(0.6, HOLD, 0.1, plan.workers), 0.1, plan.size(8, 2), number + 1, "/")
            tail = run(openloop.load(server.target, arrivals))
            say(f"{server.name}: {tail}")
            tails[server.name].append(tail.fast.p99)
    return medians(tails)


def _rolls(plan: Plan) -> Figure:
    load = Load(int(plan.size(200, 40)), plan.size(24, 8), think=0.02, expect=b"hello")

    def rolled(name: str) -> Roll:
        with running(name, workers=plan.workers) as server:
            return run(roll(server, load, times=int(plan.size(4, 1))))

    failed = values_of(each(plan.pick(*PAIRS, "granian"), rolled), lambda one: one.count.failed)
    marks = [at_most(0, failed[name], name) for name in PAIRS if name in failed]
    return Figure(f"failed, {load.connections} connections, rolled", "requests", failed, marks)
