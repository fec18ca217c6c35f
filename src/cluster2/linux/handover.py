"""Hand an open connection to another process: when, what travels with it, where it is, and what happens if it can't.

Between two requests an HTTP/1.1 connection is nothing but a descriptor: no parser state, no buffer, no task. So it needn't
belong to a worker. It can be in one of four places, and is in exactly one of them at each moment:

    a worker's set ──rest queue──> the keeper's set ──ready queue──> the set of the first worker that is free

- *When it may move.* Plain HTTP/1.1 (or a TCP protocol that says so) between two requests, or with nothing received yet: no
  cycle or a complete one whose body was read, no message begun, no pipeline, nothing left to write. Not: TLS ended here,
  websockets, HTTP/2, a head half read, a body unread. Whether it may is derived when somebody asks.
- *What travels.* The descriptor (`SCM_RIGHTS`), and of each a record: the app that it belongs to, its address family, and for
  how long it has been idle, so that `timeout` holds wherever it is. Peer address and options are the socket's own. Never a
  byte of a request: what arrives on the way waits in the socket, which is why nothing can be lost or doubled.
- *How it leaves.* The sender sends, and then closes its copy without shutting the connection down. If it can't send, it has
  changed nothing and keeps the connection. There is no third outcome: sendmsg(2) on a SEQPACKET socket is whole or not at all.
- *Queue full* (`EAGAIN`), or too many descriptors in flight for this user (`ETOOMANYREFS`, a bound of `RLIMIT_NOFILE`): a
  worker keeps the connection, and drains it politely if it must leave; the keeper keeps it in a FIFO until the queue drains.
- *Receiver slow, blocked or stopped.* Both queues are pairs of sockets that the master holds as well, so what waits in them
  outlives any process; all workers read the same ready queue, so one that is blocked keeps nobody waiting.
- *Receiver out of descriptors* (`EMFILE`): recvmsg(2) then delivers the message with what it could install and sets
  `MSG_CTRUNC`; the rest is closed by the kernel. The processes raise `RLIMIT_NOFILE` to its hard limit to stay away from
  that, a message carries no more than an eighth of the limit, a keeper that has no room passes on to workers what comes (in the
  queue it would not be heard), and both count what was lost (`truncated`).
- *Worker killed.* Connections in its set die with it; those in a queue or at the keeper don't.
- *Keeper killed.* Those in its set die, and are counted; those in the queues don't. The master starts another one.
- *Foreign things in a queue.* A record that isn't whole, or without its descriptor, is dropped, and stray descriptors are
  closed. A descriptor that is no socket fails where it is first used, and is closed there.

A message may carry many connections (a worker that retires sends all it has): that is what makes leaving with thousands of
them a matter of milliseconds. The ready queue carries one a message, since each is for whoever is free.
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
"""Of each connection: index of its app, address family, seconds that it has been idle."""
CONNECTIONS_PER_MESSAGE = 128
"""Connections in one message. The kernel's bound is 253 (SCM_MAX_FD)."""
QUEUE_BUFFER_BYTES = 1 << 20
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
        descriptor: of the connection; whoever has the parcel has to close it.
        site: index of its app.
        family: AF_INET, AF_INET6 or AF_UNIX.
        age: seconds that it has been idle.
    """

    descriptor: int
    site: int
    family: int
    age: float


def batch_size(limit: int) -> int:
    """Return how many connections one message may carry where each process may have `limit` descriptors."""
    return max(1, min(CONNECTIONS_PER_MESSAGE, limit // _LEAST_BATCHES))


def queue() -> tuple[socket.socket, socket.socket]:
    """The two ends of a queue: where connections go in, where they come out. Both can be shared by many processes."""
    into, out = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    into.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_BUFFER_BYTES)
    app_forks.withhold(into, out)
    return into, out


class QueueWriter:
    """Where connections go in. Never blocks."""

    def __init__(self, sock: socket.socket, batch: int = CONNECTIONS_PER_MESSAGE) -> None:
        self._sock = sock
        self._batch = batch

    def fileno(self) -> int:
        """For epoll: writable means that a message fits again."""
        return self._sock.fileno()

    def send(self, descriptor: int, site: int, family: int, age: float) -> bool:
        """Send one connection; false: it can't be taken now, and is the caller's still. Else the caller closes its copy."""
        try:
            self._sock.sendmsg(
                (RECORD_FORMAT.pack(site, family, age),), ((*_RIGHTS, descriptor.to_bytes(_INT, "little")),), _NOWAIT
            )
        except OSError:  # full, too many in flight, or nobody reads any more
            return False
        return True

    def send_all(self, parcels: Sequence[HandedConnection]) -> int:
        """Send as many as can be taken, in order; returns how many. The caller closes its copies of those."""
        sent = 0
        while sent < len(parcels):
            some = parcels[sent : sent + self._batch]
            records = b"".join(RECORD_FORMAT.pack(each.site, each.family, each.age) for each in some)
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
    """Where connections come out. Never blocks.

    Attributes:
        truncated: how many were lost because this process had no room for another descriptor.
        ended: all ends that could send have been closed.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.truncated = 0
        self.ended = False

    def fileno(self) -> int:
        """For epoll."""
        return self._sock.fileno()

    def take(self) -> HandedConnection | None:
        """One connection from a queue that carries one a message; None: there is none, or what came was no such thing."""
        parcels = self._receive(RECORD_FORMAT.size + 1, _ONE)
        return parcels[0] if parcels else None

    def take_all(self) -> list[HandedConnection]:
        """The connections of the next message; [] if there is none (or what came was nothing whole)."""
        return self._receive(RECORD_FORMAT.size * CONNECTIONS_PER_MESSAGE + 1, _SPACE)

    def close(self) -> None:
        """Close this end."""
        self._sock.close()

    def _receive(self, size: int, space: int) -> list[HandedConnection]:
        try:
            data, control, flags, _ = self._sock.recvmsg(size, space, _TAKE)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:  # no memory, perhaps: that isn't the end
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
        whole = (
            len(data) == count * RECORD_FORMAT.size
        )  # more is asked for than fits, so this tells a message that is too long
        if whole and flags & socket.MSG_CTRUNC and len(descriptors) < count:
            self.truncated += count - len(descriptors)
        elif not whole or count != len(descriptors):
            _close_all(descriptors)
            return []
        records = RECORD_FORMAT.iter_unpack(data[: len(descriptors) * RECORD_FORMAT.size])
        return [
            HandedConnection(descriptor, site, family, age)
            for descriptor, (site, family, age) in zip(descriptors, records, strict=False)
        ]


def _hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def _close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
