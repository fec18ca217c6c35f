"""Saturating rounds over several servers in turn, for `cpu` and `throughput`.

The servers run side by side, and each round loads one after the other with wrk, A B A B. So a disturbance of the
machine affects all alike. Each round's values are compared with those of the first server in the *same* round, and the
median of these ratios is the result.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from bench import echo, proc, wrk
from bench.client import Target
from bench.servers import Running
from bench.stats import median_ratio


class Load(Enum):
    """The load of the clients."""

    REQUESTS = "requests, by wrk"
    ECHOES = "echoes over websockets"


@dataclass(frozen=True, slots=True)
class Rounds:
    """The parameters of the rounds.

    Attributes:
        close: a connection for each request.
        seconds: duration of the load for each server in each round.
        body: bytes that each request uploads; 0: the request is a GET.
    """

    connections: int = 64
    seconds: int = 3
    rounds: int = 5
    close: bool = False
    path: str = "/"
    body: int = 0
    load: Load = Load.REQUESTS

    def run(self, target: Target, seconds: int) -> wrk.Report:
        """Load a server for this many seconds."""
        target = target.at(self.path)
        if self.load is Load.ECHOES:
            return echo.load(target, self.connections, seconds)
        return wrk.load(target.url, connections=self.connections, seconds=seconds, close=self.close, body=self.body)


@dataclass(slots=True)
class Series:
    """The values of one server, one for each round.

    Attributes:
        rate: requests a second.
        cpu: CPU microseconds for each request, of its whole process tree.
        errors: the number in all rounds; the figures of a server with errors are worth nothing.
    """

    rate: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    errors: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure of several servers.

    Attributes:
        medians: by server.
        ratios: by server, to the first one: medians of the ratios of pairs.
        rounds: all values by server.
    """

    unit: str
    medians: dict[str, float]
    ratios: dict[str, float]
    rounds: dict[str, list[float]]
    errors: dict[str, int]

    def __str__(self) -> str:
        cells = (
            f"{name} {value:.2f}" + (f" ({self.ratios[name]:.3f} ×)" if name in self.ratios else "")
            for name, value in self.medians.items()
        )
        errors = {name: number for name, number in self.errors.items() if number}
        return f"{self.unit}: {', '.join(cells)}" + (f"; errors {errors}" if errors else "")


def measure(servers: Sequence[Running], how: Rounds) -> dict[str, Series]:
    """Load the servers in turn. A short round before the first one doesn't count."""
    found = {server.name: Series() for server in servers}
    for number in range(how.rounds + 1):
        for server in servers:
            used = proc.tree_cpu(server.pid)
            report = how.run(server.target, how.seconds if number else 1)
            used = proc.tree_cpu(server.pid) - used
            if number and report.requests:
                series = found[server.name]
                series.rate.append(report.rate)
                series.cpu.append(used / report.requests * 1e6)
                series.errors += report.errors
    return found


def compare(found: dict[str, Series], *, cpu: bool) -> Comparison:
    """Return the CPU time for each request, or the throughput, of all servers. Ratios are to the first one."""
    values = {name: series.cpu if cpu else series.rate for name, series in found.items()}
    measured = {name: series for name, series in values.items() if series}
    base = values[next(iter(values))] if values else []
    return Comparison(
        unit="CPU µs a request" if cpu else "requests a second",
        medians={name: round(statistics.median(series), 3) for name, series in measured.items()},
        ratios={
            name: round(median_ratio(series, base), 4) for name, series in measured.items() if len(series) == len(base)
        },
        rounds={name: [round(value, 3) for value in series] for name, series in measured.items()},
        errors={name: series.errors for name, series in found.items()},
    )
