"""The master's end of its channel to a worker: the link.

The worker on the other side may be slow, stuck, mad or dead; nobody else shall notice, and the master's memory stays bounded:

- *out*: messages of one turn of the loop are one write. When more than FULL bytes wait, what can be spared (events) is dropped
  and counted, and beyond MAX_OUTBOX_BYTES also answers; the loop never waits. A link that stays full for `patience` is garbage.
- *in*: a turn reads one piece and lets the others have theirs. Reading pauses while the worker has more than MAX_OPEN_CALLS pieces
  of work under way, or MAX_OPEN_CALL_BYTES bytes of it: then its own buffers fill, and its `delegate` waits. That isn't a fault, so
  nobody is replaced for it.
- what concerns supervision (`Ready`, `Note`, …) becomes a fact in the master's queue: more than MAX_SUPERVISION_MESSAGES of those within
  SUPERVISION_PERIOD_S are a flood. So are more than MAX_UNKNOWN_MESSAGES messages of unknown types.
- what is no message, or longer than `codec.LIMIT`, is garbage. The worker is replaced.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

from ....protocol import codec, messages
from ..messaging.hub import MessageHub
from ..state.handle import WorkerHandle
from ..state.inbox import ChannelClosed, InboxMessage, ProtocolViolation, WorkerMessage

logger = logging.getLogger("cluster2.app")

OUTBOX_FULL_BYTES = 1 << 20
MAX_OUTBOX_BYTES = 16 << 20
FULL_READ_BYTES = 1 << 16
"""A piece of at least so many bytes means that more is waiting: the others have their turn first."""
MAX_OPEN_CALLS = 8192
_RESUME_OPEN_CALLS = 4096
MAX_OPEN_CALL_BYTES = 32 << 20
MAX_SUPERVISION_MESSAGES = 1000
SUPERVISION_PERIOD_S = 10.0
MAX_UNKNOWN_MESSAGES = 100
DEAD_CHANNEL_GRACE_S = 1.0
"""Seconds that what a dead worker has said may take to arrive: a child of its own may hold the channel open."""


class WorkerChannel(asyncio.Protocol):
    """Gives what a worker says to the switchboard, or makes facts of it.

    Attributes:
        pid, slot: of the worker; the pid is 0 until it has told it.
        asked: what it has asked for and waits for, by number; the switchboard's.
        lone: work of its that nobody waits for.
        weight: bytes of all its work that is under way.
        dropped: messages that were dropped because it doesn't read.
    """

    def __init__(
        self, worker: WorkerHandle, post: Callable[[InboxMessage], None], hub: MessageHub, patience: float = 30.0
    ) -> None:
        self._worker = worker
        self._post = post
        self._hub = hub
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._unpacker = codec.Unpacker()
        self._transport: asyncio.Transport | None = None
        self._out = bytearray()
        self._flushing = False
        self._full = self._held = self._over = False
        self._awaited: Callable[[], bool] | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._supervision, self._period = 0, 0.0
        self._unknown: dict[str, int] = {}
        self.pid = 0
        self.slot = worker.slot
        self.open_calls: dict[int, Any] = {}
        self.fire_and_forget = self.pending_bytes = 0
        self.dropped = 0

    # To the worker

    def send(self, message: messages.Talk) -> None:
        """Say something; lost if the worker is gone. Raises ValueError if it is too long."""
        codec.pack_into(self._out, message)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def send_if_room(self, message: messages.Talk, bound: int = OUTBOX_FULL_BYTES) -> bool:
        """Say something that can be spared. Returns whether it was said; a worker that doesn't read misses it."""
        if self.is_closing() or len(self._out) > bound or (self._full and self._waiting() > bound):
            self.dropped += 1
            if self.dropped == 1:
                logger.warning("%s doesn't read what it is told: messages to it are dropped", self._worker)
            return False
        self.send(message)
        return True

    def is_closing(self) -> bool:
        """Whether nothing that is said arrives any more."""
        return self._transport is None or self._transport.is_closing()

    def _waiting(self) -> int:
        return len(self._out) + (self._transport.get_write_buffer_size() if self._transport is not None else 0)

    def _flush(self) -> None:
        self._flushing = False
        out, self._out = self._out, bytearray()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(out)

    def pause_writing(self) -> None:
        """Called by the loop: more than FULL bytes wait."""
        self._full = True
        self._stalled = self._loop.call_later(self._patience, self._is_stalled)

    def resume_writing(self) -> None:
        """Called by the loop."""
        self._full = False
        if self._stalled is not None:
            self._stalled.cancel()

    def _is_stalled(self) -> None:
        self._garbage(f"it hasn't read what it was told for {self._patience:g} s")

    # From the worker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class, with the same methods
        self._transport.set_write_buffer_limits(OUTBOX_FULL_BYTES)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        try:
            for message in self._unpacker.unpack(data):
                self._receive(message)
        except codec.ProtocolError as error:
            self._garbage(str(error))
            return
        except Exception:  # a fault of ours: whoever causes it shall not take the others along
            logger.exception("%s said something that the master can't deal with", self._worker)
            self._garbage("the master can't deal with it")
            return
        if len(self.open_calls) + self.fire_and_forget > MAX_OPEN_CALLS or self.pending_bytes > MAX_OPEN_CALL_BYTES:
            self._hold()
        elif len(data) >= FULL_READ_BYTES and not self._held:
            self._hold()
            self._loop.call_soon(self.release, MAX_OPEN_CALLS)

    def _receive(self, message: messages.Talk | messages.Unknown) -> None:
        if self._hub.receive(self, message):
            return
        match message:
            case messages.Unknown():
                self._strange(message.type)
            case _ if self._over:
                pass  # it is buried: what it was up to is of no interest any more
            case _:
                now = self._loop.time()
                if now - self._period > SUPERVISION_PERIOD_S:
                    self._supervision, self._period = 0, now
                self._supervision += 1
                if self._supervision > MAX_SUPERVISION_MESSAGES:
                    raise codec.ProtocolError(
                        f"a flood: more than {MAX_SUPERVISION_MESSAGES} messages within {SUPERVISION_PERIOD_S:g} s"
                    )
                if isinstance(message, messages.Started):
                    self.pid = message.pid
                    self._hub.on_connect(self)
                self._post(WorkerMessage(self._worker, message))

    def _strange(self, kind: str) -> None:
        seen = self._unknown[kind] = self._unknown.get(kind, 0) + 1
        if seen == 1:
            logger.warning(
                "%s said something that this version doesn't know, and it is ignored: %r", self._worker, kind
            )
        if sum(self._unknown.values()) > MAX_UNKNOWN_MESSAGES:
            raise codec.ProtocolError(f"more than {MAX_UNKNOWN_MESSAGES} messages of unknown types")

    def _hold(self) -> None:
        if not self._held and self._transport is not None and not self._transport.is_closing():
            self._held = True
            self._transport.pause_reading()

    def release(self, bound: int = _RESUME_OPEN_CALLS) -> None:
        """Read on, if no more than so many pieces of work are under way, and they aren't too heavy."""
        if not self._held or self._awaited is not None or self._transport is None:
            return
        if len(self.open_calls) + self.fire_and_forget <= bound and self.pending_bytes <= MAX_OPEN_CALL_BYTES:
            self._held = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def hold_until(self, ready: Callable[[], bool], look: float = 0.01) -> None:
        """Read nothing until that is true."""
        self._hold()
        if self._awaited is None:
            self._awaited = ready
            self._loop.call_later(look, self._check_limits, look)

    def _check_limits(self, every: float) -> None:
        if self._awaited is None or self._awaited():
            self._awaited = None
            self.release(MAX_OPEN_CALLS)
        else:
            self._loop.call_later(every, self._check_limits, every)

    def _garbage(self, text: str) -> None:
        if self._transport is not None:
            self._transport.abort()
        if not self._over:
            self._post(ProtocolViolation(self._worker, text))

    # The end

    def finish(self) -> None:
        """The worker is over: what it has said is still read, to the end of the stream."""
        self._over = True
        if self._transport is not None:
            self._held, held = False, self._held
            if held and not self._transport.is_closing():
                self._transport.resume_reading()
            self._loop.call_later(DEAD_CHANNEL_GRACE_S, self.close)

    def close(self) -> None:
        """End it at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the loop."""
        self._transport = None
        if self._stalled is not None:
            self._stalled.cancel()
        self._hub.on_disconnect(self)
        self._post(ChannelClosed(self._worker))
