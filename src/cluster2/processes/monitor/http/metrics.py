"""`/metrics`: the cluster for Prometheus.

Each scrape reads the scoreboard. Metrics are by *slot* and for the cluster. There are as many slots as wanted workers. A label
with the pid would leave another series behind with each recycle. Counters go on over recycles, crashes, reloads and the end of
this process (`linux.ledger`), and begin anew with the cluster.

Latencies are a sample of the requests: those whose steps workers time anyway (`worker.sampling.steps`), about one in 10 ms and 64
in a row after a pause. Up to about a hundred requests a second per worker that is nearly all of them.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from ....core import health
from ....core.histogram import BUCKET_BOUNDS_S
from ....core.lifecycle import WorkerState
from ....errors import ClusterError
from ....linux import ledger
from ....linux.ledger import Account
from ....linux.scoreboard import Row, Scoreboard
from ....version import __version__

if TYPE_CHECKING:
    from prometheus_client import Metric

_COUNTER_METRICS = {
    "requests": ("requests", "Requests that have ended: answered, refused, or left by their client."),
    "disconnects": ("disconnects", "Of these, the ones whose connection ended before the response did."),
    "accepted": ("connections_accepted", "Connections accepted from a listener."),
    "moved_in": ("connections_moved_in", "Connections taken over from the keeper."),
    "moved_out": ("connections_moved_out", "Connections handed to the keeper, for any reason."),
    "parked": ("connections_parked", "Connections handed to the keeper because handlers hold the loop."),
    "lost": ("connections_lost", "Connections from the keeper that were lost because no descriptor was left."),
    "errors": ("errors", "Requests answered with 5xx or failed in another way, and transactions that failed."),
    "timed_out": ("connections_timed_out", "Connections given up because the client took too long."),
    "stalled": ("connections_stalled", "Of these, the ones in the middle of a request or a response."),
    "transactions": ("transactions", "Transactions that the app has counted itself."),
    "duration": ("transaction_seconds", "How long those took together."),
    "cpu": ("cpu_seconds", "CPU time used."),
}
"""Counters of a slot, by the name of the cell: the metric's name and help text.

Each is exported as `cluster2_worker_NAME` by slot and as `cluster2_NAME` for the cluster.
"""

_GAUGE_METRICS = {
    "connections": ("connections", "Connections open now, at workers."),
    "in_flight": ("requests_in_flight", "Requests under way."),
    "memory": ("memory_bytes", "Resident memory; pages that workers share count for each."),
}
"""Gauges, described as `_COUNTER_METRICS` are."""

# Content types. The constants of prometheus_client differ from version to version, for the same format.
_PROMETHEUS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS_TYPE = "application/openmetrics-text"
_OPENMETRICS_1_TYPE = f"{_OPENMETRICS_TYPE}; version=1.0.0; charset=utf-8"

_MAX_CONCURRENT_SCRAPES = 2
"""Scrapes at a time; others wait. Each takes a thread, whose memory the allocator doesn't give back."""
_METRIC_PREFIX = "cluster2_"
_WORKER_METRIC_PREFIX = "cluster2_worker_"


def routes(root: str, board: Scoreboard) -> list[BaseRoute]:
    """Return the route below `root`."""
    slots = asyncio.Semaphore(_MAX_CONCURRENT_SCRAPES)

    async def metrics(request: Request) -> Response:
        try:
            async with slots:
                body, kind = await run_in_threadpool(exposition, board, request.headers.get("accept", ""))
        except ClusterError as error:
            return PlainTextResponse(f"{error.message}\n", 503)
        # A media_type would get a second charset from Starlette before 0.33.
        return Response(body, headers={"content-type": kind, "cache-control": "no-cache"})

    return [Route(root + "/metrics", metrics, methods=["GET"])]


def exposition(board: Scoreboard, accept: str) -> tuple[bytes, str]:
    """Return all metrics in the format that the client accepts (OpenMetrics or Prometheus' text), and its content type.

    Raises:
        ClusterError: the scoreboard can't be read.
    """
    # Imported with the first scrape: a cluster that isn't scraped doesn't pay for it.
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
    from prometheus_client.registry import Collector

    class ClusterCollector(Collector):
        def describe(self) -> Iterable[Metric]:
            return ()  # the registry has no other collector whose names could collide

        def collect(self) -> Iterable[Metric]:
            return found

    found = list(_collect(board))
    registry = CollectorRegistry()
    registry.register(ClusterCollector())
    # The version and the escaping that a client may ask for don't matter, since our names are plain ASCII.
    if _OPENMETRICS_TYPE in accept.lower():
        return generate_openmetrics(registry), _OPENMETRICS_1_TYPE  # type: ignore[no-untyped-call]
    return generate_latest(registry), _PROMETHEUS_TYPE


def _collect(board: Scoreboard) -> Iterator[Metric]:
    """Yield the metric families, each with all its samples."""
    accounts = ledger.read(board)
    return itertools.chain(
        _cluster(board),
        _workers(accounts),
        _counters(accounts),
        _classes(accounts),
        _gauges(accounts),
        _latency(accounts),
    )


def _cluster(board: Scoreboard) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

    header = board.header
    yield InfoMetricFamily(f"{_METRIC_PREFIX}build", "What is running.", {"version": __version__})
    for name, text, value in (
        ("start_time_seconds", "When the cluster started: seconds since the epoch.", header.started),
        ("generation", "The generation of the app that new workers belong to.", header.generation),
        ("traffic_enabled", "1: health checks answer that traffic may come; 0: it is disabled.", header.traffic),
        ("leaving", "1: the cluster is about to shut down.", header.leaving),
        ("workers_wanted", "Workers that are wanted.", header.wanted),
        ("connections_resting", "Idle connections at the keeper.", header.resting),
    ):
        yield GaugeMetricFamily(_METRIC_PREFIX + name, text, value)
    if header.waiting >= 0:
        text = "Connections that wait in the accept queues, about a second ago."
        yield GaugeMetricFamily(f"{_METRIC_PREFIX}connections_waiting", text, header.waiting)
    for name, text, value in (
        ("reloads", "Changes of generation that were carried through.", header.reloads),
        ("reloads_failed", "Changes of generation that were abandoned.", header.reloads_failed),
        ("keeper_restarts", "Restarts of the keeper.", header.keeper_restarts),
        ("monitor_restarts", "Restarts of the monitor.", header.monitor_restarts),
        ("connections_expired", "Connections that the keeper closed because they were idle.", header.keeper_expired),
    ):
        yield CounterMetricFamily(_METRIC_PREFIX + name, text, value)


def _workers(accounts: dict[int, Account]) -> Iterator[Metric]:
    """Yield the number of workers in each state, and how often they were started again."""
    from prometheus_client.core import GaugeMetricFamily

    now = time.monotonic()
    states = GaugeMetricFamily(
        f"{_METRIC_PREFIX}workers", "Workers by state; `ready` are those that serve.", labels=["state"]
    )
    lives = [
        health.seen_state(life.state, life.heartbeat, now) for account in accounts.values() for life in account.lives
    ]
    for state in (WorkerState.BOOTING.label, WorkerState.READY.label, health.STUCK_STATE, WorkerState.DRAINING.label):
        states.add_metric([state], lives.count(state))
    yield states
    restarts = {slot: account.begun - 1 for slot, account in accounts.items()}
    yield from _family("Counter", "restarts", "Workers made after the first one of the slot.", restarts)
    crashes = {slot: account.crashes for slot, account in accounts.items()}
    yield from _family("Counter", "crashes", "Workers that crashed, or hung and were replaced.", crashes)


def _counters(accounts: dict[int, Account]) -> Iterator[Metric]:
    for key, (name, text) in _COUNTER_METRICS.items():
        known = not any(key in account.unknown for account in accounts.values())
        if known:  # no number is better than a sum that lacks the slots whose engine can't know it
            yield from _family("Counter", name, text, {slot: each.counters[key] for slot, each in accounts.items()})


def _classes(accounts: dict[int, Account]) -> Iterator[Metric]:
    """Yield the number of requests that have ended, by the class of their status."""
    from prometheus_client.core import CounterMetricFamily

    name, text = "responses", "Requests that have ended, by the class of their status."
    if any(cell in account.unknown for account in accounts.values() for cell in Row.STATUS_CLASSES.values()):
        return
    by_slot = CounterMetricFamily(_WORKER_METRIC_PREFIX + name, text, labels=["slot", "class"])
    whole = CounterMetricFamily(_METRIC_PREFIX + name, text, labels=["class"])
    for label, cell in Row.STATUS_CLASSES.items():
        for slot, account in accounts.items():
            by_slot.add_metric([str(slot), label], account.counters[cell])
        whole.add_metric([label], sum(account.counters[cell] for account in accounts.values()))
    yield by_slot
    yield whole


def _gauges(accounts: dict[int, Account]) -> Iterator[Metric]:
    for key, (name, text) in _GAUGE_METRICS.items():
        values = {slot: [getattr(life, key) for life in account.lives] for slot, account in accounts.items()}
        if all(value >= 0 for each in values.values() for value in each):
            yield from _family("Gauge", name, text, {slot: sum(each) for slot, each in values.items()})


def _family(kind: str, name: str, text: str, values: Mapping[int, float]) -> Iterator[Metric]:
    """Yield a metric by slot, and its sum for the cluster."""
    from prometheus_client import core

    make: Any = getattr(core, f"{kind}MetricFamily")
    by_slot = make(_WORKER_METRIC_PREFIX + name, text, labels=["slot"])
    for slot, value in values.items():
        by_slot.add_metric([str(slot)], value)
    yield by_slot
    yield make(_METRIC_PREFIX + name, text, sum(values.values()))


def _latency(accounts: dict[int, Account]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily

    slowest = {
        slot: max((life.slowest_lately for life in account.lives), default=0.0) for slot, account in accounts.items()
    }
    name, text = "request_duration_max_seconds", "How long the slowest of the sample took in the last 10 to 20 seconds."
    longest = GaugeMetricFamily(_WORKER_METRIC_PREFIX + name, text, labels=["slot"])
    for slot, seconds in slowest.items():
        longest.add_metric([str(slot)], seconds)
    yield longest
    yield GaugeMetricFamily(_METRIC_PREFIX + name, text, max(slowest.values(), default=0.0))
    name, text = "request_duration_seconds", "How long requests took in the app: a sample of them."
    by_slot = HistogramMetricFamily(_WORKER_METRIC_PREFIX + name, text, labels=["slot"])
    for slot, account in accounts.items():
        by_slot.add_metric([str(slot)], _buckets(account.latencies), account.counters["latency"])
    yield by_slot
    counts = [sum(each) for each in zip(*(account.latencies for account in accounts.values()), strict=True)]
    total = sum(account.counters["latency"] for account in accounts.values())
    whole = HistogramMetricFamily(_METRIC_PREFIX + name, text, labels=[])
    whole.add_metric([], _buckets(counts or [0] * (len(BUCKET_BOUNDS_S) + 1)), total)
    yield whole


def _buckets(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return the buckets with cumulative counts, as Prometheus expects them."""
    bounds = [*(str(bound) for bound in BUCKET_BOUNDS_S), "+Inf"]
    return list(zip(bounds, itertools.accumulate(counts), strict=True))
