"""A transport for connections that stay for one request only.

While a worker parks, each connection comes with its request, is answered, and goes to the keeper. Most handlers are through
after their first step, so most of what a transport of the loop's own brings (a handle in the poller, a future, a task, two
more turns of the loop) is made for nothing. This one makes a system call to read, done before it exists, one to write, and one
to close. It writes when somebody asks whether all is written: then a connection can be handed over in the very step that
completed its response.

If a request isn't through after its first step (the handler waits for something, the body isn't complete, the response doesn't
fit into the socket's buffer), a transport of the loop's takes its place behind this one, which from then on only passes on.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import Any, cast


class OneShotTransport(asyncio.Transport):
    """What a protocol writes to. Invariant: bytes are written in order, by us before the change, by the loop's after it."""

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
        """Take the socket over; `begin` is to follow."""
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
        """Start the protocol, which reads what it was given; and look again when its handler has had its first step."""
        self._protocol.connection_made(self)
        self._loop.call_soon(self._turn_over)

    def write(self, data: Any) -> None:
        """Keep it until the end of this turn, or until somebody asks whether it is written."""
        if self._real is not None:
            self._real.write(data)
        elif not self._closing:
            self._out.append(bytes(data))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        """The same for several."""
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        """Bytes that are left after an attempt to write all."""
        if self._real is not None:
            return self._real.get_write_buffer_size()
        self._flush()
        return sum(map(len, self._out))

    def close(self) -> None:
        """Close when all is written."""
        if self._real is not None:
            self._closing = True
            self._real.close()
        elif not self._closing:
            if self.get_write_buffer_size():
                self._closing = True
                if self._promotion is None:
                    self._promote()
            else:
                self._shut_down(socket.SHUT_RDWR)
                self.abort()

    def abort(self) -> None:
        """Close now: close(2), without shutdown(2), so that another process's copy lives on."""
        self._closing = self._aborted = True
        if self._real is not None:
            self._real.abort()
        elif self._promotion is None and self._sock.fileno() >= 0:
            self._sock.close()
            self._loop.call_soon(self._protocol.connection_lost, None)

    def is_closing(self) -> bool:
        """Whether it is closed or about to be."""
        return self._closing or (self._real is not None and self._real.is_closing())

    def pause_reading(self) -> None:
        """Nothing is read before the loop's transport is there."""
        self._paused = True
        if self._real is not None:
            self._real.pause_reading()

    def resume_reading(self) -> None:
        """See `pause_reading`."""
        self._paused = False
        if self._real is not None:
            self._real.resume_reading()

    def is_reading(self) -> bool:
        """Whether data that comes would be passed to the protocol."""
        return not self._paused and not self._closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The socket and its addresses; other things only the loop's transport knows."""
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
        """Who reads."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Another one reads from now on (a websocket's)."""
        self._protocol = cast(asyncio.Protocol, protocol)

    def can_write_eof(self) -> bool:
        """Return True: there is no TLS here."""
        return True

    def write_eof(self) -> None:
        """End writing, keep reading."""
        self._eof = True
        if self._real is not None:
            self._real.write_eof()
        elif not self.get_write_buffer_size():
            self._shut_down(socket.SHUT_WR)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Of the loop's transport; ours keeps nothing for longer than a turn."""
        if self._real is not None:
            self._real.set_write_buffer_limits(high, low)

    def _turn_over(self) -> None:
        """The handler has had its first step."""
        if self._closing or self._promotion is not None:
            return
        self._promote()

    def _promote(self) -> None:
        self._promotion = self._loop.create_task(self._change_over())

    async def _change_over(self) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: _Relay(self), self._sock)
        except OSError as error:
            self._closing = True
            self._sock.close()
            self._protocol.connection_lost(error)

    def _take_place(self, real: asyncio.Transport) -> None:
        """The loop's transport is there."""
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
        """End the connection itself: a child process of the app may hold a copy of the descriptor."""
        try:
            self._sock.shutdown(how)
        except OSError:
            pass  # the client was faster, or has reset it

    def _flush(self) -> None:
        """Write what the socket takes."""
        if not self._out or self._promotion is not None:
            return
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        try:
            sent = self._sock.send(data, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:  # the client has gone; the loop's transport, which reads, will tell the protocol
            self._out.clear()
            return
        self._out = [data[sent:]] if sent < len(data) else []


class _Relay(asyncio.Protocol):
    """What stands behind us, once the loop's transport has taken our place."""

    def __init__(self, direct: OneShotTransport) -> None:
        self._direct = direct

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._direct._take_place(cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        self._direct._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._direct._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._direct._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._direct._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._direct._protocol.resume_writing()
