"""Speed and size of the main job: throughput, cost of the master, memory, healing."""

from __future__ import annotations

from collections.abc import Iterator

from bench import heal, idle, memory, throughput
from bench.catalogue import HEAVY
from bench.report import US, Figure, against, at_most
from bench.rounds import Rounds
from bench.servers import all_running, running
from bench.suites.plan import Plan, compared, each, say, values_of


def figures(plan: Plan) -> Iterator[Figure]:
    """Measure throughput, an idle master, the memory of a heavy application, and the time to heal."""
    yield _throughput(plan)
    yield from _idle(plan)
    yield from _memory(plan)
    yield from _heal(plan)


def _throughput(plan: Plan) -> Figure:
    how = Rounds(connections=64, seconds=int(plan.size(3, 1)), rounds=plan.times(7, 3))
    with all_running(plan.pick("uvicorn", US, "granian", "gunicorn-asgi"), workers=plan.workers) as servers:
        found = throughput.compare(servers, how)
    say(str(found))
    name = "throughput, empty handler, 64 keep-alive connections"
    return compared(name, "requests/s", found, 0.97, at_least=True)


def _idle(plan: Plan) -> Iterator[Figure]:
    def measure(name: str) -> idle.Idle:
        with running(name, workers=8) as server:
            return idle.measure(server, seconds=plan.size(20, 3))

    found = each(plan.pick(US, "uvicorn", "granian", "gunicorn-asgi"), measure)
    cpu = values_of(found, lambda one: one.master_cpu)
    rss = values_of(found, lambda one: one.master_rss)
    yield Figure("master, idle, 8 workers", "% of a core", cpu, [at_most(0.1, cpu.get(US), "%")], found)
    yield Figure("master, resident", "MiB", rss, [at_most(30, rss.get(US), "MiB")])


def _memory(plan: Plan) -> Iterator[Figure]:
    requests = int(plan.size(100_000, 2_000))

    def measure(name: str) -> memory.Memory:
        with running(name, HEAVY, plan.workers) as server:
            return memory.measure(server, requests=requests)

    found = each(plan.pick(US, "uvicorn", "granian", "gunicorn-asgi"), measure)
    before = values_of(found, lambda one: one.before)
    after = values_of(found, lambda one: one.after)
    name = f"memory of {plan.workers} workers and all that belongs to them, heavy app"
    yield Figure(name, "MiB PSS", before, [against(0.42, before, "uvicorn")], found)
    yield Figure(f"the same after {requests:,} requests", "MiB PSS", after, [against(0.42, after, "uvicorn")])


def _heal(plan: Plan) -> Iterator[Figure]:
    for longer in (0, 2):
        env = {"BENCH_IMPORT_SECONDS": str(longer)}

        def measure(name: str, env: dict[str, str] = env) -> heal.Heal:
            with running(name, HEAVY, plan.workers, env=env) as server:
                return heal.measure(server, kills=plan.times(7, 2))

        found = each(plan.pick(US, "uvicorn", "gunicorn-asgi"), measure)
        times = values_of(found, lambda one: one.median)
        what = f", its import {longer} s longer" if longer else ""
        name = f"kill -9 of a worker to its replacement, heavy app{what}"
        yield Figure(name, "ms", times, [at_most(50, times.get(US), "ms")], found)
