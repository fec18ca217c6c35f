"""The cost of an idle server: CPU and memory of its master, and CPU of its whole process tree."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench import proc
from bench.memory import MIB
from bench.servers import Running


@dataclass(frozen=True, slots=True)
class Idle:
    """CPU in percent of one core. `master_rss` is resident memory in MiB."""

    master_cpu: float
    tree_cpu: float
    master_rss: float

    def __str__(self) -> str:
        return f"master {self.master_cpu} % of a core, {self.master_rss} MiB; whole tree {self.tree_cpu} %"


def measure(server: Running, *, seconds: float = 20.0) -> Idle:
    """Measure for this many seconds."""
    began, master, everyone = time.monotonic(), proc.cpu(server.pid), proc.tree_cpu(server.pid)
    time.sleep(seconds)
    passed = time.monotonic() - began
    master, everyone = proc.cpu(server.pid) - master, proc.tree_cpu(server.pid) - everyone
    return Idle(
        master_cpu=round(100 * master / passed, 4),
        tree_cpu=round(100 * everyone / passed, 4),
        master_rss=round(proc.rss(server.pid) / MIB, 1),
    )
