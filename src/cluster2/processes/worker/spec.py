"""The specification of a worker: its order, and the resources that the master or the zygote hands over with it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...config.settings import Settings
from ...engines.base import Engine
from ...linux.scoreboard import Scoreboard
from ...linux.terminal import Terminal
from ...protocol import messages
from ...runtime.app_loader import App
from .output import WorkerOutput


@dataclass(frozen=True, slots=True)
class AppBinding:
    """An app of this cluster with the engine that serves it."""

    app: App
    engine: type[Engine]


class Loopback(Protocol):
    """The master's end of the channel, in the worker's own process."""

    async def open(self) -> socket.socket:
        """Open the channel and return the worker's end."""

    async def close(self) -> None:
        """Carry out what the worker asked for last. Called after the worker's end is closed."""


@dataclass(slots=True)
class WorkerSpec:
    """All that a worker starts with.

    Attributes:
        bindings: the apps, by their index in the options.
        channel: the worker's end of the channel to the master; None: there is no master (`cluster = false`).
        sockets: the listening sockets, each with its description in the order.
        lifeline: a descriptor by which the kernel ends the worker after the master's end (`linux.parent_death_timer`); -1: none.
        idle_queue: the entry of the idle queue, if there is a keeper.
        ready_queues: the exit of each app's ready queue, if there is a keeper.
        validator: decides whether the app's response to the health check is good.
        on_message: receives the messages to the master where there is no master.
        loopback: the master's end of the channel where there is no master.
        output: the worker's log files; None: standard error, as for every process.
        shut_listeners: shuts the listeners where there is no master that does it; returns False if some stay open.
        terminal: the terminal that started this process, where there is no master.
    """

    order: messages.Fork
    settings: Settings
    bindings: Sequence[AppBinding]
    board: Scoreboard
    channel: socket.socket | None
    sockets: Sequence[tuple[messages.Socket, socket.socket]]
    lifeline: int = -1
    idle_queue: socket.socket | None = None
    ready_queues: Sequence[socket.socket] = ()
    validator: Callable[..., Any] | None = None
    on_message: Callable[[messages.ChannelMessage], None] = lambda message: None
    loopback: Loopback | None = None
    output: WorkerOutput | None = None
    shut_listeners: Callable[[], bool] | None = None
    terminal: Terminal | None = None
