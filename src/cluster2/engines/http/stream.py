"""Frame the body of a response that comes in several messages (RFC 9112, 6), and write it.

The first part of a stream, and each part that comes later than `STREAM_HOLD_S` after the last write, is written at once. Parts
that follow each other faster are held, and leave in one write at the end of the loop's step at the latest. An app that makes 64
parts of 1 KiB without waiting costs 3 system calls instead of 66. The kernel makes a segment of each write.
"""

from __future__ import annotations

import asyncio
from time import monotonic

from .limits import MAX_JOINED_BODY_BYTES, MAX_STREAM_HOLD_BYTES, STREAM_HOLD_S
from .response import LAST_CHUNK, InvalidResponse

NO_BODY, LENGTH_BODY, CHUNKED_BODY, UNTIL_CLOSE_BODY = 0, 1, 2, 3
"""Ways for a client to find the end of a body: there is no body, a length, chunks, the end of the connection."""


class BodyStream:
    """The rest of a body, behind the part that was written with the head.

    Attributes:
        framing: `LENGTH_BODY` or another of these constants.
    """

    __slots__ = ("_flush_due", "_held", "_held_bytes", "_left", "_loop", "_transport", "_written_at", "framing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, framing: int, left: int) -> None:
        """Begin behind the head, which was just written.

        Args:
            transport, loop: of the connection.
            framing: see the class.
            left: for `LENGTH_BODY`: bytes that are missing from the declared length.
        """
        self._transport = transport
        self._loop = loop
        self.framing = framing
        self._left = left
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._flush_due = False
        self._written_at = monotonic()

    def send(self, body: bytes, more: bool) -> None:
        """Frame and write a part. Raises InvalidResponse."""
        framing, size = self.framing, len(body)
        if framing == LENGTH_BODY:
            self._left -= size
            if self._left < 0:
                raise InvalidResponse("the app's body is longer than its Content-Length")
            if self._left and not more:
                raise InvalidResponse("the app's body is shorter than its Content-Length")
        elif framing == NO_BODY:
            return
        if size > MAX_JOINED_BODY_BYTES:
            self._send_large(body, more)
            return
        if framing == CHUNKED_BODY:
            body = b"%x\r\n%b\r\n" % (size, body) if size else b""
            if not more:
                body += LAST_CHUNK
        held = self._held
        if more:
            if not body:
                return
            now = monotonic()
            # A part that comes soon after a write is probably one of many: hold it for the end of the loop's step.
            if now - self._written_at < STREAM_HOLD_S and self._held_bytes < MAX_STREAM_HOLD_BYTES:
                held.append(body)
                self._held_bytes += size
                if not self._flush_due:
                    self._flush_due = True
                    self._loop.call_soon(self._step_over)
                return
            self._written_at = now
        if held:
            held.append(body)
            self.flush()
        elif body:
            self._transport.write(body)

    def _send_large(self, body: bytes, more: bool) -> None:
        """Write a part without copying it."""
        self.flush()
        self._written_at = monotonic()
        if self.framing == CHUNKED_BODY:
            after = b"\r\n" if more else b"\r\n" + LAST_CHUNK
            self._transport.writelines((b"%x\r\n" % len(body), body, after))
        else:
            self._transport.write(body)

    def _step_over(self) -> None:
        self._flush_due = False
        self.flush()

    def flush(self) -> None:
        """Write the parts that are held."""
        held = self._held
        if held:
            self._transport.write(held[0] if len(held) == 1 else b"".join(held))
            self.discard()

    def discard(self) -> None:
        """Drop the parts that are held."""
        self._held.clear()
        self._held_bytes = 0
