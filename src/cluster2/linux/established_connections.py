"""Connections that came in through a listener, found by looking at each of this process's descriptors.

For servers that keep their connections to themselves: what they don't tell, the kernel does. A listing of the descriptors and two
system calls for each, about 3 µs a descriptor.

ctypes is loaded with this: 2 MiB that a master needn't have.
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
"""Descriptors that aren't looked at: duplicates of ours (`lingering`)."""


class EstablishedConnection(NamedTuple):
    """A connection, at one look.

    Attributes:
        inode: of its socket: the descriptor may be another connection's tomorrow.
        host, port: its peer's.
        taken: bytes that the peer has taken so far.
        brought: bytes that came from it.
        untaken: bytes in the kernel that it hasn't taken.
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
    """How many there are."""
    return sum(1 for _ in descriptors(listener))


def reset_established(listener: socket.socket) -> None:
    """Reset all of them at once: connect(2) to no address is a disconnect, and its peer gets an RST.

    Their owner finds them broken; the descriptors remain his to close.
    """
    for descriptor in descriptors(listener):
        reset(descriptor)


def reset(descriptor: int) -> None:
    """Reset one of them. A Unix socket knows no RST (EINVAL): it is shut down, so that nothing more can be written."""
    if ctypes.CDLL(None, use_errno=True).connect(descriptor, struct.pack("H14x", socket.AF_UNSPEC), 16) != 0:
        _shut_down(descriptor, socket.SHUT_RDWR)


def reset_blocked(listener: socket.socket, peers: Container[tuple[str, int | None]]) -> int:
    """Reset those of these peers' connections to which nothing can be written now; return how many there were."""
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
    """Its owner reads the end of the connection, as if the client had closed it, and closes it in his own way."""
    _shut_down(descriptor, socket.SHUT_RD)


def _shut_down(descriptor: int, how: int) -> None:
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)  # shutdown(2) asks for no family
    with contextlib.suppress(OSError):  # it has ended meanwhile
        one.shutdown(how)
    one.detach()


def with_progress(listener: socket.socket) -> Iterator[EstablishedConnection]:
    """Each of them, with what shows its progress. Those of a Unix socket can't be asked."""
    for descriptor, peer in _peers(listener):
        with contextlib.suppress(OSError):  # closed meanwhile
            inode = os.fstat(descriptor).st_ino
            left = untaken(descriptor)  # first: what is taken in between shows in the counts
            if (counts := transferred(descriptor)) is not None:
                host, port = peer[0].partition("%")[0], peer[1]  # without the scope of a link-local address
                yield EstablishedConnection(descriptor, inode, host, port, *counts, left, peer_spoke_last())


def progress(listener: socket.socket) -> dict[int, tuple[int, int]]:
    """How many bytes each of them has delivered and brought so far, by its descriptor. Those of a Unix socket can't be asked."""
    counts = ((descriptor, transferred(descriptor)) for descriptor in descriptors(listener))
    return {descriptor: count for descriptor, count in counts if count is not None}


def end_silent(listener: socket.socket, before: Mapping[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """End those with no `progress` since `before` whose client has taken all that was sent to it.

    Returns what to compare with next time (`progress_since`).
    """
    for descriptor, count in progress(listener).items():
        # In this order: a client that begins to take just now has nothing untaken any more, but other counts.
        if before.get(descriptor) == count and not untaken(descriptor) and transferred(descriptor) == count:
            shut_down(descriptor)
    return progress_since(listener, before)


def progress_since(listener: socket.socket, before: Mapping[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Return the progress to compare with from now on.

    A client that has brought something since the first look keeps its old count, and so differs for good: it speaks. One that has
    taken something differs until the next look: between two writes of a busy server it may have taken all that there is yet.
    """
    return {
        descriptor: (count[0], before.get(descriptor, count)[1]) for descriptor, count in progress(listener).items()
    }


def descriptors(listener: socket.socket) -> Iterator[int]:
    """Theirs."""
    return (descriptor for descriptor, _ in _peers(listener))


def _peers(listener: socket.socket) -> Iterator[tuple[int, Any]]:
    """Descriptors, and the addresses of who is at the other end."""
    here = listener.getsockname()
    wild = isinstance(here, tuple) and here[0] in ("0.0.0.0", "::")
    for name in os.listdir("/proc/self/fd"):
        if int(name) in DUPLICATE_DESCRIPTORS:
            continue
        try:
            # Told family and kind, Python asks the kernel for neither.
            one = socket.socket(listener.family, socket.SOCK_STREAM, 0, int(name))
        except OSError:  # no socket, or closed meanwhile
            continue
        try:
            local = one.getsockname()
            if local == here or (wild and local[1] == here[1]):
                yield int(name), one.getpeername()
        except (OSError, TypeError, IndexError):
            pass  # it is no such connection, or isn't connected any more
        finally:
            one.detach()
