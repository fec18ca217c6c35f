"""The master's end of the channel to a worker.

The worker on the other side may be slow, stuck, broken or dead. The other workers must not notice, and the memory of the master
must stay bounded:

- *Out*: the messages of one turn of the loop are one write. While more than OUTBOX_FULL_BYTES wait, messages that can be spared
  (events) are dropped and counted; beyond MAX_OUTBOX_BYTES responses are dropped as well. The loop never waits. A channel that
  stays full for `patience` violates the protocol.
- *In*: each turn reads one piece, so that the other channels have their turns. Reading pauses while the worker has more than
  MAX_OPEN_CALLS calls under way, or MAX_OPEN_CALL_BYTES bytes of them. Then its own buffers fill, and its `delegate` waits. That
  is no fault, so the worker isn't replaced.
- *Supervision* (`Ready`, `Note`, …): these messages go to the master's inbox. More than MAX_SUPERVISION_MESSAGES of them within
  _SUPERVISION_PERIOD_S are a flood, and so are more than MAX_UNKNOWN_MESSAGES messages of unknown types.
- *Violations*: a worker that sends a flood, bytes that are no message, or a message that is too long (`codec.MAX_MESSAGE_BYTES`)
  is replaced.
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
"""Unsent bytes above which events are dropped, and above which responses are dropped as well."""
_FULL_READ_BYTES = 1 << 16
"""A read of at least so many bytes means that more is waiting. The other channels have their turns first."""
MAX_OPEN_CALLS = 8192
_RESUME_OPEN_CALLS = 4096
MAX_OPEN_CALL_BYTES = 32 << 20
"""Calls under way above which a worker isn't read, at which it is read again, and the bytes that they may have."""
MAX_SUPERVISION_MESSAGES = 1000
_SUPERVISION_PERIOD_S = 10.0
MAX_UNKNOWN_MESSAGES = 100
_DEAD_CHANNEL_GRACE_S = 1.0
"""Seconds to read the rest of a dead worker's messages: a child process of its own may hold the channel open."""


class WorkerChannel(asyncio.Protocol):
    """Passes the messages of a worker to the message hub, or to the master's inbox.

    Attributes:
        pid, slot: of the worker; the pid is 0 until the worker has sent it.
        open_calls: the delegated calls that it waits for, by number. Owned by the hub's delegation.
        fire_and_forget: number of its delegated calls under way that it doesn't wait for.
        pending_bytes: bytes of all its delegated calls that are under way.
        dropped: number of messages that were dropped because it doesn't read.
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
        self._full = self._paused = self._ended = False
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

    def send(self, message: messages.ChannelMessage) -> None:
        """Send a message. It is lost if the worker has gone. Raises ValueError if it is too long."""
        codec.pack_into(self._out, message)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def send_if_room(self, message: messages.ChannelMessage, bound: int = OUTBOX_FULL_BYTES) -> bool:
        """Send a message unless more than `bound` bytes wait, because the worker doesn't read. Return True if it was sent."""
        if self.is_closing() or len(self._out) > bound or (self._full and self._waiting() > bound):
            self.dropped += 1
            if self.dropped == 1:
                logger.warning("%s doesn't read its messages: messages to it are dropped", self._worker)
            return False
        self.send(message)
        return True

    def is_closing(self) -> bool:
        """Return True if no message can be sent any more."""
        return self._transport is None or self._transport.is_closing()

    def _waiting(self) -> int:
        return len(self._out) + (self._transport.get_write_buffer_size() if self._transport is not None else 0)

    def _flush(self) -> None:
        self._flushing = False
        out, self._out = self._out, bytearray()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(out)

    def pause_writing(self) -> None:
        """Note that the buffer is full (a callback of the loop): more than OUTBOX_FULL_BYTES wait."""
        self._full = True
        self._stalled = self._loop.call_later(self._patience, self._is_stalled)

    def resume_writing(self) -> None:
        """Note that the worker has read (a callback of the loop)."""
        self._full = False
        if self._stalled is not None:
            self._stalled.cancel()

    def _is_stalled(self) -> None:
        self._violated(f"it hasn't read its messages for {self._patience:g} s")

    # From the worker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin (a callback of the loop)."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class, with the same methods
        self._transport.set_write_buffer_limits(OUTBOX_FULL_BYTES)

    def data_received(self, data: bytes) -> None:
        """Handle the messages that have arrived (a callback of the loop)."""
        try:
            for message in self._unpacker.unpack(data):
                self._receive(message)
        except codec.ProtocolError as error:
            self._violated(str(error))
            return
        except Exception:  # a fault in the master, which must not affect the other workers
            logger.exception("%s sent a message that the master can't handle", self._worker)
            self._violated("the master can't handle its message")
            return
        if len(self.open_calls) + self.fire_and_forget > MAX_OPEN_CALLS or self.pending_bytes > MAX_OPEN_CALL_BYTES:
            self._hold()
        elif len(data) >= _FULL_READ_BYTES and not self._paused:
            self._hold()
            self._loop.call_soon(self.release, MAX_OPEN_CALLS)

    def _receive(self, message: messages.ChannelMessage | messages.Unknown) -> None:
        if self._hub.receive(self, message):
            return
        match message:
            case messages.Unknown():
                self._count_unknown(message.type)
            case _ if self._ended:
                pass  # its exit is recorded: what it reports about itself is obsolete
            case _:
                now = self._loop.time()
                if now - self._period > _SUPERVISION_PERIOD_S:
                    self._supervision, self._period = 0, now
                self._supervision += 1
                if self._supervision > MAX_SUPERVISION_MESSAGES:
                    raise codec.ProtocolError(
                        f"a flood: more than {MAX_SUPERVISION_MESSAGES} messages within {_SUPERVISION_PERIOD_S:g} s"
                    )
                if isinstance(message, messages.Started):
                    self.pid = message.pid
                    self._hub.on_connect(self)
                self._post(WorkerMessage(self._worker, message))

    def _count_unknown(self, kind: str) -> None:
        seen = self._unknown[kind] = self._unknown.get(kind, 0) + 1
        if seen == 1:
            logger.warning(
                "%s sent a message of a type that this version doesn't know, which is ignored: %r", self._worker, kind
            )
        if sum(self._unknown.values()) > MAX_UNKNOWN_MESSAGES:
            raise codec.ProtocolError(f"more than {MAX_UNKNOWN_MESSAGES} messages of unknown types")

    def _hold(self) -> None:
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def release(self, bound: int = _RESUME_OPEN_CALLS) -> None:
        """Read again, if no more than `bound` calls are under way, and they aren't too large."""
        if not self._paused or self._awaited is not None or self._transport is None:
            return
        if len(self.open_calls) + self.fire_and_forget <= bound and self.pending_bytes <= MAX_OPEN_CALL_BYTES:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def hold_until(self, ready: Callable[[], bool], every: float = 0.01) -> None:
        """Read nothing until `ready()` is true."""
        self._hold()
        if self._awaited is None:
            self._awaited = ready
            self._loop.call_later(every, self._check_limits, every)

    def _check_limits(self, every: float) -> None:
        if self._awaited is None or self._awaited():
            self._awaited = None
            self.release(MAX_OPEN_CALLS)
        else:
            self._loop.call_later(every, self._check_limits, every)

    def _violated(self, text: str) -> None:
        if self._transport is not None:
            self._transport.abort()
        if not self._ended:
            self._post(ProtocolViolation(self._worker, text))

    # The end

    def finish(self) -> None:
        """Read the rest of what the worker sent before it ended, to the end of the stream."""
        self._ended = True
        if self._transport is not None:
            self._paused, was_paused = False, self._paused
            if was_paused and not self._transport.is_closing():
                self._transport.resume_reading()
            self._loop.call_later(_DEAD_CHANNEL_GRACE_S, self.close)

    def close(self) -> None:
        """Close the channel at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Report the end of the channel (a callback of the loop)."""
        self._transport = None
        if self._stalled is not None:
            self._stalled.cancel()
        self._hub.on_disconnect(self)
        self._post(ChannelClosed(self._worker))
