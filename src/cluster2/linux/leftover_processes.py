"""Kill what a master has made and lost sight of, at its very end.

All processes of a cluster are known by their pids, but for one kind: a fork whose zygote died before it could tell the pid
(`kernel.forking`). If it hangs in an at-fork handler, it would outlive the master, and keep its listening sockets open: the
port would accept connections that nothing answers. It is below the master in the tree of processes, since the master is a
subreaper, and it is recognized by what it holds: the cluster's scoreboard or one of its listening sockets. What else an
app has started holds none of these (`kernel.app_forks`) and is left alone.

Linux tells the children of a process in `/proc/PID/task/TID/children` (CONFIG_PROC_CHILDREN); where that is missing, or
another process's descriptors can't be read, nothing is found.
"""

from __future__ import annotations

import contextlib
import glob
import os
import signal
from collections.abc import Collection


def kill_holders(descriptors: Collection[int]) -> list[int]:
    """Kill the processes below this one that hold one of these open files; returns their pids."""
    wanted = set()
    for descriptor in descriptors:
        found = os.fstat(descriptor)
        wanted.add((found.st_dev, found.st_ino))
    killed = []
    for pid in _below(os.getpid()):
        with contextlib.suppress(OSError):  # it has ended
            pidfd = os.pidfd_open(pid)
            try:
                if _holds(pid, wanted):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    killed.append(pid)
            finally:
                os.close(pidfd)
    return killed


def _below(pid: int) -> list[int]:
    """The pids of all descendants of a process."""
    found: list[int] = []
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError), open(path) as file:
            for child in map(int, file.read().split()):
                found += [child, *_below(child)]
    return found


def _holds(pid: int, wanted: set[tuple[int, int]]) -> bool:
    """Whether a process has one of these files open. Raises OSError if that can't be read."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            found = os.stat(f"/proc/{pid}/fd/{name}")
            if (found.st_dev, found.st_ino) in wanted:
                return True
    return False
