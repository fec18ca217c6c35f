"""Calls from a worker to the master, beside Redis, a Manager and gunicorn's dirty workers, and events between workers.

All callers run in an event loop of the same kind, in turn, pass by pass. A ratio is of a pair of one pass. The CPU time of the
other side is measured as well, since it is more reliable than the rate on a busy machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench import proc
from bench.client import Target
from bench.openloop import Arrivals
from bench.report import US, Figure, Mark, at_most
from bench.servers import wait
from bench.stats import median_ratio, middle, quantile
from bench.suites.plan import Plan, say
from bench.suites.tail import EACH
from bench.talking import READY, Talkers, call_servers, drive_dirty

SAME = 2500
"""The number of equal calls of each of four workers."""
RATE = 600.0
"""Requests a second that the workers serve while events are measured."""
RING = 500
"""The number of events from one worker to all."""
Places = dict[str, tuple[str, int]]


def figures(plan: Plan) -> Iterator[Figure]:
    """Measure one call at a time, 64 under way, 64 in each of four workers, equal calls, and events."""
    with call_servers(4) as (talkers, places):
        one = talkers.pids()[:1]
        found = _rounds(plan, talkers, places, one, 1)
        ratio = _ratio(found, "p50")
        marks = [Mark("≤ 1.1 × redis", ratio, 1.1)]
        yield Figure("round trip, one at a time, p50", "ms", _medians(found, "p50"), marks, found)
        found = _rounds(plan, talkers, places, one, 64)
        marks = [Mark("≥ 3 × redis", _ratio(found, "rate"), 3, at_least=True)]
        yield Figure("64 under way from one worker", "calls/s", _medians(found, "rate"), marks, found)
        yield Figure("CPU of both sides a call, 64 under way", "µs", _medians(found, "cost"), [], found)
        alone = middle([each["rate"] for each in found[US]])
        found = _rounds(plan, talkers, {name: places[name] for name in places if name == "redis"}, talkers.pids(), 64)
        all_four = middle([each["rate"] for each in found[US]])
        share = all_four / alone if alone and all_four else None
        marks = [Mark("≥ from one worker", share, 1, at_least=True)]
        yield Figure("64 under way from each of 4 workers", "calls/s", _medians(found, "rate"), marks, found)
        yield _same(talkers)
    with call_servers(9) as (talkers, _):
        yield _events(plan, talkers)


def _rounds(
    plan: Plan, talkers: Talkers, places: Places, pids: list[int], lanes: int
) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {US: [], **{name: [] for name in places}}
    seconds = plan.size(2, 0.5)
    for _ in range(plan.times(5, 2)):
        for name in found:
            place, pid = places.get(name, ("", talkers.pid))
            used = proc.tree_cpu(pid) if name == "gunicorn-dirty" else proc.cpu(pid)
            if name == "gunicorn-dirty":
                told = [drive_dirty(place, lanes, seconds)]
                callers = 0.0  # the callers belong to the tree
                other = proc.tree_cpu(pid) - used
            else:
                told = talkers.drive(pids, driver=name, place=place, lanes=lanes, seconds=seconds)
                callers, other = sum(each["cpu"] for each in told), proc.cpu(pid) - used
            calls = sum(each["calls"] for each in told)
            row = {
                "rate": sum(each["calls"] / each["seconds"] for each in told),
                "p50": middle([each["p50"] for each in told]),
                "p99": max(each["p99"] for each in told),
                "cost": (callers + other) / calls * 1e6,
            }
            found[name].append(row)
            say(f"{name}, {lanes} lanes in {len(told)}: {row}")
    return found


def _medians(found: dict[str, list[dict[str, Any]]], what: str) -> dict[str, float | None]:
    return {name: middle([each[what] for each in rows]) for name, rows in found.items()}


def _ratio(found: dict[str, list[dict[str, Any]]], what: str) -> float | None:
    if "redis" not in found:
        return None
    return median_ratio([each[what] for each in found[US]], [each[what] for each in found["redis"]])


def _same(talkers: Talkers) -> Figure:
    """Make 10,000 equal calls from four workers while one is under way."""
    told = talkers.drive(talkers.pids(), driver="same", place="", times=SAME)
    say(f"equal calls: {told}")
    runs = len({answer for each in told for answer in each["answers"]})  # the handler returns the number of its run
    calls = sum(each["calls"] for each in told)
    return Figure(f"runs of the handler for {calls} equal calls", "", {US: runs}, [at_most(1, runs)], {"told": told})


def _events(plan: Plan, talkers: Talkers) -> Figure:
    """Measure events from one worker to all, while they serve."""
    ringer = talkers.pids()[0]
    seconds = int(plan.size(6, 2))
    talkers.cluster.emit("ring", {"pid": ringer, "times": RING, "seconds": seconds - 0.5})
    # The load has a fixed rate: with saturated cores the figure would be the kernel's delay until a process gets a core.
    EACH.load(Target("127.0.0.1", talkers.port), Arrivals(RATE, 0.0, seconds, 1))
    wait(lambda: len(talkers.ask("delays")) == 9 * RING, READY, every=0.2)
    delays = sorted(talkers.ask("delays"))
    p99 = quantile(delays, 0.99) * 1000 if delays else None
    p50 = quantile(delays, 0.5) * 1000 if delays else None
    say(f"events: {len(delays)} of {RING * 9}, p50 {p50}, p99 {p99} ms")
    return Figure(
        f"p99 of {len(delays)} events to 8 others, at {RATE:g} requests/s",
        "ms",
        {US: p99},
        [at_most(5, p99, "ms")],
        {"p50": p50},
    )
