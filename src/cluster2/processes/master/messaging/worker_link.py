"""The connection to a worker, as the parts of the message hub use it.

It is a protocol of its own, so that the hub, delegation and component status import neither each other nor the channel that
carries the messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ....protocol import messages


class WorkerLink(Protocol):
    """A connection to a worker.

    Attributes:
        pid, slot: of the worker; the pid is 0 until the worker has sent it.
        open_calls: the delegated calls that it waits for, by number. Owned by the hub's delegation.
        fire_and_forget: number of its delegated calls under way that it doesn't wait for.
        pending_bytes: bytes of all its delegated calls that are under way.
        dropped: number of messages to it that were dropped because it doesn't read.
    """

    pid: int
    slot: int
    open_calls: dict[int, Any]
    fire_and_forget: int
    pending_bytes: int
    dropped: int

    def send(self, message: messages.ChannelMessage) -> None:
        """Send a message."""

    def send_if_room(self, message: messages.ChannelMessage, bound: int = ...) -> bool:
        """Send a message unless more than `bound` bytes wait. Return True if it was sent."""

    def release(self) -> None:
        """Read from the worker again, if few enough of its calls are under way."""

    def hold_until(self, ready: Callable[[], bool]) -> None:
        """Read nothing from the worker until `ready()` is true."""

    def finish(self) -> None:
        """Read the rest of what the worker sent before it ended, then close."""

    def close(self) -> None:
        """Close the connection at once."""
