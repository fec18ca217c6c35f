"""The app's client of the master: delegated calls, events and components over the worker's channel."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable
from typing import Any, Literal, Protocol

from .... import events
from ....errors import ClusterError
from ....protocol import codec, messages
from ....runtime.event_emitter import Emitter
from .components import Components
from .master_channel import MasterChannel
from .pending_calls import PendingCalls, refuse_if_full

logger = logging.getLogger("cluster2.worker")
Targets = Iterable[int] | Literal["all"] | None


class MasterClient(Protocol):
    """The interface behind the functions of `cluster2.worker`: a real worker's client, or a simulated one."""

    async def delegate(self, asked: messages.Delegate) -> Any:
        """Make a delegated call, and return its result."""

    def delegate_sync(self, asked: messages.Delegate) -> Any:
        """Make a delegated call in a thread, which waits, and return its result."""

    def delegate_nowait(self, asked: messages.Delegate) -> None:
        """Make a delegated call without a result."""

    def emit(self, message: messages.Emit) -> None:
        """Send an event."""


def emitted(event: str, data: object, targets: Targets) -> messages.Emit:
    """Return the message of an event.

    Raises:
        ClusterError: the data can't be encoded, or the targets are no pids.
        ValueError: the name is that of one of the master's own events.
    """
    raw = codec.sendable(data, f"the data of event {event!r}")
    if targets == "all":
        return messages.Emit(events.own(event), raw, None, True)
    if isinstance(targets, str):
        raise ClusterError(f"emit({event!r}): targets = {targets!r}: expected pids, or 'all'")
    return messages.Emit(events.own(event), raw, None if targets is None else list(targets))


class ChannelClient:
    """The app's side of the channel to the master.

    Attributes:
        pending_calls: delegated calls without a result so far.
    """

    def __init__(self, channel: MasterChannel, emitter: Emitter, components: Components) -> None:
        self._channel = channel
        self._emitter = emitter
        self._components = components
        self._tasks: set[asyncio.Task[None]] = set()
        self.pending_calls = PendingCalls(channel)

    def open(self) -> None:
        """Announce the components to the master, which knows this worker by now; later ones when they are registered."""
        self._components.announce = self._announce
        for name in self._components.names():
            self._announce(name)

    async def delegate(self, asked: messages.Delegate) -> Any:
        """Make a delegated call, and return its result. Callable from any loop."""
        return await self.pending_calls.call(asked)

    def delegate_sync(self, asked: messages.Delegate) -> Any:
        """Make a delegated call in a thread, which waits, and return its result."""
        return self.pending_calls.call_sync(asked)

    def delegate_nowait(self, asked: messages.Delegate) -> None:
        """Make a delegated call without a result. Raises ChannelFull."""
        self.pending_calls.send(asked)

    def emit(self, message: messages.Emit) -> None:
        """Send an event. Raises ChannelFull."""
        refuse_if_full(self._channel)
        self._channel.send(message)

    def receive(self, message: messages.ChannelMessage | messages.Unknown) -> bool:
        """Handle a message of the master. Return False if it is none for this client."""
        match message:
            case messages.CallResult():
                self.pending_calls.on_result(message)
            case messages.Emit():
                self._emitter.emit(
                    events.Emitted(
                        time=time.time(), event=message.event, data=codec.value(message.data), pid=message.origin
                    )
                )
            case messages.View() | messages.Reduce():
                self._run(self._send_status(message))
            case messages.Update():
                self._run(self._components.update(message.name, codec.value(message.value)))
            case messages.Unknown():
                logger.warning(
                    "the master sent a message of a kind that this worker does not know, and it is ignored: %r", message
                )
            case _:
                return False
        return True

    async def _send_status(self, query: messages.View | messages.Reduce) -> None:
        self._channel.send(await self._components.view_status(query))

    def _announce(self, name: str) -> None:
        self._channel.send(messages.ComponentAnnounced(name))
        # The app may register a component from any thread. A value that the master has sent before is set on the loop.
        self._channel.loop.call_soon_threadsafe(lambda: self._run(self._components.update_late(name)))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._channel.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
