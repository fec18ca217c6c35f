"""A lingering close, for a server that closes its connections by itself.

close(2) of a connection whose peer still sends is a reset (RFC 2525, 2.17): at once if data has arrived unread, else when it
arrives. Data that the peer hasn't received by then is lost. Over HTTP/2 a client that reads slowly sends window updates up to the
last byte.

So a duplicate of the descriptor is held, and the connection lives on when its owner has closed its own. Data that still comes is
read and discarded, until the peer closes, or has received all and sends nothing for _LINGER_TIMEOUT_S. The time is needed because
data that the peer's kernel has received may not have been read yet. It would be lost as well if the peer's next packet were
answered by a reset.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable

from .established_connections import DUPLICATE_DESCRIPTORS
from .tcp_progress import untaken

_LINGER_TIMEOUT_S = 1.0
"""Seconds without data from a peer that has received all."""
_PIECE = 65536


class Lingering:
    """The connections that are held."""

    def __init__(self) -> None:
        """Hold no connection yet."""
        self._held: dict[int, socket.socket] = {}
        self._until: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, descriptors: Iterable[int]) -> None:
        """Hold these connections, as many as there may be descriptors."""
        for descriptor in list(descriptors):
            with contextlib.suppress(OSError):  # closed meanwhile, or there are too many
                duplicate = socket.socket(fileno=os.dup(descriptor))
                self._held[os.fstat(duplicate.fileno()).st_ino] = duplicate
                DUPLICATE_DESCRIPTORS.add(duplicate.fileno())

    def check(self, now: float) -> None:
        """Close the duplicates of connections that are over: their owner has closed them, and their peer has received all."""
        if self._held:
            owned = _sockets()
            for inode in [each for each in self._held if each not in owned]:
                goes_on = _goes_on(self._held[inode])
                if goes_on:
                    self._until[inode] = now + _LINGER_TIMEOUT_S
                if goes_on is None or now >= self._until.get(inode, now):
                    self._let_go(inode)

    def close(self) -> None:
        """Close all duplicates."""
        for inode in list(self._held):
            self._let_go(inode)

    def _let_go(self, inode: int) -> None:
        held = self._held.pop(inode)
        self._until.pop(inode, None)
        DUPLICATE_DESCRIPTORS.discard(held.fileno())
        held.close()


def _goes_on(held: socket.socket) -> bool | None:
    """Return whether its peer receives or sends something; None: the connection is over."""
    with contextlib.suppress(OSError):
        held.shutdown(socket.SHUT_WR)  # the owner has done so, unless it had no time
    said = False
    try:
        # A reset that the owner has read shows only here: the kernel goes on counting what the peer didn't receive.
        held.getpeername()
        while held.recv(_PIECE, socket.MSG_DONTWAIT):
            said = True
    except BlockingIOError:
        return said or untaken(held.fileno()) > 0
    except OSError:
        return None
    return True if untaken(held.fileno()) > 0 else None  # the peer has closed its side, and may still read


def _sockets() -> set[int]:
    """Return the inodes of the files that the process has open, without the duplicates."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in DUPLICATE_DESCRIPTORS:
            with contextlib.suppress(OSError):
                found.add(os.fstat(int(name)).st_ino)
    return found
