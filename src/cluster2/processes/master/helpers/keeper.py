"""The keeper as the master sees it: the queues that outlive it, and the process that serves them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from ....config.settings import Settings
from ....core.planning import RestartBackoff
from ....linux import handover
from ....linux.scoreboard import Scoreboard
from ..resources import MasterResources
from ..state.inbox import HelperExited, InboxMessage
from .child import ChildProcess
from .helper import HelperProcess

KEEPER_SETTLED_S = 10.0
KEEPER_BACKOFF_S, KEEPER_MAX_BACKOFF_S = 0.1, 5.0
"""Seconds (`policy.Pauses`): short, since connections at rest wait for nobody else."""
_KEEPER_DRAIN_MARGIN_S = 1.0
"""Seconds beyond its patience that a keeper which drains may take to leave."""
_ROOM = str(Path(__file__).resolve().parents[2] / "keeper")


class KeeperProcess(HelperProcess):
    """Holds the ends of all queues, so that what waits in them survives any process; has a keeper serve them.

    One gives a sign of life every two seconds; without, connections at rest would wait for ever, which is worse than to lose
    them. It is started when the first generation is loaded of which connections can move: never where all engines take
    connections themselves, or TLS ends in the workers.

    Attributes:
        serves: there is a keeper, or will be again: workers get the ways to it.
    """

    name = "keeper"
    patience = 10.0

    def __init__(
        self,
        board: Scoreboard,
        sites: int,
        options: Settings,
        post: Callable[[InboxMessage], None],
        unix: Collection[int] = (),
        log: str = "",
    ) -> None:
        """Make the queues; nothing is started yet.

        Args:
            sites: how many apps there are.
            options: of the cluster.
            post: takes the fact that it is gone.
            unix: indices of those that listen on a Unix socket, where TLS is never spoken.
            log: the file that its output goes to; "": it stays where it is.
        """
        super().__init__(board.header, RestartBackoff(KEEPER_SETTLED_S, KEEPER_BACKOFF_S, KEEPER_MAX_BACKOFF_S), post)
        self.serves = False
        self._board = board
        self._sites = sites
        self._options = options
        self._unix = unix
        self._log = log
        self._rest = handover.queue()
        self._ready = [handover.queue() for _ in range(sites)]
        self._bound: asyncio.TimerHandle | None = None

    @classmethod
    def from_resources(cls, resources: MasterResources, post: Callable[[InboxMessage], None]) -> KeeperProcess | None:
        """That of a cluster; None if it shall have none."""
        settings = resources.options[0]
        if not settings.keeper:
            return None
        sites = 1 + max(site for site, _ in resources.listeners)
        unix = {site for site, listener in resources.listeners if listener.sock.family == socket.AF_UNIX}
        log = "" if resources.logbook is None else resources.logbook.output
        return cls(resources.board, sites, settings, post, unix, log)

    def apply_settings(self, settings: Settings, movable: Collection[int]) -> None:
        """A generation is loaded: of these apps connections can move, if they are plain. Start a keeper if it is the first."""
        plain = settings.ssl_certfile is None
        if not self.serves and any(plain or site in self._unix for site in movable):
            self.serves = True
            self.start()

    def apply_timeout(self, settings: Settings) -> None:
        """Have connections that come to rest from now on be closed after the idle timeout of these options."""
        if settings.timeout == self._options.timeout:
            return
        self._options = settings
        if self._child is not None:
            # A keeper that is dying or doesn't listen is replaced by one that is started with the new value.
            with contextlib.suppress(OSError):
                self._child.channel.send(f"timeout {settings.timeout}".encode())

    def descriptors(self) -> list[int]:
        """What each worker gets: the entry of the rest queue, the exit of each ready queue."""
        return [self._rest[0].fileno(), *(out.fileno() for _, out in self._ready)]

    def drain(self, patience: float) -> None:
        """It is to give back what wakes, and to leave when nothing rests any more, or after `patience` seconds."""
        self.no_more()
        if not self.serves:
            return
        if self._child is None:
            self._post(HelperExited(self.name, "is gone"))  # nobody else will tell the workers that nothing comes back
            return
        try:
            # One that is stuck must not hold up the end.
            self._bound = self._loop.call_later(patience + _KEEPER_DRAIN_MARGIN_S, self.stop)
            self._child.channel.send(f"drain {patience}".encode())
        except OSError:
            self.stop()  # dead already, or it doesn't listen

    def close(self) -> None:
        """Close all queues; whatever waits there is closed, too."""
        self.no_more()
        if self._bound is not None:
            self._bound.cancel()
        for into, out in [self._rest, *self._ready]:
            into.close()
            out.close()

    def _execute(self) -> ChildProcess:
        ends = [self._rest[1].fileno(), *self._board.descriptors, *(into.fileno() for into, _ in self._ready)]
        options = self._options
        who = [str(options.user or ""), str(options.group or "")]
        argv = [sys.executable, "-I", "-S", _ROOM, str(self._sites), str(options.timeout), *who, self._log]
        return ChildProcess(argv, fds=dict(enumerate(ends, 4)))

    def _settle_exit(self) -> str:
        lost, self._header.resting = self._header.resting, 0
        return f": {lost} connections at rest are lost"
