"""Carry messages between the app's code in the master and in the workers: events, delegated calls, component status.

These messages bypass the master's inbox, since nothing that the master decides depends on them: a link gives a message to
`MessageHub.receive`, and the parts of the hub respond over links. The hub doesn't know where a worker is or how it is reached.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from .... import events
from ....errors import ClusterError
from ....protocol import codec, messages
from ....runtime.event_emitter import Emitter
from .component_status import ComponentStatuses
from .delegation import Delegation
from .worker_link import WorkerLink

logger = logging.getLogger("cluster2.master")


class MessageHub:
    """The hub of a cluster. It is made before there is a master; handlers may be registered at any time.

    Attributes:
        emitter: handlers of events in this process.
        delegates: handlers of delegated calls.
        statuses: the components of the workers and their status.
    """

    def __init__(self, emitter: Emitter | None = None) -> None:
        self.emitter = emitter or Emitter()
        self.delegates = Delegation(self.emit)
        self.statuses = ComponentStatuses()
        self._links: dict[WorkerLink, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._dropped = 0
        self._on_event: Callable[[events.Event], None] = self.emitter.emit

    @property
    def running(self) -> bool:
        """True if the cluster runs in this process."""
        return self._loop is not None

    def start(self, on_event: Callable[[events.Event], None]) -> None:
        """Start the hub on the running loop, which is the master's.

        Args:
            on_event: takes the events of the workers.
        """
        self._loop, self._thread, self._on_event = asyncio.get_running_loop(), threading.get_ident(), on_event
        self.delegates.start()

    async def close(self, patience: float) -> None:
        """Wait up to `patience` seconds for calls that no worker waits for, then close all links."""
        deadline = time.monotonic() + patience
        while (self._links or self.delegates.unfinished()) and time.monotonic() < deadline:
            await asyncio.sleep(0.002)
        await self.delegates.close()
        for link in list(self._links):
            link.close()
        self._loop = None

    def counters(self) -> dict[str, int]:
        """Return the number of delegated calls begun, unfinished and late, and of messages dropped because workers don't read."""
        return {
            "delegated": self.delegates.handled,
            "unfinished": self.delegates.unfinished(),
            "late": self.delegates.late,
            "dropped": self._dropped + sum(link.dropped for link in self._links),
        }

    # Links

    def on_connect(self, link: WorkerLink) -> None:
        """Add the link of a worker."""
        if link in self._links:
            return
        self._links[link] = None
        self.statuses.on_connect(link)

    def on_disconnect(self, link: WorkerLink) -> None:
        """Remove the link of a worker."""
        if link in self._links:
            del self._links[link]
            self._dropped += link.dropped
        self.delegates.on_disconnect(link)
        self.statuses.on_disconnect(link)

    def receive(self, link: WorkerLink, message: messages.ChannelMessage | messages.Unknown) -> bool:
        """Handle a message of a worker, if it is one for the hub. Return True then. Raises codec.ProtocolError."""
        kind = type(message)
        if kind is messages.Delegate:
            self.delegates.on_request(link, message)  # type: ignore[arg-type]
        elif kind is messages.Emit:
            self._emitted(link, message)  # type: ignore[arg-type]
        elif kind is messages.GiveUp:
            self.delegates.on_give_up(link, message.number)  # type: ignore[union-attr]
        elif kind is messages.Viewed:
            self.statuses.viewed(link, message)  # type: ignore[arg-type]
        elif kind is messages.ComponentAnnounced:
            self.statuses.register(link, message.name)  # type: ignore[union-attr]
        else:
            return False
        return True

    # Events

    def emit(self, event: str, data: object = None, targets: Iterable[int] | None = None) -> None:
        """Send an event to the workers of those pids, or to all. This may be called in any thread.

        Raises:
            ClusterError: the data can't be encoded, or is too long.
        """
        message = messages.Emit(events.own(event), codec.sendable(data, f"the data of event {event!r}"), None, True)
        pids = None if targets is None else frozenset(targets)
        if self._loop is None:
            return
        if threading.get_ident() == self._thread:
            self._forward(message, pids)
        else:
            self._loop.call_soon_threadsafe(self._forward, message, pids)

    def _emitted(self, link: WorkerLink, message: messages.Emit) -> None:
        if message.event in events.EVENTS:
            raise codec.ProtocolError(f"it emitted {message.event!r}, which is the master's")
        data = codec.value(message.data)  # before anything else: data that can't be decoded isn't passed on
        if message.all or message.targets is not None:
            forwarded = messages.Emit(message.event, message.data, None, True, link.pid)
            self._forward(forwarded, None if message.targets is None else frozenset(message.targets))
        self._on_event(events.Emitted(time=time.time(), event=message.event, data=data, pid=link.pid, slot=link.slot))
        if self.emitter.crowded():
            link.hold_until(lambda: not self.emitter.crowded())

    def _forward(self, message: messages.Emit, pids: frozenset[int] | None) -> None:
        for link in self._links:
            if pids is None or link.pid in pids:
                link.send_if_room(message)

    # From any thread or loop

    async def in_master(self, ask: Callable[[], Any]) -> Any:
        """Await the coroutine that `ask()` returns, on the master's loop."""
        if self._loop is None:
            raise ClusterError("the cluster isn't running in this process")
        if asyncio.get_running_loop() is self._loop:
            return await ask()

        async def asking() -> Any:
            return await ask()

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asking(), self._loop))

    def call_soon(self, call: Callable[[], object]) -> None:
        """Call a function on the master's loop."""
        if self._loop is None:
            raise ClusterError("the cluster isn't running in this process")
        if threading.get_ident() == self._thread:
            call()
        else:
            self._loop.call_soon_threadsafe(call)
