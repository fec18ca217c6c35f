"""Process trees, as /proc shows them: who belongs to one, the CPU time that it used, the memory that it has.

CPU time is read from the process's own clock (`clock_getcpuclockid`), which counts nanoseconds, ended threads
included; the fields of /proc/PID/stat count ticks of 10 ms, too coarse for a tree of six processes over some seconds.
Only what children left behind that have ended meanwhile is known in ticks alone.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Stat:
    """Some fields of /proc/PID/stat.

    Attributes:
        started: start time in ticks since boot: with the pid it names a process for good.
        reaped: CPU seconds of its children that have ended and were waited for.
    """

    pid: int
    state: str
    parent: int
    started: int
    reaped: float


def read_stat(text: str) -> Stat:
    """Reads /proc/PID/stat. The name in it may contain spaces and parentheses."""
    pid, _, rest = text.partition(" (")
    fields = rest.rpartition(") ")[2].split()
    reaped = (int(fields[13]) + int(fields[14])) * TICK
    return Stat(int(pid), fields[0], int(fields[1]), int(fields[19]), reaped)


def read_sizes(text: str) -> dict[str, int]:
    """Reads lines of the form `Name:  12 kB`, as in smaps_rollup and status; returns bytes by name."""
    sizes = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB" and words[0].endswith(":"):
            sizes[words[0][:-1]] = int(words[1]) * 1024
    return sizes


def stat(pid: int) -> Stat | None:
    """The process's own facts; None if there is no such process."""
    try:
        return read_stat(Path(f"/proc/{pid}/stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None


def alive(process: Stat) -> bool:
    """This very process still runs: its pid wasn't given to another, and it isn't a zombie."""
    now = stat(process.pid)
    return now is not None and now.started == process.started and now.state not in "ZX"


def tree(root: int) -> list[Stat]:
    """The process and all its descendants, parents first."""
    children: dict[int, list[Stat]] = {}
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := stat(int(name))) is not None:
            children.setdefault(process.parent, []).append(process)
            if process.pid == root:
                found.append(process)
    for process in found:  # grows while it is walked
        found.extend(children.get(process.pid, ()))
    return found


def cpu(pid: int) -> float:
    """CPU seconds that a process has used; 0 if there is no such process."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def tree_cpu(root: int) -> float:
    """CPU seconds of a whole tree, of those included that have ended and were waited for."""
    return sum(cpu(process.pid) + process.reaped for process in tree(root))


def pss(pid: int) -> int:
    """Proportional set size in bytes: shared pages count in parts. 0 if there is no such process."""
    return _size(f"/proc/{pid}/smaps_rollup", "Pss")


def rss(pid: int) -> int:
    """Resident set size in bytes; 0 if there is no such process."""
    return _size(f"/proc/{pid}/status", "VmRSS")


def _size(path: str, name: str) -> int:
    try:
        return read_sizes(Path(path).read_text()).get(name, 0)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def tree_pss(root: int) -> int:
    """Proportional set size of a whole tree, in bytes."""
    return sum(pss(process.pid) for process in tree(root))
