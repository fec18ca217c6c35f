"""The tail: the latency of requests while one in ten of the others holds its worker for 30 ms.

In one run the slow ones sleep, so that four workers hold four at a time and the cores are free. In the other they compute, so
that the cores are the capacity. Utilisation is the share of that capacity that slow requests take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench import openloop, openloop_keepalive
from bench.apps import HOLD
from bench.catalogue import ENDPOINTS, HELLO
from bench.client import Target, run
from bench.openloop import Arrivals, Tail
from bench.report import US, Figure, Mark, Values, against, at_most, ratio
from bench.rounds import Rounds, compare, measure
from bench.servers import Running, all_running
from bench.suites.plan import CORES, Plan, compared, medians, rate, say

SLOW = 0.1
POOL = 64
EVERYONE = (US, "uvicorn", "granian", "gunicorn-sync", "gunicorn-gthread", "gunicorn-asgi", "uwsgi")


@dataclass(frozen=True, slots=True)
class Way:
    """A way in which clients connect."""

    name: str
    load: Callable[[Target, Arrivals], Tail]


def _each(target: Target, arrivals: Arrivals) -> Tail:
    return run(openloop.load(target, arrivals))


def _pool(target: Target, arrivals: Arrivals) -> Tail:
    return run(openloop_keepalive.load(target, arrivals, pool=POOL))


EACH = Way("a connection a request", _each)
KEPT = Way(f"{POOL} keep-alive connections", _pool)


def figures(plan: Plan) -> Iterator[Figure]:
    """Measure the p99 of fast requests, both ways, at three utilisations, sleeping and computing, and from a cold start."""
    for hold in ("sleep", "compute"):
        at_sixty: Values = {}
        names = plan.pick(*EVERYONE)
        capacity = CORES if hold == "compute" else plan.workers
        with all_running(names, HELLO, plan.workers, env={"BENCH_SLOW": hold}) as servers:
            for share in (0.6,) if plan.quick else (0.3, 0.6, 0.8):
                each, kept = (_tails(plan, servers, hold, share, capacity, way) for way in (EACH, KEPT))
                yield _row(hold, share, EACH, each, _marks_each(share, each))
                yield _row(hold, share, KEPT, kept, _marks_kept(share, kept, each))
                at_sixty = _p99(each) if share == 0.6 else at_sixty
        yield _cold(plan, hold, capacity, at_sixty)


def _arrivals(plan: Plan, share: float, capacity: int, seed: int, fast: str = "/") -> Arrivals:
    return Arrivals(rate(share, HOLD, SLOW, capacity), SLOW, plan.size(8, 2), seed, fast)


def _tails(
    plan: Plan, servers: list[Running], hold: str, share: float, capacity: int, way: Way, fast: str = "/"
) -> dict[str, list[Tail]]:
    """Make some passes over all servers in turn, each pass with equal arrivals for all."""
    found: dict[str, list[Tail]] = {server.name: [] for server in servers}
    for number in range(plan.times(3)):
        for server in servers:
            tail = way.load(server.target, _arrivals(plan, share, capacity, number + 1, fast))
            say(f"{server.name}, {hold}, {share:.0%}, {way.name}: {tail}")
            found[server.name].append(tail)
    return found


def _p99(found: dict[str, list[Tail]]) -> dict[str, float | None]:
    return medians({name: [tail.fast.p99 for tail in tails] for name, tails in found.items()})


def _row(hold: str, share: float, way: Way, found: dict[str, list[Tail]], marks: list[Mark]) -> Figure:
    name = f"p99 of the fast ones, slow ones {hold}, {share:.0%}, {way.name}"
    return Figure(name, "ms", _p99(found), marks, dict(found))


def _marks_each(share: float, found: dict[str, list[Tail]]) -> list[Mark]:
    values = _p99(found)
    bounds = [(1.05, "gunicorn-sync"), (0.35, "granian")]
    if share == 0.6:
        bounds += [(0.85, "uvicorn"), (1.15, "uwsgi")]
    return [against(bound, values, other) for bound, other in bounds]


def _marks_kept(share: float, found: dict[str, list[Tail]], each: dict[str, list[Tail]]) -> list[Mark]:
    values = _p99(found)
    marks = [_beside(1.1, values, _p99(each)), against(0.35, values, "uvicorn")]
    if share == 0.6:
        marks.append(against(1.15, values, "uwsgi"))
    closed = sum(tail.closed for tail in found[US]) if found.get(US) else None
    return [*marks, at_most(0, closed, "closed")]


def _beside(bound: float, kept: Values, each: Values) -> Mark:
    """Return a mark of cluster2's own figure over keep-alive, compared with that for a connection for each request."""
    value = ratio({US: kept.get(US), "each": each.get(US)}, "each")
    return Mark(f"≤ {bound:g} × a connection a request", value, bound)


def _cold(plan: Plan, hold: str, capacity: int, each: Values) -> Figure:
    """Measure a new server in each pass, its first second included."""
    tails: dict[str, list[Tail]] = {name: [] for name in plan.pick(US, "uvicorn")}
    for number in range(plan.times(5)):
        for name in tails:
            with all_running([name], HELLO, plan.workers, env={"BENCH_SLOW": hold}) as servers:
                for server in servers:
                    arrivals = _arrivals(plan, 0.6, capacity, number + 1)
                    tails[name].append(run(openloop_keepalive.load(server.target, arrivals, pool=POOL, warm=False)))
                    say(f"{name}, {hold}, cold: {tails[name][-1]}")
    values = _p99(tails)
    name = f"p99 of the fast ones, slow ones {hold}, 60%, {KEPT.name}, from a cold start"
    return Figure(name, "ms", values, [_beside(1.3, values, each)], dict(tails))


def threads(plan: Plan) -> Iterator[Figure]:
    """Measure the tail while slow ones compute in threads, 45 % of the cores, and the throughput of trivial work in threads."""
    names = plan.pick("uvicorn", US, "granian", "gunicorn-asgi")
    with all_running(names, ENDPOINTS, plan.workers) as servers:
        for fast, others in (("/async", "on the loop"), ("/", "in threads, too")):
            for way in (EACH, KEPT):
                hold = f"compute in threads, the others {others}"
                found = _tails(plan, servers, hold, 0.45, CORES, way, fast)
                marks = [against(0.6, _p99(found), "uvicorn")] if fast == "/async" else []
                yield _row(hold, 0.45, way, found, marks)
        for connections in (64, 500):
            how = Rounds(connections, int(plan.size(3, 1)), plan.times(7, 3))
            rounds = compare(measure(servers, how), cpu=False)
            name = f"throughput, trivial endpoint in a thread, {connections} keep-alive connections"
            say(f"{name}: {rounds}")
            yield compared(name, "requests/s", rounds, 0.95, at_least=True)
