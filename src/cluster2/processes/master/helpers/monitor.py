"""The monitor as the master sees it: a process beside the cluster, of which nothing depends."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Container, Sequence

import msgspec

from ....config.settings import Settings
from ....core.planning import RestartBackoff
from ....linux.listeners import Listener
from ....linux.scoreboard import Scoreboard
from ....protocol import codec, messages
from ....version import __version__
from ..resources import MasterResources
from ..state.inbox import InboxMessage
from .child import ChildProcess
from .helper import HelperProcess

MONITOR_SETTLED_S = 30.0
MONITOR_BACKOFF_S, MONITOR_MAX_BACKOFF_S = 1.0, 30.0
"""Seconds (`policy.Pauses`)."""

_READ_COMMANDS = frozenset({"status", "stacks", "component", "statuses", "events"})
_SWITCH_COMMANDS = frozenset({"enable", "disable"})
_ACTION_COMMANDS = _SWITCH_COMMANDS | {"reload", "scale", "recycle", "shutdown"}
"""Verbs that a monitor may ask for: always; with `ecv.control`; with `monitor_token`, which its own clients must bear."""

_OURS = ("ecv_", "mon_", "timeout")
"""Options, by the beginning of their name, that a reload can change and that mean something to it."""


Admit = Callable[[socket.socket, Container[str]], None]


class MonitorProcess(HelperProcess):
    """Has a monitor serve its ports. One gives a sign of life each second.

    Attributes:
        address: of its page.
    """

    name = "monitor"
    patience = 30.0

    def __init__(
        self,
        board: Scoreboard,
        listeners: Sequence[Listener],
        order: messages.StartMonitor,
        post: Callable[[InboxMessage], None],
        admit: Admit,
    ) -> None:
        """Nothing is started yet.

        Args:
            listeners: of its ports; stay open here, so that nobody else takes the ports and who asks meanwhile waits.
            post: takes the fact that it is gone.
            admit: hears it on a socket, as far as these verbs go.
        """
        super().__init__(
            board.header, RestartBackoff(MONITOR_SETTLED_S, MONITOR_BACKOFF_S, MONITOR_MAX_BACKOFF_S), post
        )
        self.address = str(listeners[0].address)
        self._board = board
        self._listeners = listeners
        self._order = order
        self._admit = admit

    @classmethod
    def from_resources(
        cls, resources: MasterResources, post: Callable[[InboxMessage], None], admit: Admit
    ) -> MonitorProcess | None:
        """That of a cluster; None if it shall have none."""
        if not resources.monitor:
            return None
        ports = [getattr(listener.address, "port", 0) for _, listener in resources.listeners]
        order = messages.StartMonitor(
            settings=resources.options[0].to_wire(),
            port=next((port for port in ports if port), 0),
            master=os.getpid(),
            version=__version__,
            addresses=[str(listener.address) for _, listener in resources.listeners],
            address=str(resources.monitor[0].address),
            log="" if resources.logbook is None else resources.logbook.output,
        )
        return cls(resources.board, resources.monitor, order, post, admit)

    def allowed_commands(self) -> frozenset[str]:
        """The verbs that it may ask for: what its own clients may have done, and no more, should somebody get hold of it."""
        settings = self._order.settings
        if settings["monitor_token"]:
            return _READ_COMMANDS | _ACTION_COMMANDS
        return _READ_COMMANDS | _SWITCH_COMMANDS if settings["ecv_control"] else _READ_COMMANDS

    def apply_settings(self, settings: Settings) -> None:
        """These options count from now on. Where they concern it, another monitor takes its place; who asks meanwhile waits."""
        values = settings.to_wire()
        if any(values[name] != self._order.settings[name] for name in values if name.startswith(_OURS)):
            self._order = msgspec.structs.replace(self._order, settings=values)
            self.renew()

    def _execute(self) -> ChildProcess:
        descriptors = [*self._board.descriptors, *(each.sock.fileno() for each in self._listeners)]
        child = ChildProcess(
            [sys.executable, "-P", "-m", "cluster2.processes.monitor"], codec.pack_order(self._order), descriptors
        )
        child.on_message(lambda packet, connections: self._asks(child, packet, connections))
        return child

    def _asks(self, child: ChildProcess, packet: bytes, connections: list[int]) -> None:
        """It wants to ask something; or it has left, or can't be understood any more."""
        if not packet:
            child.close_channel()
        for each in connections:
            try:
                self._admit(socket.socket(fileno=each), self.allowed_commands())
            except OSError:  # no socket
                os.close(each)
