"""The worker's end of its channel to the master."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import cast

from ....protocol import codec, messages

logger = logging.getLogger("cluster2.worker")

OUTBOX_FULL_BYTES = 4 << 20
"""Bytes that may wait for the master. Beyond that calls wait, and events are refused."""
_OUTBOX_FLUSH_TIMEOUT_S = 5.0
"""Seconds in which the master must read the last messages."""


class MasterChannel(asyncio.Protocol):
    """Messages to and from the master, on a Unix stream socket.

    All threads may send. The messages of one turn of the loop are one write. The end of the stream means that the master is gone:
    the worker drains and leaves.

    Attributes:
        loop: the loop that reads and writes.
        thread: the identifier of that loop's thread.
        on_writable: called when the master reads again.
    """

    def __init__(
        self, receive: Callable[[messages.ChannelMessage | messages.Unknown], None], orphaned: Callable[[], None]
    ) -> None:
        """Prepare; `open` calls this on the loop."""
        self._receive = receive
        self._orphaned = orphaned
        self._unpacker = codec.Unpacker()
        self._transport: asyncio.Transport | None = None
        self._lock = threading.Lock()
        self._out = bytearray()
        self._flushing = False
        self._paused = False
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.on_writable: Callable[[], None] = lambda: None

    @classmethod
    async def open(
        cls,
        sock: socket.socket,
        receive: Callable[[messages.ChannelMessage | messages.Unknown], None],
        orphaned: Callable[[], None],
    ) -> MasterChannel:
        """Return the channel over a connected socket, which it takes over."""
        _, channel = await asyncio.get_running_loop().create_unix_connection(lambda: cls(receive, orphaned), sock=sock)
        return channel

    @property
    def full(self) -> bool:
        """True if so much waits for the master that nothing more should be sent."""
        return self._paused or len(self._out) > OUTBOX_FULL_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to send. Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class, with the same methods
        self._transport.set_write_buffer_limits(OUTBOX_FULL_BYTES)

    def pause_writing(self) -> None:
        """Note that the master doesn't read. Called by the loop."""
        self._paused = True

    def resume_writing(self) -> None:
        """Note that the master reads again. Called by the loop."""
        self._paused = False
        self.on_writable()

    def data_received(self, data: bytes) -> None:
        """Pass on the messages that have arrived. Called by the loop."""
        try:
            messages = self._unpacker.unpack(data)
        except codec.ProtocolError as error:  # without a protocol the master is as good as gone
            logger.error("a message of the master can't be decoded: %s", error)
            if self._transport is not None:
                self._transport.abort()
            return
        for message in messages:
            self._receive(message)

    def connection_lost(self, error: Exception | None) -> None:
        """Report that the master is gone. Called by the loop."""
        self._transport = None
        self._orphaned()

    def send(self, message: messages.ChannelMessage) -> None:
        """Send a message, from any thread. It is lost if the master is gone.

        Raises:
            ValueError: it is too long.
            TypeError: it contains an object that can't be encoded.
        """
        with self._lock:
            if self._transport is None:
                return
            codec.pack_into(self._out, message)
            if self._flushing:  # the flush that is scheduled will write this message as well
                return
            self._flushing = True
        if threading.get_ident() == self.thread:
            self.loop.call_soon(self._flush)
        else:
            try:
                self.loop.call_soon_threadsafe(self._flush)
            except RuntimeError:  # the loop is closed: the worker has left
                pass

    def _flush(self) -> None:
        with self._lock:
            out, self._out = self._out, bytearray()
            self._flushing = False
        if self._transport is not None and out:
            self._transport.write(out)
            if not self._paused:
                self.on_writable()

    async def close(self) -> None:
        """Close the channel when the kernel has taken all messages, or after `_OUTBOX_FLUSH_TIMEOUT_S`."""
        self._flush()
        transport, self._transport = self._transport, None
        if transport is not None:
            self._orphaned = lambda: None  # this end closes the channel: the master isn't gone
            transport.close()
            deadline = time.monotonic() + _OUTBOX_FLUSH_TIMEOUT_S
            while transport.get_write_buffer_size() and time.monotonic() < deadline:
                await asyncio.sleep(0.001)
