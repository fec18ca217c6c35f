"""A lingering close, for a server that closes its connections by itself.

close(2) of a connection whose peer still has something to say is a reset (RFC 2525, 2.17): at once if it has arrived unread,
else when it arrives. What the peer hasn't taken by then is lost: over HTTP/2 a client that reads slowly says how much more it
takes up to the last byte. So a duplicate of the descriptor is held. The connection lives on when its owner has closed his; what
still comes is read and thrown away, until the peer closes, or has taken all and says nothing for LINGER_TIMEOUT_S: what its kernel has
taken it may not have read yet, and would lose as well if its next word were answered by a reset.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable

from .established_connections import DUPLICATE_DESCRIPTORS
from .tcp_progress import untaken

LINGER_TIMEOUT_S = 1.0
"""Seconds."""
_PIECE = 65536


class Lingering:
    """Connections that are held."""

    def __init__(self) -> None:
        """None is."""
        self._held: dict[int, socket.socket] = {}
        self._until: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, descriptors: Iterable[int]) -> None:
        """Hold these; as many as there may be descriptors."""
        for descriptor in list(descriptors):
            with contextlib.suppress(OSError):  # closed meanwhile, or there are too many
                duplicate = socket.socket(fileno=os.dup(descriptor))
                self._held[os.fstat(duplicate.fileno()).st_ino] = duplicate
                DUPLICATE_DESCRIPTORS.add(duplicate.fileno())

    def check(self, now: float) -> None:
        """Let those go that have an end: their owner has closed them, and their peer has all."""
        if self._held:
            owned = _sockets()
            for inode in [each for each in self._held if each not in owned]:
                goes_on = _goes_on(self._held[inode])
                if goes_on:
                    self._until[inode] = now + LINGER_TIMEOUT_S
                if goes_on is None or now >= self._until.get(inode, now):
                    self._let_go(inode)

    def close(self) -> None:
        """Let all go."""
        for inode in list(self._held):
            self._let_go(inode)

    def _let_go(self, inode: int) -> None:
        held = self._held.pop(inode)
        self._until.pop(inode, None)
        DUPLICATE_DESCRIPTORS.discard(held.fileno())
        held.close()


def _goes_on(held: socket.socket) -> bool | None:
    """Whether its peer takes or says something; None: it is over."""
    with contextlib.suppress(OSError):
        held.shutdown(socket.SHUT_WR)  # its owner has, if he had the time
    said = False
    try:
        held.getpeername()  # a reset that its owner has read of shows only here: what the peer didn't take is counted for ever
        while held.recv(_PIECE, socket.MSG_DONTWAIT):
            said = True
    except BlockingIOError:
        return said or untaken(held.fileno()) > 0
    except OSError:
        return None
    return True if untaken(held.fileno()) > 0 else None  # it has said its last word, and may still read


def _sockets() -> set[int]:
    """Inodes of what the process has open, but for duplicates."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in DUPLICATE_DESCRIPTORS:
            with contextlib.suppress(OSError):
                found.add(os.fstat(int(name)).st_ino)
    return found
