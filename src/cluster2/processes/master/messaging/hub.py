"""What users' code in the master and in the workers says to each other: events, delegated work, component status.

All of that goes past the master's queue of facts, since it changes nothing that the master decides by: the link gives a message
to `Switchboard.receive`, whose parts answer over links. Nothing here knows where a worker is or how it is reached.
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
    """Made with the cluster, before there is a master; handlers are registered at any time.

    Attributes:
        emitter: handlers of events in this process.
        delegates: handlers of delegated work.
        statuses: status of components in the workers.
    """

    def __init__(self, emitter: Emitter | None = None) -> None:
        self.emitter = emitter or Emitter()
        self.delegates = Delegation(self.emit)
        self.statuses = ComponentStatuses()
        self._links: dict[WorkerLink, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._dropped = 0
        self._heard: Callable[[events.Event], None] = self.emitter.emit

    @property
    def running(self) -> bool:
        """Whether the cluster runs in this process."""
        return self._loop is not None

    def start(self, heard: Callable[[events.Event], None]) -> None:
        """The master runs, on this loop.

        Args:
            heard: takes the events of the workers.
        """
        self._loop, self._thread, self._heard = asyncio.get_running_loop(), threading.get_ident(), heard
        self.delegates.start()

    async def close(self, patience: float) -> None:
        """Let work that nobody waits for end, for so long; then the master leaves."""
        deadline = time.monotonic() + patience
        while (self._links or self.delegates.unfinished()) and time.monotonic() < deadline:
            await asyncio.sleep(0.002)
        await self.delegates.close()
        for link in list(self._links):
            link.close()
        self._loop = None

    def counters(self) -> dict[str, int]:
        """Pieces of work begun, unfinished and done too late, and messages dropped because workers don't read."""
        return {
            "delegated": self.delegates.handled,
            "unfinished": self.delegates.unfinished(),
            "late": self.delegates.late,
            "dropped": self._dropped + sum(link.dropped for link in self._links),
        }

    # Links

    def on_connect(self, link: WorkerLink) -> None:
        """A worker can be talked to."""
        if link in self._links:
            return
        self._links[link] = None
        self.statuses.on_connect(link)

    def on_disconnect(self, link: WorkerLink) -> None:
        """It can't any more."""
        if link in self._links:
            del self._links[link]
            self._dropped += link.dropped
        self.delegates.on_disconnect(link)
        self.statuses.on_disconnect(link)

    def receive(self, link: WorkerLink, message: messages.Talk | messages.Unknown) -> bool:
        """A worker said something. Returns whether that is the switchboard's business. Raises codec.Garbled."""
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
        """An event for the workers of those pids, or for all. From any thread.

        Raises:
            ClusterError: the data can't travel.
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
        data = codec.value(message.data)  # first of all: what can't be understood isn't passed on
        if message.all or message.targets is not None:
            told = messages.Emit(message.event, message.data, None, True, link.pid)
            self._forward(told, None if message.targets is None else frozenset(message.targets))
        self._heard(events.Emitted(time=time.time(), event=message.event, data=data, pid=link.pid, slot=link.slot))
        if self.emitter.crowded():
            link.hold_until(lambda: not self.emitter.crowded())

    def _forward(self, message: messages.Emit, pids: frozenset[int] | None) -> None:
        for link in self._links:
            if pids is None or link.pid in pids:
                link.send_if_room(message)

    # From whatever thread or loop

    async def in_master(self, ask: Callable[[], Any]) -> Any:
        """Await what `ask()` returns on the master's loop."""
        if self._loop is None:
            raise ClusterError("the cluster isn't running in this process")
        if asyncio.get_running_loop() is self._loop:
            return await ask()

        async def asking() -> Any:
            return await ask()

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asking(), self._loop))

    def call_soon(self, call: Callable[[], object]) -> None:
        """Call it on the master's loop."""
        if self._loop is None:
            raise ClusterError("the cluster isn't running in this process")
        if threading.get_ident() == self._thread:
            call()
        else:
            self._loop.call_soon_threadsafe(call)
