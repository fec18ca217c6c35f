"""What the keeper and the monitor have in common: a process beside the workers that is there as long as the cluster is.

It is executed, gives a sign of life in the header of the scoreboard, and is started again when it ends: at once the first time,
then later each time (`policy.Pauses`), so that one that can't live doesn't cost the master more than a look now and then. That
one can't be started (no process, no descriptor is left) is no more than another end of it: nothing of that kind ends a cluster.
One without a sign of life is stuck; it is killed, which leads to the same.
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
    """One such process, again and again.

    Attributes:
        name: what it is called, also by its cells in the header: NAME_pid, NAME_beat, NAME_restarts.
        patience: seconds without a sign of life after which it is stuck.
    """

    name: ClassVar[str]
    patience: ClassVar[float]

    def __init__(self, header: Header, pauses: RestartBackoff, post: Callable[[InboxMessage], None]) -> None:
        """Nothing is started yet.

        Args:
            post: takes the fact that it is gone.
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
        """It is gone: settle what it leaves behind. Returns what operators should know of that, as the end of a sentence."""
        return ""

    def start(self) -> None:
        """Start it. The fact `HelperGone` tells when it has ended, or that it can't be started."""
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
        """It is gone and shall be there: start it when it may. Returns in how many seconds that is."""
        cell = f"{self.name}_restarts"
        setattr(self._header, cell, getattr(self._header, cell) + 1)
        pause = self._pauses.after(time.monotonic() - self._born)
        self._timer = self._loop.call_later(pause, self.start)
        return pause

    def renew(self) -> None:
        """Have another take its place, which isn't an end that counts."""
        if self._child is not None:
            self._renewing = True
            self._child.close_channel()

    def kill_if_stuck(self, now: float) -> str | None:
        """Kill it if it is stuck, and say so."""
        beat: float = getattr(self._header, f"{self.name}_beat")
        if self._child is None or now - beat <= self.patience:
            return None
        if self._killing is not None and not self._killing.done():
            return None
        self._killing = self._loop.create_task(self._kill_stuck(self._child))
        return f"the {self.name} gives no sign of life; it is killed"

    async def _kill_stuck(self, child: ChildProcess) -> None:
        """Log the stacks of a process that is stuck, which tell why, then kill it."""
        logger.warning("stacks of the %s:\n%s", self.name, await child.stacks())
        child.kill()

    def alive(self) -> bool:
        """Whether there is such a process."""
        return self._child is not None

    def pids(self) -> set[int]:
        """The process that this object reaps."""
        return set() if self._child is None else {self._child.pid}

    def no_more(self) -> None:
        """It isn't started again."""
        self._renewing = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def stop(self) -> None:
        """End it at once and for good."""
        self.no_more()
        if self._child is not None:
            self._child.kill()

    async def wait_closed(self, patience: float) -> None:
        """End it for good; killed after `patience` seconds."""
        self.no_more()
        if self._child is not None:
            await self._child.wait_closed(patience)

    def _ended(self, left: asyncio.Future[str]) -> None:
        assert self._child is not None
        self._child.close_channel()
        self._child = None
        setattr(self._header, f"{self.name}_pid", 0)
        what = self._settle_exit()
        if self._renewing:
            self._renewing = False
            self.start()
        else:
            self._post(HelperExited(self.name, f"is gone ({left.result()}){what}"))
