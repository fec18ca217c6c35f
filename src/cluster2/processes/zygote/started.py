"""Processes that the import has started end with the copy of the app that started them.

A helper that the app starts at import (a renderer, a tunnel, a pool) belongs to one loaded copy of the app: to a generation, if
workers are forked, or to one worker. Without a rule each reload would leave one behind. So when that copy exits, or its import
fails, each such process is sent TERM. The app's own `atexit` functions run first, since they may know a better way. If they wait
for a process without ending it, as `multiprocessing` does for one that is no daemon, TERM is sent after `_EXIT_GRACE_S`. A copy
that is killed sends nothing.

The processes that count:

- Children and their descendants at the end of the import. They are recorded by pid and start time, because a grandchild whose
  parent has ended is no longer found through the tree of processes.
- Orphans: what `os.system("helper &")` starts has lost its parent, the shell, before the import ends. The kernel gives an orphan
  to the nearest subreaper (prctl(2)), so this process is one during the import, and orphans become its children. It must not be
  one later: a worker is forked twice, and has to be adopted by the master.
- Descendants that recorded processes have when TERM is sent: what a pool has started since.

Left alone are processes in a session of their own (`start_new_session=True`, `setsid`), which says that they are to stay, and
those that a handler or a hook has started, as under any server. Not found is a process that a helper starts after the import and
that loses its parent before the end.

TERM reaches parents before their children, since a supervisor that sees its child end first would start another one.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Collection
from typing import Self

from ...linux import processes

_EXIT_GRACE_S = 1.0
"""Seconds for the app's `atexit` functions, before TERM. A zygote has some more (`worker_factory._ZYGOTE_EXIT_GRACE_S`)."""


class StartedAtImport:
    """The processes that an import has started in this process. Use it as a context manager around the import."""

    def __init__(self) -> None:
        """Note which children there are already; they aren't the import's."""
        self._owner = os.getpid()
        self._before: Collection[int] = ()
        self._was_subreaper = True
        self._start_ticks: dict[int, int] = {}

    def __enter__(self) -> Self:
        """Begin the import."""
        self._before = set(processes.children())
        # `atexit` calls first what was registered last: the functions of the app come before this one.
        atexit.register(self.terminate)
        with contextlib.suppress(OSError):  # a sandbox forbids it: then orphans are not found
            self._was_subreaper = processes.is_subreaper()
            processes.become_subreaper()
        return self

    def __exit__(self, *_: object) -> None:
        """Record what the import has started, whether it succeeded or not."""
        if not self._was_subreaper:
            processes.become_subreaper(False)
        started = set(processes.children()).difference(self._before)
        for pid in [*started, *processes.descendants(started)]:
            if (ticks := processes.start_ticks(pid)) is not None:
                self._start_ticks[pid] = ticks

    def end_soon(self) -> None:
        """Send TERM after a grace time, whatever the `atexit` functions of the app wait for."""
        if self._start_ticks and os.getpid() == self._owner:
            timer = threading.Timer(_EXIT_GRACE_S, self.terminate)
            timer.daemon = True
            timer.start()

    def terminate(self) -> None:
        """Send TERM to those that still run. Does nothing in a process that was forked from this one."""
        if os.getpid() != self._owner:
            return
        living = [pid for pid, ticks in self._start_ticks.items() if processes.start_ticks(pid) == ticks]
        found = self._start_ticks.copy()
        for pid in processes.descendants(living):
            if pid not in found and (ticks := processes.start_ticks(pid)) is not None:
                found[pid] = ticks
        for pid, ticks in sorted(found.items(), key=lambda each: each[1]):  # a parent began before its children
            _terminate(pid, ticks)


def _terminate(pid: int, ticks: int) -> None:
    """Send TERM to a process of this session, if the pid is still that of the process that began then."""
    with contextlib.suppress(OSError):  # it has ended, or it belongs to another user
        pidfd = processes.open_pidfd(pid)
        try:
            # In this order: the pidfd holds on to one process, and the start time identifies it.
            if processes.start_ticks(pid) == ticks and os.getsid(pid) == os.getsid(0):
                processes.send_signal(pidfd, signal.SIGTERM)
        finally:
            os.close(pidfd)
