"""Run a helper: a process beside the workers that exists as long as the cluster does (the keeper, the monitor).

A helper is executed, and publishes heartbeats in the header of the scoreboard. When it exits it is started again: at once the
first time, then with a growing delay (`planning.RestartBackoff`), so that a helper which exits again and again costs the master
little. A failure to start it (the system has no process or descriptor left) counts as another exit, and never ends the cluster. A
helper whose heartbeats stop is stuck: it is killed, and then started again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from ....core.planning import RestartBackoff
from ....linux.descriptor_passing import PacketError
from ....linux.scoreboard import Header
from ..state.inbox import HelperExited, InboxMessage
from .child import ChildProcess

logger = logging.getLogger("cluster2.master")


class HelperProcess(ABC):
    """One helper, which is started as often as needed.

    Attributes:
        name: its name, also that of its cells in the header: NAME_pid, NAME_beat, NAME_restarts.
        timeout_s: seconds without a heartbeat after which it is stuck.
    """

    name: ClassVar[str]
    timeout_s: ClassVar[float]

    def __init__(self, header: Header, pauses: RestartBackoff, post: Callable[[InboxMessage], None]) -> None:
        """Make a helper that isn't started yet.

        Args:
            pauses: the delays before it is started again.
            post: takes the message that it has exited.
        """
        self._header = header
        self._pauses = pauses
        self._post = post
        self._loop = asyncio.get_running_loop()
        self._child: ChildProcess | None = None
        self._born = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._renewing = False
        self._killing: asyncio.Task[None] | None = None

    @abstractmethod
    def _execute(self) -> ChildProcess:
        """Start the process. Raises OSError or PacketError."""

    def _settle_exit(self) -> str:
        """Clean up after an exit. Return what operators should know about it, as the end of a sentence."""
        return ""

    def start(self) -> None:
        """Start the process. A `HelperExited` is posted when it has exited, or if it can't be started."""
        self._timer = None
        self._born = time.monotonic()
        setattr(self._header, f"{self.name}_beat", self._born)
        try:
            self._child = self._execute()
        except (OSError, PacketError) as error:
            self._post(HelperExited(self.name, f"can't be started: {error}"))
            return
        setattr(self._header, f"{self.name}_pid", self._child.pid)
        self._child.left.add_done_callback(self._ended)

    def schedule_start(self) -> float:
        """Schedule another start. Return the seconds until then."""
        cell = f"{self.name}_restarts"
        setattr(self._header, cell, getattr(self._header, cell) + 1)
        pause = self._pauses.after(time.monotonic() - self._born)
        self._timer = self._loop.call_later(pause, self.start)
        return pause

    def renew(self) -> None:
        """Replace the process by a new one. This exit isn't counted."""
        if self._child is not None:
            self._renewing = True
            self._child.close_channel()

    def kill_if_stuck(self, now: float) -> str | None:
        """Kill the process if it is stuck. Return a warning then, else None."""
        beat: float = getattr(self._header, f"{self.name}_beat")
        if self._child is None or now - beat <= self.timeout_s:
            return None
        if self._killing is not None and not self._killing.done():
            return None
        self._killing = self._loop.create_task(self._kill_stuck(self._child))
        return f"the {self.name} has missed its heartbeats; it is killed"

    async def _kill_stuck(self, child: ChildProcess) -> None:
        """Log the stacks of a stuck process, which show the cause, then kill it."""
        logger.warning("stacks of the %s:\n%s", self.name, await child.stacks())
        child.kill()

    def alive(self) -> bool:
        """Return True if the process exists."""
        return self._child is not None

    def pids(self) -> set[int]:
        """Return the pid of the process that this object reaps."""
        return set() if self._child is None else {self._child.pid}

    def cancel_starts(self) -> None:
        """Cancel all starts to come."""
        self._renewing = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def stop(self) -> None:
        """Kill the process, and don't start it again."""
        self.cancel_starts()
        if self._child is not None:
            self._child.kill()

    async def wait_closed(self, patience: float) -> None:
        """Let the process exit, and don't start it again. Kill it after `patience` seconds."""
        self.cancel_starts()
        if self._child is not None:
            await self._child.wait_closed(patience)

    def _ended(self, left: asyncio.Future[str]) -> None:
        assert self._child is not None
        self._child.close_channel()
        self._child = None
        setattr(self._header, f"{self.name}_pid", 0)
        notice = self._settle_exit()
        if self._renewing:
            self._renewing = False
            self.start()
        else:
            self._post(HelperExited(self.name, f"is gone ({left.result()}){notice}"))
