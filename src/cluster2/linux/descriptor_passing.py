"""Messages that carry descriptors: pairs of SEQPACKET sockets and `SCM_RIGHTS`.

Why SEQPACKET. On a stream, the bytes of two messages may arrive in one read. Descriptors come with the first byte that they were
sent with, so a reader has to parse in order to know to which message a descriptor belongs. A datagram socket keeps messages
apart but has no end: a reader whose writer died waits for ever. SEQPACKET has both, messages and EOF. Several processes may read
the same end: each message goes to exactly one of them, with all of its descriptors.

Measured and tried (Linux 6.18):

- Sending and receiving a short message takes 6 µs together, and 10 with a descriptor, its `close` included.
- The capacity of a queue depends on the *sender's* buffer, SO_SNDBUF. SO_RCVBUF has no effect on Unix sockets. A short message is
  charged with the kernel's bookkeeping (about 0.75 KiB), so the default of 208 KiB holds 278 of them, with or without a
  descriptor. `net.unix.max_dgram_qlen` doesn't apply to a connected pair.
- A receiver that has no descriptor left (EMFILE) gets no error: the kernel delivers the message, drops the descriptors that don't
  fit, and sets MSG_CTRUNC. The same happens if the control buffer is too small. `receive` closes the descriptors that arrived and
  raises `PacketError`, because a part of a message's descriptors is of no use.
- An empty message looks like EOF, so `send` refuses it.
- O_NONBLOCK belongs to the socket, not to the descriptor: all processes that share an end share its mode.
- A user without privileges may have RLIMIT_NOFILE descriptors in flight through sockets at a time. Beyond that, sendmsg fails
  with ETOOMANYREFS, which passes through, as does EAGAIN. Both mean "try again later".
"""

from __future__ import annotations

import array
import errno
import os
import socket
from collections.abc import Sequence
from typing import Final

from cluster2.errors import ClusterError

from . import app_forks

MAX_MESSAGE_BYTES: Final = 65536
"""The longest message in bytes: the size of a receiver's buffer."""

MAX_DESCRIPTORS: Final = 253
"""The most descriptors in one message: the kernel's SCM_MAX_FD."""

_INT: Final = array.array("i").itemsize


class PacketError(ClusterError):
    """A message could not be sent as it is, or arrived incomplete."""


class DescriptorsLost(PacketError):
    """A message arrived whole, but not all of its descriptors: this process may open no more.

    Attributes:
        data: the message.
    """

    def __init__(self, message: str, data: bytes) -> None:
        super().__init__(message)
        self.data = data


class Packets:
    """One end of a SEQPACKET pair, close-on-exec. `send` and `receive` block unless `set_blocking(False)` was called."""

    def __init__(self, sock: socket.socket) -> None:
        """Use `pair`, or `attach` for a descriptor that was inherited or received."""
        self._sock = sock
        app_forks.withhold(sock)

    @classmethod
    def pair(cls, *, buffer: int | None = None) -> tuple[Packets, Packets]:
        """Return two connected ends.

        Args:
            buffer: SO_SNDBUF of both ends in bytes; None: the system's default. See `set_buffer`.
        """
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ends = cls(one), cls(other)
        if buffer is not None:
            for end in ends:
                end.set_buffer(buffer)
        return ends

    @classmethod
    def attach(cls, fd: int) -> Packets:
        """Return the end behind a descriptor, which becomes the object's own.

        Raises:
            ClusterError: the descriptor is no SEQPACKET socket; it stays open.
        """
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            raise ClusterError(f"descriptor {fd} is no socket: {error.strerror}") from error
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_SEQPACKET:
            sock.detach()
            raise ClusterError(f"descriptor {fd} is no SEQPACKET socket but {sock.family.name} {sock.type.name}")
        sock.set_inheritable(False)
        return cls(sock)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send one message, whole or not at all. The caller keeps its own copies of the descriptors.

        Args:
            data: 1 to 65536 bytes.
            fds: at most 253 open descriptors; the receiver gets others for the same files, in this order.
        Raises:
            PacketError: too long, empty, or too many descriptors.
            BlockingIOError: the queue is full, and the socket doesn't block.
            BrokenPipeError, ConnectionResetError: the other end is gone.
            OSError: ETOOMANYREFS, EBADF.
        """
        if not 0 < len(data) <= MAX_MESSAGE_BYTES:
            raise PacketError(f"a message has 1 to {MAX_MESSAGE_BYTES} bytes, not {len(data)}")
        if len(fds) > MAX_DESCRIPTORS:
            raise PacketError(f"a message carries at most {MAX_DESCRIPTORS} descriptors, not {len(fds)}")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            size = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            raise PacketError(f"a message of {len(data)} bytes is too long for a send buffer of {size}") from error

    def receive(self, max_fds: int = 64) -> tuple[bytes, list[int]]:
        """Return the next message and its descriptors, which are the caller's now and close-on-exec; b"" means EOF.

        Raises:
            PacketError: part of the message or of its descriptors was lost; the descriptors that arrived are closed.
            BlockingIOError: there is none, and the socket doesn't block.
            ConnectionResetError: the other end was closed with messages of this end unread.
        """
        data, control, flags, _ = self._sock.recvmsg(
            MAX_MESSAGE_BYTES, socket.CMSG_SPACE(max_fds * _INT), socket.MSG_CMSG_CLOEXEC
        )
        fds: list[int] = []
        if control:
            for level, kind, content in control:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds += array.array("i", content[: len(content) // _INT * _INT])
        # CMSG_SPACE is rounded up to a word, so the buffer may have held one descriptor more than asked for.
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC) or len(fds) > max_fds:
            for fd in fds:
                os.close(fd)
            if flags & socket.MSG_TRUNC:
                raise PacketError(_loss(flags, max_fds))
            raise DescriptorsLost(_loss(flags, max_fds), data)
        return data, fds

    def fileno(self) -> int:
        """Return the descriptor, for epoll and for passing it on; -1: closed."""
        return self._sock.fileno()

    def set_blocking(self, blocking: bool) -> None:
        """Set whether `send` and `receive` wait, for all processes that share this end."""
        self._sock.setblocking(blocking)

    def set_buffer(self, size: int) -> int:
        """Set how many bytes that this end has sent may wait (SO_SNDBUF). The module docstring says what a message counts.

        Returns:
            The number that the kernel uses: it doubles the given one, and bounds it by `net.core.wmem_max`.
        """
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        return self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def close(self) -> None:
        """Close this end; a second call does nothing."""
        self._sock.close()


def _loss(flags: int, max_fds: int) -> str:
    if flags & socket.MSG_TRUNC:
        return f"a message of more than {MAX_MESSAGE_BYTES} bytes arrived, and its end is lost"
    return f"descriptors were lost: more than {max_fds} in a message, or this process may open no more (RLIMIT_NOFILE)"
