"""Processes that the import has started end with the copy of the app that started them.

A helper that the app starts at import (a renderer, a tunnel, a pool) belongs to one loaded copy of the app: a generation's, if
workers are forked, or one worker's. Without a rule each reload would leave one behind. So when that copy goes, each such
process is sent TERM. The app's own `atexit` functions come first: they may know a better way. Should they wait for a process
without telling it to end, as `multiprocessing` does for one that is no daemon, TERM comes after _EXIT_GRACE_S.

Left alone are: processes in a session of their own (`start_new_session=True`), which says that they are to stay, and those that
a handler or a hook has started, as under any server.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Collection

from ...linux import processes

_EXIT_GRACE_S = 1.0
"""Seconds for the app's `atexit` functions, before TERM. A zygote has some more (`nursery.LEAVE_GRACE_S`)."""


class StartedAtImport:
    """What the import has started in this process."""

    def __init__(self, before: Collection[int] = ()) -> None:
        """Call it before the import: what is registered first with `atexit` is called last.

        Args:
            before: children that this process has for other reasons.
        """
        self._owner = os.getpid()
        self._before = before
        self._pids: Collection[int] = ()
        atexit.register(self.terminate)

    def record(self) -> None:
        """The import is over."""
        self._pids = set(processes.children()).difference(self._before)

    def end_soon(self) -> None:
        """End them in a while, whatever the `atexit` functions of the app wait for."""
        if self._pids and os.getpid() == self._owner:
            timer = threading.Timer(_EXIT_GRACE_S, self.terminate)
            timer.daemon = True
            timer.start()

    def terminate(self) -> None:
        """Send TERM to those that still run. Does nothing in a process that was forked from this one."""
        if os.getpid() != self._owner:
            return
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):  # reaped meanwhile by a thread of the app's
                if processes.is_running_child(pid) and os.getsid(pid) == os.getsid(0):
                    os.kill(pid, signal.SIGTERM)
