"""The keeper as the master sees it: the queues that outlive it, and the process that serves them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..kernel import handover, processes
from ..kernel.scoreboard import Scoreboard
from .estate import Estate
from .facts import Fact, KeeperGone

PATIENCE = 10.0
"""Seconds without a sign of life (it gives one every two) after which a keeper is stuck: connections at rest would wait for
ever, which is worse than to lose them."""
MARGIN = 1.0
"""Seconds beyond its patience that a keeper which drains may take to leave."""
_ROOM = str(Path(__file__).resolve().parent.parent / "keeper")


class Keeping:
    """Holds the ends of all queues, so that what waits in them survives any process; starts the keeper, again if need be."""

    def __init__(self, board: Scoreboard, sites: int, timeout: float, put: Callable[[Fact], None]) -> None:
        """Make the queues; nothing is started yet.

        Args:
            sites: how many apps there are.
            timeout: seconds that a connection may be idle.
            put: takes the fact that it is gone.
        """
        self._board = board
        self._sites = sites
        self._timeout = timeout
        self._put = put
        self._loop = asyncio.get_running_loop()
        self._rest = handover.queue()
        self._ready = [handover.queue() for _ in range(sites)]
        self._pid: int | None = None
        self._pidfd = -1
        self._control: socket.socket | None = None
        self._bound: asyncio.TimerHandle | None = None

    @classmethod
    def of(cls, estate: Estate, put: Callable[[Fact], None]) -> Keeping | None:
        """That of a cluster; None if it shall have none."""
        settings = estate.options[0]
        if not settings.keeper:
            return None
        sites = 1 + max(site for site, _ in estate.listeners)
        return cls(estate.board, sites, settings.timeout, put)

    def descriptors(self) -> list[int]:
        """What each worker gets: the entry of the rest queue, the exit of each ready queue."""
        return [self._rest[0].fileno(), *(out.fileno() for _, out in self._ready)]

    def pids(self) -> set[int]:
        """The process that this object reaps."""
        return set() if self._pid is None else {self._pid}

    def start(self) -> None:
        """Execute a keeper. The fact `KeeperGone` tells when it has ended."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ends: list[socket.socket | Scoreboard] = [
            theirs,
            self._rest[1],
            self._board,
            *(into for into, _ in self._ready),
        ]
        numbers = {3 + index: end.fd if isinstance(end, Scoreboard) else end.fileno() for index, end in enumerate(ends)}
        argv = [sys.executable, "-I", "-S", _ROOM, str(self._sites), str(self._timeout)]
        self._board.header.keeper_beat = time.monotonic()
        with theirs:
            self._pid = processes.execute(argv, fds=numbers, environ=os.environ)
        self._control = ours
        self._pidfd = processes.open_pidfd(self._pid)
        self._loop.add_reader(self._pidfd, self._exited)

    def drain(self, patience: float) -> None:
        """It is to give back what wakes, and to leave when nothing rests any more, or after `patience` seconds."""
        if self._control is not None:
            try:
                # One that is stuck must not hold up the end.
                self._bound = self._loop.call_later(patience + MARGIN, self.kill)
                self._control.send(f"drain {patience}".encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                self.kill()  # dead already, or it doesn't listen

    def is_stuck(self, now: float) -> bool:
        """Whether it has given no sign of life for too long."""
        return self._pid is not None and now - self._board.header.keeper_beat > PATIENCE

    def kill(self) -> None:
        """End it at once; what rests there is lost."""
        if self._pid is not None:
            processes.send_signal(self._pidfd, signal.SIGKILL)

    def alive(self) -> bool:
        """Whether there is such a process."""
        return self._pid is not None

    def close(self) -> None:
        """Close all queues; whatever waits there is closed, too."""
        if self._bound is not None:
            self._bound.cancel()
        for into, out in [self._rest, *self._ready]:
            into.close()
            out.close()

    def _exited(self) -> None:
        status = processes.exit_of(self._pidfd)
        if status is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._control is not None:
            self._control.close()
        self._pid, self._control = None, None
        header = self._board.header
        lost, header.resting, header.keeper_pid = header.resting, 0, 0
        self._put(KeeperGone(lost, str(status)))
