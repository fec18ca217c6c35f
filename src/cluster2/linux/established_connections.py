"""Find the connections of a listener among this process's descriptors.

This is for servers that keep their connections to themselves: the kernel provides what they don't report. The cost is a listing
of the descriptors and two system calls for each, about 3 µs a descriptor.

ctypes is loaded with this module: 2 MiB that a master needn't have.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

from .tcp_progress import peer_spoke_last, transferred, untaken

DUPLICATE_DESCRIPTORS: set[int] = set()
"""Descriptors to skip: duplicates that this project holds (`lingering_close`)."""


class EstablishedConnection(NamedTuple):
    """The state of a connection at one moment.

    Attributes:
        inode: of its socket. The number of the descriptor may belong to another connection later.
        host, port: its peer's.
        taken: bytes that the peer has received so far.
        brought: bytes that came from it.
        untaken: bytes in the kernel that it hasn't received.
        asks: it has brought bytes since it was last sent any.
    """

    descriptor: int
    inode: int
    host: str
    port: int
    taken: int
    brought: int
    untaken: int
    asks: bool


def established(listener: socket.socket) -> int:
    """Return how many connections there are."""
    return sum(1 for _ in descriptors(listener))


def reset_established(listener: socket.socket) -> None:
    """Reset all of them at once.

    Their owner finds them broken. It still has to close its descriptors.
    """
    for descriptor in descriptors(listener):
        reset(descriptor)


def reset(descriptor: int) -> None:
    """Reset a connection.

    connect(2) to AF_UNSPEC is a disconnect, for which the peer gets an RST. A Unix socket has no RST (EINVAL): it is shut down,
    so that nothing more can be written.
    """
    if ctypes.CDLL(None, use_errno=True).connect(descriptor, struct.pack("H14x", socket.AF_UNSPEC), 16) != 0:
        _shut_down(descriptor, socket.SHUT_RDWR)


def reset_blocked(listener: socket.socket, peers: Container[tuple[str, int | None]]) -> int:
    """Reset the connections of these peers to which nothing can be written now, and return how many there were."""
    count = 0
    for descriptor, peer in _peers(listener):
        if isinstance(peer, tuple) and (peer[0].partition("%")[0], peer[1]) in peers and not _writable(descriptor):
            reset(descriptor)
            count += 1
    return count


def _writable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


def shut_down(descriptor: int) -> None:
    """Make the owner of a connection read its end, as if the client had closed it. The owner then closes it in its own way."""
    _shut_down(descriptor, socket.SHUT_RD)


def _shut_down(descriptor: int, how: int) -> None:
    # shutdown(2) doesn't check the family. Given one, Python makes no system call to find it out.
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)
    with contextlib.suppress(OSError):  # it has ended meanwhile
        one.shutdown(how)
    one.detach()


def with_progress(listener: socket.socket) -> Iterator[EstablishedConnection]:
    """Yield each of them with what shows its progress; Unix sockets are left out, since they have no such counts."""
    for descriptor, peer in _peers(listener):
        with contextlib.suppress(OSError):  # closed meanwhile
            inode = os.fstat(descriptor).st_ino
            # In this order: bytes that the peer receives in between show in the counts.
            left = untaken(descriptor)
            if (counts := transferred(descriptor)) is not None:
                host, port = peer[0].partition("%")[0], peer[1]  # without the scope of a link-local address
                yield EstablishedConnection(descriptor, inode, host, port, *counts, left, peer_spoke_last())


def progress(listener: socket.socket) -> dict[int, tuple[int, int]]:
    """Return how many bytes each connection has delivered and brought, by descriptor; Unix sockets have no such counts."""
    counts = ((descriptor, transferred(descriptor)) for descriptor in descriptors(listener))
    return {descriptor: count for descriptor, count in counts if count is not None}


def end_silent(listener: socket.socket, before: Mapping[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """End the connections without `progress` since `before` whose client has received all that was sent to it.

    Returns what to compare with next time (`progress_since`).
    """
    for descriptor, count in progress(listener).items():
        # In this order: a client that starts to read just now has nothing untaken any more, but its counts have changed.
        if before.get(descriptor) == count and not untaken(descriptor) and transferred(descriptor) == count:
            shut_down(descriptor)
    return progress_since(listener, before)


def progress_since(listener: socket.socket, before: Mapping[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Return the progress to compare with from now on.

    A client that has brought something since the first call keeps its old count, and so differs for good: it is active. A client
    that has only received something differs until the next call: between two writes of a busy server it may have received all
    that there is.
    """
    return {
        descriptor: (count[0], before.get(descriptor, count)[1]) for descriptor, count in progress(listener).items()
    }


def descriptors(listener: socket.socket) -> Iterator[int]:
    """Yield the descriptors of the listener's connections."""
    return (descriptor for descriptor, _ in _peers(listener))


def _peers(listener: socket.socket) -> Iterator[tuple[int, Any]]:
    """Yield the descriptors of the connections, and the addresses of their peers."""
    here = listener.getsockname()
    wild = isinstance(here, tuple) and here[0] in ("0.0.0.0", "::")
    for name in os.listdir("/proc/self/fd"):
        if int(name) in DUPLICATE_DESCRIPTORS:
            continue
        try:
            # With family and type given, Python asks the kernel for neither.
            one = socket.socket(listener.family, socket.SOCK_STREAM, 0, int(name))
        except OSError:  # no socket, or closed meanwhile
            continue
        try:
            local = one.getsockname()
            # A connection that was accepted has its listener's address. A wildcard listener shares the port only.
            if local == here or (wild and local[1] == here[1]):
                yield int(name), one.getpeername()
        except (OSError, TypeError, IndexError):
            pass  # it is no such connection, or isn't connected any more
        finally:
            one.detach()
