"""Hand an open connection to another process: when, what travels with it, where it is, and what happens if it can't.

Between two requests an HTTP/1.1 connection is nothing but a descriptor: it has no parser state, no buffer and no task. So it
needn't belong to a worker. At each moment it is in exactly one of four places:

    a worker's set ──idle queue──> the keeper's set ──ready queue──> the set of the first worker that is free

- *When it may move.* Plain HTTP/1.1 (or a TCP protocol that says so) may move between two requests, or with nothing received yet:
  no cycle or a complete one whose body was read, no message begun, no pipeline, nothing left to write. TLS that ends here,
  websockets, HTTP/2, a head half read and a body unread stay. The decision is made on demand.
- *The payload.* The descriptor (`SCM_RIGHTS`) and a record travel: the app that it belongs to, its address family, and for how
  long it has been idle, so that `timeout` holds wherever it is. Peer address and options are the socket's own. No byte of a
  request travels: bytes that arrive on the way wait in the socket, which is why none can be lost or doubled.
- *How it leaves.* The sender sends, and then closes its copy without shutting the connection down. If it can't send, it has
  changed nothing and keeps the connection. There is no third outcome: sendmsg(2) on a SEQPACKET socket is whole or not at all.
- *Queue full* (`EAGAIN`), or too many descriptors in flight for this user (`ETOOMANYREFS`, a bound of `RLIMIT_NOFILE`). A worker
  keeps the connection, and drains it politely if it must leave. The keeper keeps it in a FIFO until the queue drains.
- *Receiver slow, blocked or stopped.* Both queues are pairs of sockets that the master holds as well, so connections in them
  outlive any process. All workers read the same ready queue, so a blocked one holds up no other.
- *Receiver out of descriptors* (`EMFILE`). recvmsg(2) then delivers the message with the descriptors that it could install, and
  sets `MSG_CTRUNC`. The kernel closes the rest. To stay away from that, the processes raise `RLIMIT_NOFILE` to its hard limit,
  and a message carries no more than an eighth of the limit. A keeper that is full passes what comes on to workers, since a
  request would not be noticed in the queue. Both count lost connections (`truncated`).
- *Worker killed.* Connections in its set end with it. Those in a queue or at the keeper don't.
- *Keeper killed.* Connections in its set end, and are counted. Those in the queues don't. The master starts another keeper.
- *Foreign data in a queue.* A record that isn't whole, or without its descriptor, is dropped, and stray descriptors are closed. A
  descriptor that is no socket fails where it is first used, and is closed there.

A message may carry many connections: a worker that retires sends all it has, so leaving with thousands of them takes
milliseconds. The ready queue carries one connection a message, since each is for the first worker that is free.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from . import app_forks

RECORD_FORMAT = struct.Struct("=BBxxf")
"""The record of a connection: index of its app, address family, seconds that it has been idle."""
CONNECTIONS_PER_MESSAGE = 128
"""Connections in one message. The kernel's bound is 253 (SCM_MAX_FD)."""
_QUEUE_BUFFER_BYTES = 1 << 20
"""Bytes of SO_SNDBUF asked for; the kernel may give less. A message of one connection takes about 800."""

_LEAST_BATCHES = 8
"""Batches that a process must be able to hold: with few descriptors messages carry fewer connections."""

_INT = array.array("i").itemsize
_SPACE = socket.CMSG_SPACE(CONNECTIONS_PER_MESSAGE * _INT)
_ONE = socket.CMSG_SPACE(_INT)
_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
_NOWAIT = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_TAKE = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC


class HandedConnection(NamedTuple):
    """A connection on its way.

    Attributes:
        descriptor: of the connection; its receiver has to close it.
        app_index: index of its app.
        family: AF_INET, AF_INET6 or AF_UNIX.
        idle_s: seconds that it has been idle.
    """

    descriptor: int
    app_index: int
    family: int
    idle_s: float


def batch_size(limit: int) -> int:
    """Return how many connections one message may carry where each process may have `limit` descriptors."""
    return max(1, min(CONNECTIONS_PER_MESSAGE, limit // _LEAST_BATCHES))


def queue() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a queue: connections go in at the first, come out at the second. Many processes can share both."""
    into, out = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    into.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _QUEUE_BUFFER_BYTES)
    app_forks.withhold(into, out)
    return into, out


class QueueWriter:
    """The end of a queue where connections go in. Never blocks."""

    def __init__(self, sock: socket.socket, batch: int = CONNECTIONS_PER_MESSAGE) -> None:
        self._sock = sock
        self._batch = batch

    def fileno(self) -> int:
        """Return the descriptor for epoll: writable means that a message fits again."""
        return self._sock.fileno()

    def send(self, descriptor: int, app_index: int, family: int, idle_s: float) -> bool:
        """Send one connection; false: it can't be taken now, and stays the caller's. Else the caller closes its copy."""
        try:
            self._sock.sendmsg(
                (RECORD_FORMAT.pack(app_index, family, idle_s),),
                ((*_RIGHTS, descriptor.to_bytes(_INT, "little")),),
                _NOWAIT,
            )
        except OSError:  # the queue is full, too many are in flight, or there is no reader any more
            return False
        return True

    def send_all(self, parcels: Sequence[HandedConnection]) -> int:
        """Send as many as can be taken, in order; returns how many. The caller closes its copies of those."""
        sent = 0
        while sent < len(parcels):
            some = parcels[sent : sent + self._batch]
            records = b"".join(RECORD_FORMAT.pack(each.app_index, each.family, each.idle_s) for each in some)
            rights = array.array("i", [each.descriptor for each in some])
            try:
                self._sock.sendmsg((records,), ((*_RIGHTS, rights),), _NOWAIT)
            except OSError:
                break
            sent += len(some)
        return sent

    def close(self) -> None:
        """Close this end."""
        self._sock.close()


class QueueReader:
    """The end of a queue where connections come out. Never blocks.

    Attributes:
        truncated: how many were lost because this process could have no further descriptor.
        ended: all ends that could send have been closed.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.truncated = 0
        self.ended = False

    def fileno(self) -> int:
        """Return the descriptor for epoll."""
        return self._sock.fileno()

    def take(self) -> HandedConnection | None:
        """Return one connection of a queue that carries one a message; None: there is none, or the message was foreign."""
        parcels = self._receive(RECORD_FORMAT.size + 1, _ONE)
        return parcels[0] if parcels else None

    def take_all(self) -> list[HandedConnection]:
        """Return the connections of the next message; []: there is none, or the message was foreign."""
        return self._receive(RECORD_FORMAT.size * CONNECTIONS_PER_MESSAGE + 1, _SPACE)

    def close(self) -> None:
        """Close this end."""
        self._sock.close()

    def _receive(self, size: int, space: int) -> list[HandedConnection]:
        try:
            data, control, flags, _ = self._sock.recvmsg(size, space, _TAKE)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:  # perhaps ENOMEM, which isn't the end
            self.ended = _hung_up(self._sock)
            return []
        descriptors = array.array("i")
        for level, kind, content in control:
            if (level, kind) == _RIGHTS:
                descriptors.frombytes(content[: len(content) // _INT * _INT])
        if not data and not descriptors:
            self.ended = _hung_up(self._sock)  # a foreign message may be empty, and looks like the end
            return []
        count = len(data) // RECORD_FORMAT.size
        # `size` is a byte more than the records of a message, so a message that is too long is recognized here.
        whole = len(data) == count * RECORD_FORMAT.size
        if whole and flags & socket.MSG_CTRUNC and len(descriptors) < count:
            self.truncated += count - len(descriptors)
        elif not whole or count != len(descriptors):
            _close_all(descriptors)
            return []
        # The kernel installs descriptors in their order, so the records of the first ones are whole if it ran out of them.
        records = RECORD_FORMAT.iter_unpack(data[: len(descriptors) * RECORD_FORMAT.size])
        return [
            HandedConnection(descriptor, app_index, family, idle_s)
            for descriptor, (app_index, family, idle_s) in zip(descriptors, records, strict=False)
        ]


def _hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def _close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
