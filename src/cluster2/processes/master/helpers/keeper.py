"""Run the keeper process, and hold the queues that outlive it."""

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

_KEEPER_SETTLED_S = 10.0
_KEEPER_BACKOFF_S, _KEEPER_MAX_BACKOFF_S = 0.1, 5.0
"""Seconds (`planning.RestartBackoff`). The delays are short, since only a keeper can serve the connections at rest."""
_KEEPER_DRAIN_MARGIN_S = 1.0
"""Seconds beyond `drain_idle` in which a keeper that drains may exit."""
_PROGRAM = str(Path(__file__).resolve().parents[2] / "keeper")


class KeeperProcess(HelperProcess):
    """The keeper, and both ends of all queues, so that connections in a queue survive the end of any process.

    A keeper publishes a heartbeat every two seconds. With a stuck keeper connections at rest would wait for ever, which is worse
    than to lose them. The keeper is started when the first generation is loaded whose connections can move. So it is never
    started where all engines accept connections themselves, or where the workers terminate TLS.

    Attributes:
        serves: a keeper exists, or will exist again: workers get its queues.
    """

    name = "keeper"
    timeout_s = 10.0

    def __init__(
        self,
        board: Scoreboard,
        apps: int,
        options: Settings,
        post: Callable[[InboxMessage], None],
        unix: Collection[int] = (),
        log: str = "",
    ) -> None:
        """Make the queues. No process is started yet.

        Args:
            apps: number of apps.
            options: the settings of the first generation.
            post: takes the message that it has exited.
            unix: indices of the apps that listen on a Unix socket, where TLS is never used.
            log: the file that takes its output; "": its output isn't redirected.
        """
        super().__init__(
            board.header, RestartBackoff(_KEEPER_SETTLED_S, _KEEPER_BACKOFF_S, _KEEPER_MAX_BACKOFF_S), post
        )
        self.serves = False
        self._board = board
        self._apps = apps
        self._options = options
        self._unix = unix
        self._log = log
        self._rest = handover.queue()
        self._ready = [handover.queue() for _ in range(apps)]
        self._bound: asyncio.TimerHandle | None = None

    @classmethod
    def from_resources(cls, resources: MasterResources, post: Callable[[InboxMessage], None]) -> KeeperProcess | None:
        """Return the keeper of a cluster; None if its settings ask for none."""
        settings = resources.options[0]
        if not settings.keeper:
            return None
        apps = 1 + max(app_index for app_index, _ in resources.listeners)
        unix = {app_index for app_index, listener in resources.listeners if listener.sock.family == socket.AF_UNIX}
        log = "" if resources.log_directory is None else resources.log_directory.output
        return cls(resources.board, apps, settings, post, unix, log)

    def apply_settings(self, settings: Settings, movable: Collection[int]) -> None:
        """Start a keeper with the first generation that has connections which can move: those of these apps, without TLS."""
        plain = settings.ssl_certfile is None
        if not self.serves and any(plain or app_index in self._unix for app_index in movable):
            self.serves = True
            self.start()

    def apply_timeout(self, settings: Settings) -> None:
        """Apply the idle timeout of these settings to connections that come to rest from now on."""
        if settings.timeout == self._options.timeout:
            return
        self._options = settings
        if self._child is not None:
            # A keeper that is ending, or whose queue is full, is replaced by one that starts with the new value.
            with contextlib.suppress(OSError):
                self._child.channel.send(f"timeout {settings.timeout}".encode())

    def descriptors(self) -> list[int]:
        """Return the descriptors that each worker gets: the entry of the idle queue, the exit of each ready queue."""
        return [self._rest[0].fileno(), *(out.fileno() for _, out in self._ready)]

    def drain(self, patience: float) -> None:
        """Drain the keeper: it gives back connections that wake, and exits when none rests, or after `patience` seconds."""
        self.cancel_starts()
        if not self.serves:
            return
        if self._child is None:
            self._post(HelperExited(self.name, "is gone"))  # so that the workers learn that no connection comes back
            return
        try:
            # A stuck keeper must not delay the end of the cluster.
            self._bound = self._loop.call_later(patience + _KEEPER_DRAIN_MARGIN_S, self.stop)
            self._child.channel.send(f"drain {patience}".encode())
        except OSError:
            self.stop()  # it has ended, or doesn't read

    def close(self) -> None:
        """Close all queues, with the connections that wait in them."""
        self.cancel_starts()
        if self._bound is not None:
            self._bound.cancel()
        for into, out in [self._rest, *self._ready]:
            into.close()
            out.close()

    def _execute(self) -> ChildProcess:
        ends = [self._rest[1].fileno(), *self._board.descriptors, *(into.fileno() for into, _ in self._ready)]
        options = self._options
        who = [str(options.user or ""), str(options.group or "")]
        argv = [sys.executable, "-I", "-S", _PROGRAM, str(self._apps), str(options.timeout), *who, self._log]
        return ChildProcess(argv, fds=dict(enumerate(ends, 4)))

    def _settle_exit(self) -> str:
        lost, self._header.resting = self._header.resting, 0
        return f": {lost} connections at rest are lost"
