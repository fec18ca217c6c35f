"""Run the monitor process. Nothing in the cluster depends on it."""

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

_MONITOR_SETTLED_S = 30.0
_MONITOR_BACKOFF_S, _MONITOR_MAX_BACKOFF_S = 1.0, 30.0
"""Seconds (`planning.RestartBackoff`)."""

_READ_COMMANDS = frozenset({"status", "stacks", "component", "statuses", "events"})
_SWITCH_COMMANDS = frozenset({"enable", "disable"})
_ACTION_COMMANDS = _SWITCH_COMMANDS | {"reload", "scale", "recycle", "shutdown"}
"""Commands that a monitor may send: always, with `ecv.control`, and with `monitor_token`, which its own clients must present."""

_MONITOR_OPTIONS = ("ecv_", "monitor_", "timeout")
"""Beginnings of the names of options that a reload can change and that the monitor uses."""


_Admit = Callable[[socket.socket, Container[str]], None]


class MonitorProcess(HelperProcess):
    """The monitor, and the listeners of its ports. A monitor publishes a heartbeat each second.

    Attributes:
        address: the address of its page.
    """

    name = "monitor"
    timeout_s = 30.0

    def __init__(
        self,
        board: Scoreboard,
        listeners: Sequence[Listener],
        order: messages.StartMonitor,
        post: Callable[[InboxMessage], None],
        admit: _Admit,
    ) -> None:
        """Make a monitor that isn't started yet.

        Args:
            listeners: the listeners of its ports. They stay open in this process: so no other program can take the ports, and
                clients that connect while a monitor is replaced wait.
            post: takes the message that it has exited.
            admit: serves its commands on a socket, as far as they are in this set.
        """
        super().__init__(
            board.header, RestartBackoff(_MONITOR_SETTLED_S, _MONITOR_BACKOFF_S, _MONITOR_MAX_BACKOFF_S), post
        )
        self.address = str(listeners[0].address)
        self._board = board
        self._listeners = listeners
        self._order = order
        self._admit = admit

    @classmethod
    def from_resources(
        cls, resources: MasterResources, post: Callable[[InboxMessage], None], admit: _Admit
    ) -> MonitorProcess | None:
        """Return the monitor of a cluster; None if its settings ask for none."""
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
            log="" if resources.log_directory is None else resources.log_directory.output,
        )
        return cls(resources.board, resources.monitor, order, post, admit)

    def allowed_commands(self) -> frozenset[str]:
        """Return the commands that it may send. They are those of its own clients, in case an attacker takes it over."""
        settings = self._order.settings
        if settings["monitor_token"]:
            return _READ_COMMANDS | _ACTION_COMMANDS
        return _READ_COMMANDS | _SWITCH_COMMANDS if settings["ecv_control"] else _READ_COMMANDS

    def apply_settings(self, settings: Settings) -> None:
        """Apply settings. If they concern the monitor, a new one replaces it; clients that connect in between wait."""
        values = settings.to_wire()
        if any(values[name] != self._order.settings[name] for name in values if name.startswith(_MONITOR_OPTIONS)):
            self._order = msgspec.structs.replace(self._order, settings=values)
            self.renew()

    def _execute(self) -> ChildProcess:
        descriptors = [*self._board.descriptors, *(each.sock.fileno() for each in self._listeners)]
        child = ChildProcess(
            [sys.executable, "-P", "-m", "cluster2.processes.monitor"], codec.pack_order(self._order), descriptors
        )
        child.on_message(lambda packet, connections: self._on_packet(child, packet, connections))
        return child

    def _on_packet(self, child: ChildProcess, packet: bytes, connections: list[int]) -> None:
        """Serve a connection on which the monitor will send commands. An empty packet: it has ended, or violated the protocol."""
        if not packet:
            child.close_channel()
        for each in connections:
            try:
                self._admit(socket.socket(fileno=each), self.allowed_commands())
            except OSError:  # the descriptor is no socket
                os.close(each)
