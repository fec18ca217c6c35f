"""Connections that came in through a listener, found by looking at each of this process's descriptors.

For servers that keep their connections to themselves: what they don't tell, the kernel does. A listing of the descriptors and two
system calls for each, about 3 µs a descriptor.

ctypes is loaded with this: 2 MiB that a master needn't have.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator, Mapping

from .progress import transferred, untaken


def established(listener: socket.socket) -> int:
    """How many there are."""
    return sum(1 for _ in _established(listener))


def reset_established(listener: socket.socket) -> None:
    """Reset all of them at once: connect(2) to no address is a disconnect, and its peer gets an RST.

    Their owner finds them broken; the descriptors remain his to close.
    """
    for descriptor in _established(listener):
        reset(descriptor)


def reset(descriptor: int) -> None:
    """The same for one of them."""
    ctypes.CDLL(None, use_errno=True).connect(descriptor, struct.pack("H14x", socket.AF_UNSPEC), 16)


def readers(listener: socket.socket) -> Iterator[tuple[int, int, int]]:
    """Those whose client has something to take: descriptor, inode of the socket, and how many bytes the client has taken."""
    for descriptor in _established(listener):
        if untaken(descriptor) and (counts := transferred(descriptor)) is not None:
            yield descriptor, os.fstat(descriptor).st_ino, counts[0]


def progress(listener: socket.socket) -> dict[int, tuple[int, int]]:
    """How many bytes each of them has delivered and brought so far, by its descriptor. Those of a Unix socket can't be asked."""
    counts = ((descriptor, transferred(descriptor)) for descriptor in _established(listener))
    return {descriptor: count for descriptor, count in counts if count is not None}


def end_silent(listener: socket.socket, before: Mapping[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """End those with no `progress` since `before` whose client has taken all that was sent to it.

    Returns what to compare with next time: who has brought something is spared for good, who has taken something until then:
    between two writes of a server that is busy a client may have taken all that there is yet.
    Their owner reads the end of the connection, as if the client had closed it, and closes it in his own way.
    """
    now = progress(listener)
    for descriptor, count in now.items():
        if before.get(descriptor) == count and not untaken(descriptor):
            one = socket.socket(listener.family, socket.SOCK_STREAM, 0, descriptor)
            with contextlib.suppress(OSError):  # it has ended meanwhile
                one.shutdown(socket.SHUT_RD)
            one.detach()
    return {descriptor: (count[0], before.get(descriptor, count)[1]) for descriptor, count in now.items()}


def _established(listener: socket.socket) -> Iterator[int]:
    here = listener.getsockname()
    wild = isinstance(here, tuple) and here[0] in ("0.0.0.0", "::")
    for name in os.listdir("/proc/self/fd"):
        try:
            # Told family and kind, Python asks the kernel for neither.
            one = socket.socket(listener.family, socket.SOCK_STREAM, 0, int(name))
        except OSError:  # no socket, or closed meanwhile
            continue
        try:
            local = one.getsockname()
            if local == here or (wild and local[1] == here[1]):
                one.getpeername()
                yield int(name)
        except (OSError, TypeError, IndexError):
            pass  # it is no such connection, or isn't connected any more
        finally:
            one.detach()
