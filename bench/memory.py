"""Memory of a whole process tree, before and after many requests.

The proportional set size (PSS) divides a page among the processes that share it, so that the sum over the tree is
the memory that it takes from the machine. The first requests write to shared pages (reference counts), which undoes sharing,
so it is measured again afterwards. Run servers one after the other for this, since trees share pages of the same files,
too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench import proc, wrk
from bench.errors import BenchError
from bench.servers import Running

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Memory:
    """The PSS of the whole tree in MiB. `processes` has that of each process afterwards, parents before children."""

    before: float
    after: float
    requests: int
    processes: list[float]

    def __str__(self) -> str:
        return f"{self.before} MiB, {self.after} MiB after {self.requests} requests: {self.processes}"


def measure(server: Running, *, requests: int = 100_000, connections: int = 16, limit: float = 300.0) -> Memory:
    """Measure, load, and measure again.

    Args:
        requests: the minimum number of requests.
        limit: the maximum duration of the load in seconds.

    Raises:
        BenchError: the server fails requests, or is too slow.
    """
    before = proc.tree_pss(server.pid)
    done, end = 0, time.monotonic() + limit
    while done < requests:
        report = wrk.load(server.target.url, connections=connections, seconds=5 if requests > 10_000 else 1)
        if report.errors or not report.requests or time.monotonic() > end:
            raise BenchError(
                f"{server.name}: {done + report.requests} requests, {report.errors} errors: {server.output()}"
            )
        done += report.requests
    processes = [round(proc.pss(member.pid) / MIB, 1) for member in proc.tree(server.pid)]
    return Memory(round(before / MIB, 1), round(sum(processes), 1), done, processes)
