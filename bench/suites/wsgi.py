"""WSGI: the cost of a request in threads and inline, with and without a framework, and the tail behind slow requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bench.apps import HOLD
from bench.catalogue import DJANGO, FLASK, HELLO, App
from bench.openloop import Arrivals, Tail
from bench.report import Figure, Mark, Values, at_most
from bench.rounds import Rounds, compare, measure
from bench.servers import Running, all_running
from bench.suites.plan import CORES, Plan, medians, rate, say
from bench.suites.tail import EACH, KEPT, SLOW, Way

THREADED, SINGLE, INLINE = "cluster2-wsgi-8", "cluster2-wsgi-1", "cluster2-wsgi-0"
GTHREAD, GTHREAD_1, SYNC, UWSGI = "gunicorn-gthread-8", "gunicorn-gthread", "gunicorn-sync", "uwsgi"
SHARE = 0.6


def figures(plan: Plan) -> Iterator[Figure]:
    """Measure an empty app and two frameworks with one worker, and the p99 of fast requests beside slow ones with all workers."""
    yield from _cost(plan, HELLO, "empty app")
    for app, name in ((FLASK, "Flask"), (DJANGO, "Django")):
        yield from _cost(plan, app, name)
    yield from _sleeping(plan)
    yield from _computing(plan)


def _mark(bound: float, values: Values, ours: str, other: str, *, at_least: bool = False) -> Mark:
    mine, theirs = values.get(ours), values.get(other)
    value = None if mine is None or not theirs else mine / theirs
    return Mark(f"{ours} {'≥' if at_least else '≤'} {bound:g} × {other}", value, bound, at_least)


def _cost(plan: Plan, app: App, name: str) -> Iterator[Figure]:
    names = plan.pick(THREADED, SINGLE, INLINE, GTHREAD, GTHREAD_1, UWSGI)
    how = Rounds(connections=64, seconds=int(plan.size(3, 1)), rounds=plan.times(7, 3))
    with all_running(names, app, workers=1) as servers:
        series = measure(servers, how)
    for cpu, what, unit in ((False, "throughput", "requests/s"), (True, "CPU time a request", "µs")):
        found = compare(series, cpu=cpu)
        say(f"{name}, {what}: {found}")
        values = found.medians
        marks = [at_most(0, sum(found.errors.values()), "errors")]
        if cpu:
            marks += [_mark(0.45 if app is HELLO else 1, values, ours, UWSGI) for ours in (THREADED, INLINE)]
        else:
            bounds = (4, 5) if app is HELLO else (1, 1)
            marks.append(_mark(bounds[0], values, THREADED, GTHREAD, at_least=True))
            marks.append(_mark(bounds[1], values, INLINE, GTHREAD_1, at_least=True))
        title = f"WSGI, {name}, one worker, 64 keep-alive connections, {what}"
        yield Figure(title, unit, values, marks, {"rounds": found.rounds, "errors": found.errors})


def _tails(plan: Plan, servers: list[Running], capacity: int, way: Way) -> dict[str, list[Tail]]:
    found: dict[str, list[Tail]] = {server.name: [] for server in servers}
    for number in range(plan.times(3)):
        for server in servers:
            arrivals = Arrivals(rate(SHARE, HOLD, SLOW, capacity), SLOW, plan.size(8, 2), number + 1)
            found[server.name].append(way.load(server.target, arrivals))
            say(f"{server.name}, {way.name}: {found[server.name][-1]}")
    return found


def _p99(found: Mapping[str, list[Tail]]) -> Values:
    return medians({name: [tail.fast.p99 for tail in tails] for name, tails in found.items()})


def _closed(found: Mapping[str, list[Tail]], *names: str) -> Mark:
    return at_most(0, sum(tail.closed for name in names for tail in found.get(name, [])), "closed")


def _sleeping(plan: Plan) -> Iterator[Figure]:
    """Measure while one request in ten sleeps 30 ms in its worker's only thread, or on its loop."""
    names = plan.pick(SINGLE, INLINE, SYNC, GTHREAD_1, UWSGI)
    with all_running(names, HELLO, plan.workers) as servers:
        each, kept = (_tails(plan, servers, plan.workers, way) for way in (EACH, KEPT))
    new, old = _p99(each), _p99(kept)
    title = "WSGI, p99 of the fast ones, slow ones sleep, 60%"
    yield Figure(f"{title}, {EACH.name}", "ms", new, [_mark(1.05, new, ours, SYNC) for ours in (SINGLE, INLINE)])
    marks = [
        _mark(1.1, {**old, "a connection a request": new.get(ours)}, ours, "a connection a request")
        for ours in (SINGLE, INLINE)
    ]
    yield Figure(f"{title}, {KEPT.name}", "ms", old, [*marks, _closed(kept, SINGLE, INLINE)], dict(kept))


def _computing(plan: Plan) -> Iterator[Figure]:
    """Measure while one request in ten computes for 30 ms in one of eight threads."""
    names = plan.pick(THREADED, GTHREAD, UWSGI)
    with all_running(names, HELLO, plan.workers, env={"BENCH_SLOW": "compute"}) as servers:
        found = _tails(plan, servers, CORES, KEPT)
    values = _p99(found)
    title = f"WSGI, p99 of the fast ones, slow ones compute, 60%, eight threads, {KEPT.name}"
    yield Figure(title, "ms", values, [_mark(0.6, values, THREADED, GTHREAD), _closed(found, THREADED)], dict(found))
