"""Kill the processes that a master has made and lost track of, at its very end.

The master knows all processes of a cluster by their pids, except for one kind: a fork whose zygote died before it could report
the pid (`linux.forking`). If such a process hangs in an at-fork handler, it would outlive the master and keep its listening
sockets open. The port would accept connections that no process answers. It is below the master in the tree of processes, since
the master is a subreaper. It is recognized by the files that it holds: the cluster's scoreboard or one of its listening sockets.
Processes that an app has started hold none of these (`linux.app_forks`) and are left alone.

Linux lists the children of a process in `/proc/PID/task/TID/children` (CONFIG_PROC_CHILDREN). Where that is missing, or another
process's descriptors can't be read, nothing is found.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection

from .processes import descendants


def kill_holders(descriptors: Collection[int]) -> list[int]:
    """Kill the processes below this one that hold one of these open files; return their pids."""
    wanted = set()
    for descriptor in descriptors:
        found = os.fstat(descriptor)
        wanted.add((found.st_dev, found.st_ino))
    killed = []
    for pid in list(descendants([os.getpid()])):
        with contextlib.suppress(OSError):  # it has ended
            # The pidfd comes first: if the pid is given to another process meanwhile, the signal still goes to the one that was
            # checked.
            pidfd = os.pidfd_open(pid)
            try:
                if _holds(pid, wanted):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    killed.append(pid)
            finally:
                os.close(pidfd)
    return killed


def _holds(pid: int, wanted: set[tuple[int, int]]) -> bool:
    """Return whether a process has one of these files open. Raises OSError if that can't be read."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            found = os.stat(f"/proc/{pid}/fd/{name}")
            if (found.st_dev, found.st_ino) in wanted:
                return True
    return False
