"""Metrics, status, page, table and health checks agree on which workers are ready, and on how many connections wait."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.system.harness import Running, free_port, sample, stop, wait_until


def ask(port: int, path: str, accept: str = "text/plain") -> tuple[int, str]:
    """What the monitor answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers={"accept": accept})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


class Told:
    """What metrics, status and page tell of a cluster of two workers."""

    def __init__(self, running: Running, port: int) -> None:
        self._running, self._port = running, port

    def by_metrics(self) -> tuple[float, float, float]:
        samples = {
            (each.name, *each.labels.values()): each.value
            for family in text_string_to_metric_families(ask(self._port, "/metrics")[1])
            for each in family.samples
        }
        ready, stuck = samples["cluster2_workers", "ready"], samples["cluster2_workers", "stuck"]
        return ready, stuck, samples["cluster2_connections_waiting",]

    def by_status(self) -> tuple[float, float, float]:
        found = self._running.status()
        return found["ready"], sum(each["state"] == "stuck" for each in found["workers"]), found["waiting"]

    def by_page(self) -> tuple[float, float, float]:
        found = json.loads(ask(self._port, "/", "application/json")[1])
        stuck = sum(each["state"] == "stuck" for each in found["workers"])
        return found["ready"], stuck, found["connections"]["waiting"]

    def are(self, ready: int, stuck: int, waiting: int) -> None:
        """Wait until all tell the same, and this; health checks and the table included."""
        tellers = (self.by_metrics, self.by_status, self.by_page)
        wait_until(
            lambda: all(tell() == (ready, stuck, waiting) for tell in tellers),
            lambda: f"{ready} ready, {stuck} stuck, {waiting} wait: {[tell() for tell in tellers]}",
        )
        assert ask(self._port, "/readyz")[0] == (200 if ready else 503)
        table = self._running.cli("status").stdout
        assert f"{ready} of 2 workers ready" in table
        assert f"{waiting} connections waiting to be accepted" in table


def test_stuck_workers_are_ready_nowhere(run: Callable[..., Running], tmp_path: Path) -> None:
    """Workers that give no sign of life are stuck for metrics, status, page, table and health; what waits is counted."""
    kinds = {
        "http": (sample("plain"), (f"unix:{tmp_path}/http.sock", "127.0.0.1:0")),
        "granian": (sample("plain"), ("127.0.0.1:0",)),
    }
    clusters = []
    for engine, (target, bind) in kinds.items():
        port = free_port()
        running = run(target, "--engine", engine, "--monitor-port", str(port), bind=bind).ready()
        clusters.append((running, Told(running, port), len(bind)))
    for _, told, _ in clusters:
        told.are(2, 0, 0)
    for running, _, _ in clusters:
        for worker in running.workers():
            stop(worker["pid"])
    with ExitStack() as stack:
        for running, _, addresses in clusters:
            for _ in range(3):
                stack.enter_context(socket.create_connection(running.address))
                if addresses > 1:
                    stack.enter_context(socket.socket(socket.AF_UNIX)).connect(f"{tmp_path}/http.sock")
        for _, told, addresses in clusters:
            told.are(0, 2, 3 * addresses)
