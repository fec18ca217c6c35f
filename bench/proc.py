"""Process trees, as /proc shows them: their processes, CPU time and memory.

CPU time comes from the process's own clock (`clock_getcpuclockid`), which counts nanoseconds, ended threads
included. The fields of /proc/PID/stat count ticks of 10 ms, too coarse for a tree of six processes over some seconds.
Only the CPU time of children that have ended is known in ticks.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class _Stat:
    """Some fields of /proc/PID/stat.

    Attributes:
        started: the start time in ticks since boot; together with the pid it identifies a process.
        reaped: CPU seconds of its children that have ended and were reaped.
    """

    pid: int
    state: str
    parent: int
    started: int
    reaped: float


def read_stat(text: str) -> _Stat:
    """Read /proc/PID/stat. The name in it may contain spaces and parentheses."""
    pid, _, rest = text.partition(" (")
    fields = rest.rpartition(") ")[2].split()
    reaped = (int(fields[13]) + int(fields[14])) * TICK
    return _Stat(int(pid), fields[0], int(fields[1]), int(fields[19]), reaped)


def read_sizes(text: str) -> dict[str, int]:
    """Read lines of the form `Name:  12 kB`, as in smaps_rollup and status. Return bytes by name."""
    sizes = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB" and words[0].endswith(":"):
            sizes[words[0][:-1]] = int(words[1]) * 1024
    return sizes


def stat(pid: int) -> _Stat | None:
    """Return the fields of a process. None: there is no such process."""
    try:
        return read_stat(Path(f"/proc/{pid}/stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None


def alive(process: _Stat) -> bool:
    """Return whether this process still runs: its pid wasn't given to another one, and it is no zombie."""
    now = stat(process.pid)
    return now is not None and now.started == process.started and now.state not in "ZX"


def tree(root: int) -> list[_Stat]:
    """Return the process and all its descendants, parents first."""
    children: dict[int, list[_Stat]] = {}
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := stat(int(name))) is not None:
            children.setdefault(process.parent, []).append(process)
            if process.pid == root:
                found.append(process)
    for process in found:  # the list grows during the iteration
        found.extend(children.get(process.pid, ()))
    return found


def cpu(pid: int) -> float:
    """Return the CPU seconds of a process. 0: there is no such process."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def tree_cpu(root: int) -> float:
    """Return the CPU seconds of a whole tree, including its processes that have ended and were reaped."""
    return sum(cpu(process.pid) + process.reaped for process in tree(root))


def pss(pid: int) -> int:
    """Return the proportional set size in bytes, which divides shared pages. 0: there is no such process."""
    return _size(f"/proc/{pid}/smaps_rollup", "Pss")


def rss(pid: int) -> int:
    """Return the resident set size in bytes. 0: there is no such process."""
    return _size(f"/proc/{pid}/status", "VmRSS")


def _size(path: str, name: str) -> int:
    try:
        return read_sizes(Path(path).read_text()).get(name, 0)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def tree_pss(root: int) -> int:
    """Return the proportional set size of a whole tree in bytes."""
    return sum(pss(process.pid) for process in tree(root))
