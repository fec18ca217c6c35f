"""The inbox of the master: messages in one queue, handled one at a time.

Signal handlers, timers, sockets and processes only post messages. So no two things happen to the master at once, and no lock is
needed.

A failure that a part of the master finds while it handles a message is a message as well. It is handled before the master makes
or retires any worker: a plan made in between would make another worker of code that has just been shown to be broken.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ....core.lifecycle import WorkerState
from ....errors import ClusterError
from ....protocol import messages
from .handle import WorkerHandle


@dataclass(frozen=True, slots=True)
class ZygoteMessage:
    """A message of a zygote; None: the zygote has ended.

    Attributes:
        how: how it ended and what it was doing, for a message.
        detail: its stacks, if it was killed because it was stuck.
    """

    generation: int
    message: messages.Orders | None
    how: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class WorkerMessage:
    """A message of a worker."""

    worker: WorkerHandle
    message: messages.ChannelMessage


@dataclass(frozen=True, slots=True)
class ProtocolViolation:
    """A worker has sent bytes that are no message, or more messages than it may."""

    worker: WorkerHandle
    text: str


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """The channel of a worker has closed: the worker closed it, or has ended."""

    worker: WorkerHandle


@dataclass(frozen=True, slots=True)
class Exited:
    """The process of a worker has ended and has to be reaped."""

    worker: WorkerHandle


@dataclass(frozen=True, slots=True)
class WorkerVanished:
    """A worker had ended, and was reaped elsewhere, before the master could watch it."""

    worker: WorkerHandle


@dataclass(frozen=True, slots=True)
class StateTimeout:
    """A worker has been in a state for longer than it may. It may have left that state when this is handled."""

    worker: WorkerHandle
    state: WorkerState


@dataclass(frozen=True, slots=True)
class HelperExited:
    """The keeper or the monitor has ended, or can't be started.

    Attributes:
        how: the end of a sentence that begins with its name.
    """

    name: str
    how: str


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The first workers can't be made. This ends the cluster."""

    error: ClusterError


@dataclass(frozen=True, slots=True)
class GenerationFailed:
    """A generation can't be loaded, or a worker of it can't serve.

    This ends the first start. It abandons a reload to this generation. Later, no worker can be made for now.
    """

    generation: int
    error: ClusterError


@dataclass(frozen=True, slots=True)
class WorkerStartFailed:
    """A worker could not be made for a slot, or ended before it was ready. The master tries again.

    Attributes:
        text: the reason, for the command that waits for that worker.
    """

    slot: int
    text: str


@dataclass(frozen=True, slots=True)
class WorkerExitFailed:
    """A worker that had to leave did not leave in order.

    Attributes:
        text: what went wrong, in a line, for the command that wanted it to leave.
    """

    worker: WorkerHandle
    text: str


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal to the master."""

    number: int


@dataclass(frozen=True, slots=True)
class LameDuckExpired:
    """The time for which a lame duck serves is over."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Some time has passed: something may be due."""


@dataclass(slots=True, eq=False)
class Command:
    """A command from the control socket.

    Attributes:
        answer: to be called once, with the result or an error.
        send_progress: may be called before that; returns a false value when the client has left.
    """

    verb: str
    params: dict[str, Any]
    answer: Callable[[dict[str, Any] | ClusterError], None] = field(repr=False)
    send_progress: Callable[[dict[str, Any]], object] = field(repr=False, default=lambda progress: None)


Failure = StartFailed | GenerationFailed | WorkerStartFailed | WorkerExitFailed

InboxMessage = (
    ZygoteMessage
    | WorkerMessage
    | ProtocolViolation
    | ChannelClosed
    | Exited
    | WorkerVanished
    | StateTimeout
    | HelperExited
    | Failure
    | Signal
    | LameDuckExpired
    | Tick
    | Command
)


class Inbox:
    """The queue. Failures overtake all other messages."""

    def __init__(self) -> None:
        self._messages: deque[InboxMessage] = deque()
        self._failures: deque[Failure] = deque()
        self._filled = asyncio.Event()

    def post(self, message: InboxMessage) -> None:
        """Add a message. Call this on the master's loop only."""
        if isinstance(message, Failure):
            self._failures.append(message)
        else:
            self._messages.append(message)
        self._filled.set()

    async def get(self) -> InboxMessage:
        """Wait for the next message."""
        while True:
            if self._failures:
                return self._failures.popleft()
            if self._messages:
                return self._messages.popleft()
            self._filled.clear()
            await self._filled.wait()

    def next_failure(self) -> Failure | None:
        """Return the oldest failure that isn't handled yet, or None."""
        return self._failures.popleft() if self._failures else None

    def has_failures(self) -> bool:
        """Return True if a failure isn't handled yet."""
        return bool(self._failures)
