"""A transport for connections that stay in the worker for one request only.

In mode `handoff` each connection comes with its request, gets its response, and goes to the keeper. Most handlers are through
after their first step. So most of the work of a transport of the loop's own (a handle in the poller, a future, a task, two more
turns of the loop) would be for nothing. This transport makes one system call to read, before it exists, one to write, and one to
close. It writes when it is asked whether all is written: so a connection can be handed over in the very step that completed its
response.

If a request isn't through after its first step, a transport of the loop's replaces this one, which from then on only forwards.
That happens when the handler waits, the body isn't complete, or the response doesn't fit into the socket's buffer.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import Any, cast


class OneShotTransport(asyncio.Transport):
    """The transport of a protocol for one request.

    Invariant: bytes are written in order: by this transport before the replacement, by the loop's after it.
    """

    __slots__ = (
        "_aborted",
        "_closing",
        "_eof",
        "_loop",
        "_out",
        "_paused",
        "_promotion",
        "_protocol",
        "_real",
        "_sock",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, protocol: asyncio.Protocol) -> None:
        """Take over the socket. The caller must call `begin` next."""
        self._loop = loop
        self._sock = sock
        self._protocol = protocol
        self._out: list[bytes] = []
        self._closing = False
        self._aborted = False
        self._eof = False
        self._paused = False
        self._real: asyncio.Transport | None = None
        self._promotion: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start the protocol, which reads the bytes that it already has. Check again after the first step of its handler."""
        self._protocol.connection_made(self)
        self._loop.call_soon(self._after_first_step)

    def write(self, data: Any) -> None:
        """Buffer the data until the end of this turn, or until `get_write_buffer_size` is called."""
        if self._real is not None:
            self._real.write(data)
        elif not self._closing:
            self._out.append(bytes(data))  # a copy, since the caller may reuse its buffer

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        """Buffer several pieces of data, as `write`."""
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        """Try to write all. Return how many bytes are left."""
        if self._real is not None:
            return self._real.get_write_buffer_size()
        self._flush()
        return sum(map(len, self._out))

    def close(self) -> None:
        """Close the connection when all is written."""
        if self._real is not None:
            self._closing = True
            self._real.close()
        elif not self._closing:
            if self.get_write_buffer_size():
                # Only the loop's transport can wait for the socket to take the rest.
                self._closing = True
                if self._promotion is None:
                    self._promote()
            else:
                self._shut_down(socket.SHUT_RDWR)
                self.abort()

    def abort(self) -> None:
        """Close the descriptor now, by close(2) without shutdown(2), so that another process's copy lives on."""
        self._closing = self._aborted = True
        if self._real is not None:
            self._real.abort()
        elif self._promotion is None and self._sock.fileno() >= 0:
            self._sock.close()
            # In the next turn: the protocol may be in the middle of the call that aborts.
            self._loop.call_soon(self._protocol.connection_lost, None)

    def is_closing(self) -> bool:
        """Return whether the transport is closed, or will be."""
        return self._closing or (self._real is not None and self._real.is_closing())

    def pause_reading(self) -> None:
        """Stop reading. This transport doesn't read: the loop's will obey when it is there."""
        self._paused = True
        if self._real is not None:
            self._real.pause_reading()

    def resume_reading(self) -> None:
        """Resume reading, as `pause_reading`."""
        self._paused = False
        if self._real is not None:
            self._real.resume_reading()

    def is_reading(self) -> bool:
        """Return whether data that arrives would be passed to the protocol."""
        return not self._paused and not self._closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the socket or its addresses. Other information comes from the loop's transport only."""
        if name == "socket":
            return self._sock
        if name == "sockname":
            return self._sock.getsockname()
        if name == "peername":
            return self._peername()
        return default if self._real is None else self._real.get_extra_info(name, default)

    def _peername(self) -> Any:
        try:
            return self._sock.getpeername()
        except OSError:  # the client has left already
            return None

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol that reads."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let another protocol read from now on (a websocket's)."""
        self._protocol = cast(asyncio.Protocol, protocol)

    def can_write_eof(self) -> bool:
        """Return True: there is no TLS here."""
        return True

    def write_eof(self) -> None:
        """End writing, and go on reading."""
        self._eof = True
        if self._real is not None:
            self._real.write_eof()
        elif not self.get_write_buffer_size():
            self._shut_down(socket.SHUT_WR)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the limits of the loop's transport. This one buffers nothing for longer than a turn."""
        if self._real is not None:
            self._real.set_write_buffer_limits(high, low)

    def _after_first_step(self) -> None:
        """Replace this transport, if the request isn't through after the first step of its handler."""
        if self._closing or self._promotion is not None:
            return
        self._promote()

    def _promote(self) -> None:
        self._promotion = self._loop.create_task(self._replace())

    async def _replace(self) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: _ForwardingProtocol(self), self._sock)
        except OSError as error:
            self._closing = True
            self._sock.close()
            self._protocol.connection_lost(error)

    def _on_replaced(self, real: asyncio.Transport) -> None:
        """Pass the state to the loop's transport, which is there now."""
        self._real = real
        out, self._out = self._out, []
        if out:
            real.write(b"".join(out))
        if self._eof:
            real.write_eof()
        if self._paused:
            real.pause_reading()
        if self._aborted:
            real.abort()
        elif self._closing:
            real.close()

    def _shut_down(self, how: int) -> None:
        """End the connection itself, since a child process of the app may hold a copy of the descriptor."""
        try:
            self._sock.shutdown(how)
        except OSError:
            pass  # the client was faster, or has reset it

    def _flush(self) -> None:
        """Write as much as the socket takes."""
        if not self._out or self._promotion is not None:
            return  # during the replacement the loop's transport will write, so that the order is kept
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        try:
            # MSG_DONTWAIT holds for this call only. O_NONBLOCK belongs to the open file, which another process may share.
            sent = self._sock.send(data, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:  # the client has left; the loop's transport, which reads, will inform the protocol
            self._out.clear()
            return
        self._out = [data[sent:]] if sent < len(data) else []


class _ForwardingProtocol(asyncio.Protocol):
    """The protocol of the loop's transport, which forwards to the protocol of the transport that was replaced."""

    def __init__(self, replaced: OneShotTransport) -> None:
        self._replaced = replaced

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._replaced._on_replaced(cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        self._replaced._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._replaced._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._replaced._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._replaced._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._replaced._protocol.resume_writing()
