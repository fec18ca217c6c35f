"""The cost of monitoring: one viewer of the page, and a scraper that requests the metrics once a second."""

from __future__ import annotations

import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench import proc, wrk
from bench.catalogue import monitor_port
from bench.control import status
from bench.memory import MIB
from bench.report import Figure, Mark, at_most
from bench.servers import Running, running
from bench.stats import median_ratio
from bench.suites.plan import Plan, say

NAME = "cluster2-watched"
CONNECTIONS = 64
BOUND = 0.99


@dataclass(slots=True)
class Rounds:
    """The values of each round: requests a second, and CPU of master and monitor as a share of a core."""

    rate: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)


def figures(plan: Plan) -> Iterator[Figure]:
    """Measure throughput with and without a viewer, A B A B, the CPU of master and monitor, and the monitor's memory."""
    if not plan.pick(NAME):
        return
    alone, watched = Rounds(), Rounds()
    with running(NAME, workers=plan.workers) as server:
        _round(plan, server, Rounds())
        for _ in range(plan.times(24, 2)):
            _round(plan, server, alone)
            with viewer(monitor_port(server.port)):
                _round(plan, server, watched)
        memory = round(proc.pss(_monitor(server)) / MIB, 1)
    rates = statistics.median(watched.rate) / statistics.median(alone.rate)
    pairs = median_ratio(watched.rate, alone.rate)
    details = {"alone": alone, "watched": watched}
    mark = Mark(f"≥ {BOUND:g}", round(pairs, 4), BOUND, at_least=True)
    yield Figure(
        "throughput with a viewer, through that without: median of pairs", "ratio", {NAME: pairs}, [mark], details
    )
    yield Figure("the same: ratio of medians", "ratio", {NAME: rates})
    for name, rounds in (("nobody", alone), ("one viewer", watched)):
        cores = statistics.median(rounds.cores)
        yield Figure(f"CPU of master and monitor, {name} watches", "% of a core", {NAME: round(100 * cores, 2)})
    yield Figure("memory of the monitor (PSS)", "MiB", {NAME: memory}, [at_most(35, memory, "MiB")])


def _round(plan: Plan, server: Running, rounds: Rounds) -> None:
    both = [server.pid, _monitor(server)]
    began, used = time.monotonic(), sum(map(proc.cpu, both))
    report = wrk.load(server.target.url, connections=CONNECTIONS, seconds=round(plan.size(4, 2)))
    rounds.cores.append((sum(map(proc.cpu, both)) - used) / (time.monotonic() - began))
    rounds.rate.append(report.rate)
    say(f"{report.rate:.0f} requests/s, master and monitor {100 * rounds.cores[-1]:.2f} % of a core")


def _monitor(server: Running) -> int:
    return int(status(server.pids).raw["monitor"]["pid"])


@contextlib.contextmanager
def viewer(port: int) -> Iterator[None]:
    """Read the stream of events, as the page does, and request the metrics once a second."""
    ended = threading.Event()
    threads = [threading.Thread(target=each, args=(port, ended)) for each in (_follow, _scrape)]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        ended.set()
        for each in threads:
            each.join()


def _follow(port: int, ended: threading.Event) -> None:
    with _asked(port, "/events") as connection:
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                connection.recv(65536)


def _scrape(port: int, ended: threading.Event) -> None:
    while not ended.wait(1):
        with _asked(port, "/metrics", "Connection: close\r\n") as connection:
            while connection.recv(65536):
                pass


def _asked(port: int, path: str, more: str = "") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=2)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{more}\r\n".encode())
    return connection
