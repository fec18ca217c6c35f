"""The monitor as the master sees it: a process beside the cluster, of which nothing depends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

from .. import codec, wire
from ..kernel import processes
from ..kernel.descriptors import PacketError, Packets
from ..kernel.listeners import Listener
from ..kernel.scoreboard import Scoreboard
from ..settings import Settings
from .estate import Estate
from .facts import Fact, MonitorGone

PATIENCE = 30.0
"""Seconds without a sign of life (it gives one a second) after which it is stuck."""
SETTLED = 30.0
"""Seconds of life after which its end counts as the first one again."""
PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds until it is started again: not at all after the first end, then doubled each time up to the second number."""

_OURS = ("ecv_", "mon_", "timeout")
"""Options, by the beginning of their name, that a reload can change and that mean something to it."""


class Monitoring:
    """Starts the monitor, again if need be."""

    def __init__(
        self, board: Scoreboard, listeners: Sequence[Listener], order: wire.Observe, put: Callable[[Fact], None]
    ) -> None:
        """Nothing is started yet.

        Args:
            listeners: of its ports; stay open here, so that nobody else takes the ports and who asks meanwhile waits.
            put: takes the fact that it is gone.
        """
        self.address = str(listeners[0].address)
        self._board = board
        self._listeners = listeners
        self._order = order
        self._put = put
        self._loop = asyncio.get_running_loop()
        self._pid: int | None = None
        self._pidfd = -1
        self._channel: Packets | None = None
        self._born = 0.0
        self._pause = 0.0
        self._due: float | None = None
        self._renewing = False

    @classmethod
    def of(cls, estate: Estate, put: Callable[[Fact], None]) -> Monitoring | None:
        """That of a cluster; None if it shall have none."""
        if not estate.monitor:
            return None
        ports = [getattr(listener.address, "port", 0) for _, listener in estate.listeners]
        port = next((port for port in ports if port), 0)
        return cls(estate.board, estate.monitor, wire.Observe(estate.options[0].to_wire(), estate.pids.path, port), put)

    def pids(self) -> set[int]:
        """The process that this object reaps."""
        return set() if self._pid is None else {self._pid}

    def start(self) -> None:
        """Execute a monitor. The fact `MonitorGone` tells when it has ended, or that it can't be started."""
        self._due, self._born = None, time.monotonic()
        self._board.header.monitor_beat = self._born
        ours, theirs = Packets.pair()
        argv = [sys.executable, "-P", "-m", "cluster2.monitor"]
        try:
            ours.set_blocking(False)
            ours.send(
                codec.pack_order(self._order), [self._board.fd, *(each.sock.fileno() for each in self._listeners)]
            )
            pid = processes.execute(argv, fds={3: theirs.fileno()}, environ=os.environ | {wire.CHANNEL: "3"})
        except (OSError, PacketError) as error:
            ours.close()
            self._put(MonitorGone(f"it can't be started: {error}"))
            return
        finally:
            theirs.close()
        self._pid, self._channel, self._pidfd = pid, ours, processes.open_pidfd(pid)
        self._loop.add_reader(self._pidfd, self._exited)

    def heed(self, settings: Settings) -> None:
        """These options count from now on. Where they concern it, another monitor takes its place; who asks meanwhile waits."""
        values = settings.to_wire()
        if all(values[name] == self._order.settings[name] for name in values if name.startswith(_OURS)):
            return
        self._order = wire.Observe(values, self._order.pids, self._order.port)
        if self._channel is not None:
            self._renewing = True
            self._channel.close()

    def again(self) -> float:
        """It is gone: have it started again. Returns in how many seconds at the earliest."""
        now = time.monotonic()
        if now - self._born >= SETTLED:
            self._pause = 0.0
        pause = self._pause
        self._pause = min(max(PAUSE, 2 * pause), LONGEST_PAUSE)
        self._due = now + pause
        return pause

    def look(self, now: float) -> str | None:
        """Start it if that is due; kill it if it is stuck, and say so."""
        if self._due is not None and now >= self._due:
            self.start()
        elif self._pid is not None and now - self._board.header.monitor_beat > PATIENCE:
            self.kill()
            return "the monitor gives no sign of life; it is killed"
        return None

    def kill(self) -> None:
        """End it at once."""
        if self._pid is not None:
            processes.send_signal(self._pidfd, signal.SIGKILL)

    async def gone(self, patience: float) -> None:
        """End it for good; killed after `patience` seconds."""
        self._due, self._renewing = None, False
        if self._channel is not None:
            self._channel.close()
        deadline = time.monotonic() + patience
        while self._pid is not None:
            if time.monotonic() >= deadline:
                self.kill()
            await asyncio.sleep(0.005)

    def _exited(self) -> None:
        status = processes.exit_of(self._pidfd)
        if status is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._channel is not None:
            self._channel.close()
        self._pid, self._channel = None, None
        self._board.header.monitor_pid = 0
        if self._renewing:
            self._renewing = False
            self.start()
        else:
            self._put(MonitorGone(f"it is gone ({status})"))
