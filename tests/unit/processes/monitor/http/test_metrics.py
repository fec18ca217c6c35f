"""`/metrics` of real scoreboards, read by the parsers of prometheus-client."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from cluster2.config.settings import Settings
from cluster2.core.health import STUCK_OVERDUE_S
from cluster2.core.histogram import BUCKET_BOUNDS_S
from cluster2.core.lifecycle import WorkerState
from cluster2.linux import ledger
from cluster2.linux.scoreboard import Row, Scoreboard
from cluster2.processes.monitor.app import make_app
from cluster2.processes.monitor.data.cluster_view import ClusterView

pytestmark = pytest.mark.anyio
DEPLOY = Path(__file__).parents[5] / "deploy"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """Return a scoreboard with two wanted workers and none yet."""
    board = Scoreboard.create()
    board.header.started, board.header.traffic, board.header.wanted, board.header.generation = time.time(), 1, 2, 4
    yield board
    board.close()


def worker(board: Scoreboard, slot: int, **values: Any) -> tuple[int, Row]:
    index = board.claim()
    row = board.row(index)
    row.pid, row.slot, row.state = 1000 + index, slot, WorkerState.READY
    for name, value in values.items():
        setattr(row, name, value)
    return index, row


async def ask(
    board: Scoreboard, path: str = "/metrics", settings: Settings | None = None, **headers: str
) -> httpx.Response:
    async def switch(enabled: bool) -> bool:
        return True

    app = make_app(ClusterView(board, 3000, switch), settings or Settings())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.get(path, headers=headers)


async def scrape(board: Scoreboard, accept: str = OPENMETRICS) -> Samples:
    """Return all samples by name and labels. The parsers raise if the format is invalid."""
    answer = await ask(board, accept=accept)
    assert answer.status_code == 200
    parse = parse_openmetrics if accept == OPENMETRICS else parse_text
    found: Samples = {}
    for family in parse(answer.text):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def slot(number: int) -> tuple[tuple[str, str], ...]:
    return (("slot", str(number)),)


@pytest.mark.parametrize("accept", [OPENMETRICS, "text/plain", "*/*"])
async def test_all_metrics(board: Scoreboard, accept: str) -> None:
    """Counters, gauges, states and values of the header are exported by slot and for the cluster, in both formats."""
    worker(board, 0, requests=10, connections=2, in_flight=1, memory=2**20, cpu=0.5)
    worker(board, 1, requests=5, connections=1, state=WorkerState.DRAINING)
    worker(board, 1, requests=1)
    found = await scrape(board, accept)
    assert [found["cluster2_worker_requests_total", slot(n)] for n in (0, 1)] == [10, 6]
    expected = {
        "requests_total": 16, "connections": 3, "requests_in_flight": 1, "memory_bytes": 2**20, "cpu_seconds_total": 0.5,
        "restarts_total": 1, "crashes_total": 0, "workers_wanted": 2, "generation": 4, "traffic_enabled": 1,
    }  # fmt: skip
    assert {name: found[f"cluster2_{name}", ()] for name in expected} == expected
    states = {labels[0][1]: value for (name, labels), value in found.items() if name == "cluster2_workers"}
    assert states == {"booting": 0, "ready": 2, "draining": 1, "stuck": 0}
    assert found["cluster2_worker_restarts_total", slot(1)] == 1


@pytest.mark.parametrize("accept", [OPENMETRICS, "text/plain"])
async def test_an_empty_cluster_is_valid(board: Scoreboard, accept: str) -> None:
    """Before the first worker the cluster's metrics are zero, and there is no slot."""
    found = await scrape(board, accept)
    assert found["cluster2_requests_total", ()] == 0
    assert not any(labels and labels[0][0] == "slot" for _, labels in found)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1",
            1,
        ),
        ("Application/OpenMetrics-Text; version=abc", 1),
        ("application/openmetrics-text; version=1.0.0.xyz; escaping=zzz", 1),
        ("text/plain; version=1.x", 0),
        ("text/html,*/*;q=0.8", 0),
        (";;,=", 0),
        ("", 0),
    ],
)
async def test_formats(board: Scoreboard, accept: str, kind: int) -> None:
    """A client that accepts OpenMetrics gets it, any other one gets text; the rest of the header is ignored."""
    kinds = ("text/plain; version=0.0.4; charset=utf-8", "application/openmetrics-text; version=1.0.0; charset=utf-8")
    answer = await ask(board, accept=accept)
    assert (answer.status_code, answer.headers["content-type"]) == (200, kinds[kind])
    assert answer.text.endswith("# EOF\n") == bool(kind)


async def test_the_histogram(board: Scoreboard) -> None:
    """Buckets are cumulative and the last one is the count, by slot and for the cluster, over all workers of a slot."""
    index, row = worker(board, 0, latency=0.5)
    row.latencies[0] += 3
    row.latencies[len(BUCKET_BOUNDS_S)] += 1
    ledger.fold_life(board, index, 0, lived=True, crashed=False)
    _, row = worker(board, 0, latency=0.25)
    row.latencies[2] += 2
    _, row = worker(board, 1, latency=1.0)
    row.latencies[2] += 1
    found = await scrape(board)
    name = "cluster2_worker_request_duration_seconds"
    buckets = [found[f"{name}_bucket", (("le", str(bound)), *slot(0))] for bound in (*BUCKET_BOUNDS_S, "+Inf")]
    assert buckets == [3, 3, *[5] * (len(BUCKET_BOUNDS_S) - 2), 6]
    assert (found[f"{name}_count", slot(0)], found[f"{name}_sum", slot(0)]) == (6, 0.75)
    assert found["cluster2_request_duration_seconds_count", ()] == 7
    assert found["cluster2_request_duration_seconds_sum", ()] == 1.75


async def test_workers_leave_no_series_behind(board: Scoreboard) -> None:
    """A slot has one series for all its workers, and its counters go on."""
    worker(board, 1, requests=1)
    before = await scrape(board)
    for _ in range(50):
        index, _ = worker(board, 1, requests=2)
        ledger.fold_life(board, index, 1, lived=True, crashed=True)
    after = await scrape(board)
    assert after.keys() == before.keys()
    assert after["cluster2_requests_total", ()] == 101
    assert after["cluster2_worker_crashes_total", slot(1)] == after["cluster2_worker_restarts_total", slot(1)] == 50


async def test_what_an_engine_cannot_know(board: Scoreboard) -> None:
    """A count that an engine can't know is left out."""
    worker(board, 0, accepted=-1, connections=-1, requests=3)
    names = {name for name, _ in await scrape(board)}
    assert not any(name.endswith(("connections_accepted_total", "worker_connections")) for name in names)
    assert "cluster2_requests_total" in names


async def test_a_stuck_master(board: Scoreboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the sums can't be read, the response is a 503 with the reason."""
    monkeypatch.setattr(ledger, "READ_TIMEOUT_S", 0.01)
    board.header.burials = 1
    answer = await ask(board)
    assert (answer.status_code, answer.headers["content-type"]) == (503, "text/plain; charset=utf-8")
    assert "has been changing it" in answer.text


async def test_access(board: Scoreboard) -> None:
    """Metrics are below `monitor_path`, and need the token on an address that isn't loopback."""
    settings = Settings(monitor_host="0.0.0.0", monitor_token="a-secret-token", monitor_path="/mon")
    assert (await ask(board, "/mon/metrics", settings)).status_code == 401
    answer = await ask(board, "/mon/metrics", settings, authorization="Bearer a-secret-token")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert answer.headers["cache-control"] == "no-cache"


async def test_the_dashboard(board: Scoreboard) -> None:
    """Each metric of the Grafana dashboard exists, with the labels that it sums by, and each panel has a query."""
    worker(board, 0)
    told = await scrape(board)
    labels = {name: {label for label, _ in labels} for name, labels in told} | {"cluster2_workers": {"state"}}
    found = json.loads((DEPLOY / "grafana.json").read_text())
    assert found["panels"]
    for panel in found["panels"]:
        assert panel["targets"], panel["title"]
        for each in panel["targets"]:
            names = re.findall(r"cluster2_\w+", each["expr"])
            assert names
            assert set(names) <= labels.keys(), panel["title"]
            for label in re.findall(r"by \((\w+)\)", each["expr"]):
                assert all(label in labels[name] for name in names if not name.endswith("_max_seconds")), panel["title"]


async def test_stuck_workers_are_not_ready(board: Scoreboard) -> None:
    """A worker whose heartbeat is overdue counts as stuck, and never as ready."""
    worker(board, 0, heartbeat=time.monotonic() + 1.0)
    worker(board, 1, heartbeat=time.monotonic() - STUCK_OVERDUE_S - 1.0)
    found = await scrape(board)
    assert [found["cluster2_workers", (("state", state),)] for state in ("ready", "stuck")] == [1, 1]
    assert (await ask(board, "/readyz")).status_code == 200


async def test_how_requests_end(board: Scoreboard) -> None:
    """Responses are counted by status class and slot, over all workers of it; they are left out if an engine can't know."""
    index, _ = worker(board, 0, requests=6, status_2xx=4, status_4xx=2, disconnects=1)
    ledger.fold_life(board, index, 0, lived=True, crashed=False)
    worker(board, 0, requests=2, status_2xx=1, status_5xx=1)
    found = await scrape(board)
    classes = [found["cluster2_responses_total", (("class", f"{digit}xx"),)] for digit in range(1, 6)]
    assert classes == [0, 5, 0, 2, 1]
    assert found["cluster2_worker_responses_total", (("class", "2xx"), *slot(0))] == 5
    assert found["cluster2_disconnects_total", ()] == 1
    worker(board, 1, requests=2, status_2xx=-1, disconnects=-1)
    names = {name for name, _ in await scrape(board)}
    assert not names & {"cluster2_responses_total", "cluster2_disconnects_total"}
    assert "cluster2_requests_total" in names


async def test_the_slowest(board: Scoreboard) -> None:
    """The slowest recent request of a slot is that of its slowest worker."""
    worker(board, 0, slowest_lately=0.25)
    worker(board, 1, slowest_lately=0.5)
    found = await scrape(board)
    assert found["cluster2_worker_request_duration_max_seconds", slot(0)] == 0.25
    assert found["cluster2_request_duration_max_seconds", ()] == 0.5


async def test_connections_that_wait(board: Scoreboard) -> None:
    """The length of the accept queues is exported if it is known."""
    board.header.waiting = 7
    assert (await scrape(board))["cluster2_connections_waiting", ()] == 7
    board.header.waiting = -1
    assert "cluster2_connections_waiting" not in {name for name, _ in await scrape(board)}


async def test_the_docs_name_what_is_there(board: Scoreboard) -> None:
    """Each metric of docs/metrics.md exists, and each of the cluster's metrics is in it."""
    worker(board, 0)
    told = {name for name, _ in await scrape(board)}
    named = set(re.findall(r"cluster2_\w+", (Path(__file__).parents[5] / "docs" / "metrics.md").read_text())) - {
        "cluster2_worker_"
    }
    assert named <= told
    of_the_cluster = {name for name in told if not name.startswith("cluster2_worker_")}
    assert of_the_cluster - named == {f"cluster2_request_duration_seconds_{each}" for each in ("sum", "count")}, (
        "the docs name the buckets, and these two by their ends"
    )
