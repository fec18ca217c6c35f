"""What a worker is born with: its order, and all that its parents hand over with it."""

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
    """The other end of the channel, in this process."""

    async def open(self) -> socket.socket:
        """The end for the worker."""

    async def close(self) -> None:
        """The worker's end is closed: do what was asked for last."""


@dataclass(slots=True)
class WorkerSpec:
    """What a worker is born with.

    Attributes:
        sockets: listening sockets, each with what the order says about it.
        talk: its end of the channel to the master; None: there is no master (`cluster = false`).
        lifeline: a descriptor by which the kernel ends it after the master's end (`kernel.lifeline`), if there is a master.
        rest: the entry of the rest queue, if there is a keeper.
        ready: the exit of each app's ready queue, if there is a keeper.
        validator: says whether the app's answer to the health check is fine.
        heard: takes what it would tell a master, where there is none.
        loopback: what does the master's part in talking, where there is none.
        paper: what it writes; None: what every process writes, to standard error.
        terminal: that this process was started from, where there is no master.
        shut_doors: shuts the doors of the listeners where there is no master to do it; false: some stay open.
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
    on_message: Callable[[messages.Talk], None] = lambda message: None
    loopback: Loopback | None = None
    output: WorkerOutput | None = None
    shut_listeners: Callable[[], bool] | None = None
    terminal: Terminal | None = None
