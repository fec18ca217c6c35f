"""The cost of a request in its usual forms: CPU time of whole process trees, and throughput, side by side in one run.

Servers are compared in pairs of the same round. The mark compares the median of these ratios with the bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench.catalogue import FASTAPI, FLASK, HELLO, STARLETTE, App
from bench.report import Figure, Mark, at_most
from bench.rounds import Comparison, Load, Rounds, Series, compare, measure
from bench.servers import all_running
from bench.suites.plan import Plan, say

US, UVICORN, GRANIAN = "cluster2", "uvicorn", "granian"
INLINE, THREADED, GRANIAN_WSGI = "cluster2-wsgi-0", "cluster2-wsgi-8", "granian-wsgi"
WORKERS = 2


@dataclass(frozen=True, slots=True)
class Case:
    """A form of requests.

    Attributes:
        bounds: the bounds of the CPU time, by the server that cluster2 is compared with.
        rates: the bounds of the throughput, likewise.
    """

    name: str
    bounds: Mapping[str, float]
    app: App = HELLO
    ours: str = US
    connections: int = 64
    close: bool = False
    path: str = "/"
    body: int = 0
    load: Load = Load.REQUESTS
    rates: Mapping[str, float] | None = None


CASES = (
    Case("ASGI, empty handler", {UVICORN: 0.70, GRANIAN: 0.70}, rates={UVICORN: 1.25, GRANIAN: 1.1}),
    Case("ASGI, empty handler, 500 connections", {UVICORN: 0.58, GRANIAN: 0.85}, connections=500),
    Case("ASGI, empty handler, a connection a request", {UVICORN: 0.62, GRANIAN: 0.95}, close=True),
    Case("Starlette, JSON", {UVICORN: 0.72, GRANIAN: 0.92}, STARLETTE),
    Case("FastAPI, JSON", {UVICORN: 0.72, GRANIAN: 0.92}, FASTAPI),
    Case("responses of 1 MiB", {UVICORN: 0.9, GRANIAN: 1.0}, path="/megabyte"),
    Case("uploads of 1 MiB", {UVICORN: 0.9, GRANIAN: 1.0}, path="/upload", body=1 << 20),
    Case("64 KiB in chunks of 1 KiB", {UVICORN: 0.9, GRANIAN: 1.0}, path="/chunks"),
    Case("websocket echoes, 200 connections", {UVICORN: 0.9}, connections=200, load=Load.ECHOES),
    Case("WSGI inline, empty app", {GRANIAN_WSGI: 0.60}, ours=INLINE),
    Case("WSGI inline, Flask", {GRANIAN_WSGI: 0.90}, FLASK, ours=INLINE),
    Case("WSGI in 8 threads, empty app", {GRANIAN_WSGI: 1.0}, ours=THREADED),
)


def figures(plan: Plan) -> Iterator[Figure]:
    """Measure the CPU time of each form, and the throughput of the first one."""
    for case in CASES:
        others = [GRANIAN_WSGI] if case.ours != US else [UVICORN, GRANIAN]
        names = plan.pick(case.ours, *others)
        how = Rounds(
            case.connections,
            int(plan.size(2, 1)),
            plan.times(7, 2),
            close=case.close,
            path=case.path,
            body=case.body,
            load=case.load,
        )
        with all_running(names, case.app, workers=WORKERS) as servers:
            series = measure(servers, how)
        yield _figure(f"CPU time, {case.name}", "µs", case, series, case.bounds, cpu=True)
        if case.rates is not None:
            yield _figure(f"throughput, {case.name}", "requests/s", case, series, case.rates, cpu=False)


def _figure(
    name: str, unit: str, case: Case, series: Mapping[str, Series], bounds: Mapping[str, float], *, cpu: bool
) -> Figure:
    found = compare(dict(series), cpu=cpu)
    say(f"{name}: {found}")
    marks: list[Mark] = [_mark(found, other, bound, at_least=not cpu) for other, bound in bounds.items()]
    marks.append(at_most(0, found.errors.get(case.ours), "errors"))
    details = {"ratios": found.ratios, "rounds": found.rounds, "errors": found.errors}
    # cluster2 is one column, whatever its engine.
    values = {US if server == case.ours else server: value for server, value in found.medians.items()}
    return Figure(name, unit, values, marks, details)


def _mark(found: Comparison, other: str, bound: float, *, at_least: bool) -> Mark:
    """Return the mark. The ratios are of the other servers to cluster2, which comes first."""
    theirs = found.ratios.get(other)
    return Mark(f"{'≥' if at_least else '≤'} {bound:g} × {other}", 1 / theirs if theirs else None, bound, at_least)
