"""Restore the pids directory, and the files in it, when they were removed.

Without `master.sock` no command reaches the master, and without the lock a second master could start (`linux.pid_files`). A check
costs four system calls, once a second.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable
from functools import partial

from ...errors import ClusterError
from ...linux import app_forks
from ...linux.pid_files import PidsDirectory
from .control.server import ControlServer
from .state.worker_registry import WorkerRegistry

logger = logging.getLogger("cluster2.master")

_CONTROL_BACKLOG = 64


class PidsGuard:
    """Restores the pids directory of a running master."""

    def __init__(
        self, pids: PidsDirectory, control: ControlServer, registry: WorkerRegistry, warn: Callable[[str], None]
    ) -> None:
        """Make a guard. It does nothing before `open`."""
        self._pids = pids
        self._control = control
        self._registry = registry
        self._warn = warn
        self._failure = ""

    async def open(self) -> None:
        """Bind the control socket and take clients. Raises ConfigError."""
        listener = self._pids.bind_control(_CONTROL_BACKLOG)
        app_forks.withhold(listener)
        app_forks.withhold_for_good(partial(_clients, listener))
        await self._control.open(listener)

    async def restore_missing(self) -> None:
        """Restore missing files. An error is reported once, and the next check tries again."""
        if self._pids.intact():
            return
        try:
            self._pids.restore()
            for handle in self._registry:
                if handle.pid is not None:
                    self._pids.write_worker(handle.pid)
            await self.open()
        except (ClusterError, OSError) as error:
            failure = f"the pids directory is not in its place and can't be restored: {error}"
            if failure != self._failure:
                self._warn(failure)
            self._failure = failure
            return
        self._failure = ""
        self._warn(f"{self._pids.path} or files in it were removed; they are there again")


def _clients(listener: socket.socket) -> Iterable[int]:
    """Return the connections of the control socket's clients, in a process that a handler of the app has forked."""
    from ...linux import established_connections  # imported late: it takes 0.7 MiB that the master itself does not need

    return established_connections.descriptors(listener)
