"""The metrics of a real cluster: totals never fall when workers end, in any way."""

from __future__ import annotations

import http.client
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.system.clients import Load, get
from tests.system.harness import Running, free_port, listening_ports, sample, wait_until

Serve = Callable[..., Running]
Samples = dict[tuple[str, str], float]
QUIET = 20
"""The number of requests, one after the other."""
MiB = 2**20


class Watched:
    """A cluster and its monitor. Each scrape is compared with the one before."""

    def __init__(self, running: Running, port: int) -> None:
        self.running, self._port = running, port
        running._ports.add(port)
        self._before: Samples = {}
        self.fallen: list[str] = []

    def answer(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("GET", path)
            found = connection.getresponse()
            return found.status, found.read().decode()
        finally:
            connection.close()

    def scrape(self) -> Samples:
        """Return all samples by name and slot or state; note counters and buckets that have fallen, and missing series."""
        status, body = self.answer("/metrics")
        assert status == 200, body
        found: Samples = {}
        for family in text_string_to_metric_families(body):
            for each in family.samples:
                found[each.name, ",".join(f"{key}={value}" for key, value in sorted(each.labels.items()))] = each.value
        for (name, labels), value in self._before.items():
            if name.endswith(("_total", "_bucket", "_count", "_sum")) and found.get((name, labels), -1.0) < value:
                self.fallen.append(f"{name}{{{labels}}} fell from {value} to {found.get((name, labels))}")
        self._before = found
        return found

    def total(self, name: str) -> float:
        return self.scrape()[f"cluster2_{name}_total", ""]

    def has(self, name: str, value: float) -> None:
        """Wait until a total of the cluster has this value."""
        wait_until(lambda: self.total(name) == value, lambda: f"{name} is {value}, not {self.total(name)}")


@pytest.fixture
def watched(run: Serve) -> Iterator[Watched]:
    port = free_port()
    found = Watched(run(sample("plain"), "--monitor-port", str(port)).ready(), port)
    yield found
    assert found.fallen == []


def scraping(watched: Watched, do: Callable[[], Any]) -> None:
    """Run a function in a thread, and scrape until it is done."""
    thread = threading.Thread(target=do)
    thread.start()
    while thread.is_alive():
        watched.scrape()
    thread.join()


def test_totals_go_on(watched: Watched) -> None:
    """Over crash, recycle and reload under load, and a crash of the monitor, no counter falls and none is wrong."""
    running = watched.running
    for _ in range(QUIET):
        assert get(running.address).status == 200
    watched.has("requests", QUIET)
    victim = running.workers()[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    watched.has("crashes", 1)
    wait_until(lambda: len(running.workers()) == 2, "its successor serves")
    watched.has("requests", QUIET)
    with Load(running.address, clients=2) as load:
        scraping(watched, lambda: running.ask("recycle"))
        scraping(watched, lambda: running.ask("reload"))
    assert load.counts.failed == []
    monitor = running.status()["monitor"]["pid"]
    os.kill(monitor, signal.SIGKILL)
    wait_until(lambda: running.status()["monitor"]["pid"] not in (0, monitor), "another monitor")
    watched.has("requests", QUIET + load.counts.answered)
    found = watched.scrape()
    expected = {"restarts": 5, "crashes": 1, "reloads": 1, "reloads_failed": 0, "errors": 0, "monitor_restarts": 1}
    assert {name: found[f"cluster2_{name}_total", ""] for name in expected} == expected
    assert found["cluster2_generation", ""] == 2
    assert found["cluster2_workers", "state=ready"] == 2
    assert {labels for name, labels in found if name == "cluster2_worker_requests_total"} == {"slot=0", "slot=1"}
    assert QUIET - 2 * 2 <= found["cluster2_request_duration_seconds_count", ""] <= QUIET + load.counts.answered
    for _ in range(QUIET):  # two requests of each worker aren't measured
        get(running.address)
    latency = running.status()["latency"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["max"]


def test_the_workers_are_asked(watched: Watched) -> None:
    """Stacks, components and dependencies come from a real master, and the monitor stays small."""
    worker = watched.running.workers()[1]
    status, body = watched.answer(f"/stacks/{worker['pid']}")
    assert (status, body.partition("\n")[0]) == (200, f"worker {worker['pid']} (slot 1)")
    assert "Current thread" in body or "Thread 0x" in body
    assert watched.answer("/stacks/4999999")[0] == 404
    assert watched.answer("/component-status") == (200, '{"names":[]}')
    assert watched.answer("/component-status?component=nothing")[0] == 404
    status, body = watched.answer("/deps")
    assert (status, "starlette" in body) == (200, True)
    watched.scrape()
    memory = psutil.Process(watched.running.status()["monitor"]["pid"]).memory_full_info()
    assert memory.pss < 35 * MiB


def test_without_a_master(run: Serve) -> None:
    """With `cluster = false` the metrics are of slot 0 and generation 1; routes that need a master respond with 503."""
    port, own = free_port(), free_port()
    bind = f"127.0.0.1:{own}"
    running = run(sample("plain"), "--no-cluster", "--monitor-port", str(port), bind=[bind], workers=None)
    wait_until(lambda: {port, own} <= listening_ports(), lambda: f"it serves: {running.stderr}")
    watched = Watched(running, port)
    assert get(("127.0.0.1", own)).status == 200
    watched.has("requests", 1)
    found = watched.scrape()
    assert [found[name, ""] for name in ("cluster2_generation", "cluster2_workers_wanted")] == [1, 1]
    assert found["cluster2_worker_requests_total", "slot=0"] == 1
    assert [watched.answer(path)[0] for path in ("/stacks/0", "/component-status", "/deps")] == [503, 503, 200]
    assert running.shutdown() == 0
