"""What a request costs: CPU time of whole process trees, and throughput, on an empty handler."""

from __future__ import annotations

from collections.abc import Iterator

from bench.report import US, Figure, Mark, against, at_most
from bench.rounds import Comparison, Rounds, compare, measure
from bench.servers import Running, all_running
from bench.suites.plan import Plan, say

CASES = (
    # connections, a connection a request, bounds of CPU time and throughput against uvicorn
    (64, False, 0.95, 1.0),
    (500, False, 0.95, 1.0),
    (64, True, 1.03, 0.97),
)


def figures(plan: Plan) -> Iterator[Figure]:
    """CPU time and throughput, over keep-alive and with a connection a request, from the same rounds."""
    names = plan.pick("uvicorn", US, "granian", "gunicorn-asgi")
    with all_running(names, workers=plan.workers) as servers:
        for connections, close, cpu, throughput in CASES:
            yield from _case(plan, servers, connections, close, cpu, throughput)


def _case(
    plan: Plan, servers: list[Running], connections: int, close: bool, cpu: float, throughput: float
) -> Iterator[Figure]:
    seconds, rounds = int(plan.size(3, 1)), plan.times(7, 3)
    series = measure(servers, Rounds(connections, seconds, rounds, close))
    over = "a connection a request" if close else "keep-alive"
    what = f"empty handler, {connections} connections, {over}"
    for name, unit, found, bound, more in (
        ("CPU time a request", "µs", compare(series, cpu=True), cpu, False),
        ("throughput", "requests/s", compare(series, cpu=False), throughput, True),
    ):
        say(f"{what}: {found}")
        yield figure(f"{name}, {what}", unit, found, bound, at_least=more)


def figure(name: str, unit: str, found: Comparison, bound: float, *, at_least: bool) -> Figure:
    """A comparison as a row; the mark holds the median of the ratios of pairs against the bound."""
    marks: list[Mark] = []
    if "uvicorn" in found.ratios:
        marks.append(against(bound, found.ratios, "uvicorn", at_least=at_least))
    if found.errors.get(US):
        marks.append(at_most(0, found.errors[US], "errors"))
    details = {"ratios": found.ratios, "rounds": found.rounds, "errors": found.errors}
    return Figure(name, unit, found.medians, marks, details)
