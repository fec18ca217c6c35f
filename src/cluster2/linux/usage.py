"""Resource usage of processes and of the machine, read from /proc.

`/proc/PID/stat` has the CPU time in ticks of 10 ms, for all threads together; a read costs 12 µs. The value that a worker
publishes (`Row.cpu`) is finer, but a worker that is stuck in its handler publishes nothing, and that is when the value is needed.
(`schedstat` has nanoseconds, but of the main thread only.) Memory is in `processes.memory`: it is expensive.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

_TICK = os.sysconf("SC_CLK_TCK")
_USER, _SYSTEM = 11, 12
"""The fields utime and stime (proc(5) counts from 1) after the name, which may itself have blanks and parentheses."""


def cpu_time(pid: int) -> float | None:
    """Return the CPU time that a process has used, in seconds; None: there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            fields = stat.read(1024).rpartition(b")")[2].split()
        return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICK
    except (OSError, IndexError):  # the process is ending: the file is there, and empty
        return None


@dataclass(frozen=True, slots=True)
class Machine:
    """The load and the memory of this machine.

    Attributes:
        load: processes that run or wait, on average over 1, 5 and 15 minutes.
        memory, available: bytes of it, and bytes that programs could still have; None: not known.
    """

    load: tuple[float, float, float]
    memory: int | None
    available: int | None


def machine() -> Machine:
    """Return the current load and memory."""
    found: dict[bytes, int] = {}
    try:
        with open("/proc/meminfo", "rb", buffering=0) as meminfo:
            lines = meminfo.read(4096).splitlines()
        for line in lines:
            name, _, rest = line.partition(b":")
            if name in (b"MemTotal", b"MemAvailable"):
                found[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass  # a kernel that hides it: then the values aren't known
    return Machine(os.getloadavg(), found.get(b"MemTotal"), found.get(b"MemAvailable"))
