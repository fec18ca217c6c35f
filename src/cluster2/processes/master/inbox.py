"""What the master learns, as values in one queue.

Signal handlers, timers, sockets and processes only put facts there; one is handled at a time. So there is no place where two
things happen to the master at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...core.lifecycle import WorkerState
from ...errors import ClusterError
from ...protocol import messages
from .workers.handle import Handle


@dataclass(frozen=True, slots=True)
class ZygoteMessage:
    """A zygote said something; None: it has ended.

    Attributes:
        how: how it ended and what it was doing, for a message.
        detail: its stacks, if it was killed because it hung.
    """

    generation: int
    message: messages.Orders | None
    how: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class WorkerMessage:
    """A worker said something."""

    worker: Handle
    message: messages.Talk


@dataclass(frozen=True, slots=True)
class ProtocolViolation:
    """A worker said something that is no message."""

    worker: Handle
    text: str


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """A worker's channel has ended: it closed it, or it is gone."""

    worker: Handle


@dataclass(frozen=True, slots=True)
class Exited:
    """A worker's process has ended and wants to be reaped."""

    worker: Handle


@dataclass(frozen=True, slots=True)
class WorkerVanished:
    """A worker had gone before it could be watched."""

    worker: Handle


@dataclass(frozen=True, slots=True)
class StateTimeout:
    """A worker has been in a state for longer than it may. When this is handled it may have left that state."""

    worker: Handle
    state: WorkerState


@dataclass(frozen=True, slots=True)
class HelperExited:
    """The keeper or the monitor has ended, or could not be started: how, as the end of a sentence that begins with its name."""

    name: str
    how: str


@dataclass(frozen=True, slots=True)
class Signal:
    """The master was sent a signal."""

    number: int


@dataclass(frozen=True, slots=True)
class LameDuckExpired:
    """The cluster has served on for as long as it was to."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Some time has passed: something may be due."""


@dataclass(slots=True, eq=False)
class Command:
    """Somebody asks for something through the control socket.

    Attributes:
        answer: to be called once, with a result or an error.
        tell: may be called before that, with how far it is; returns whether somebody still listens.
    """

    verb: str
    params: dict[str, Any]
    answer: Callable[[dict[str, Any] | ClusterError], None] = field(repr=False)
    tell: Callable[[dict[str, Any]], object] = field(repr=False, default=lambda progress: None)


Fact = (
    ZygoteMessage
    | WorkerMessage
    | ProtocolViolation
    | ChannelClosed
    | Exited
    | WorkerVanished
    | StateTimeout
    | HelperExited
    | Signal
    | LameDuckExpired
    | Tick
    | Command
)
