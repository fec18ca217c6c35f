"""The sources of a worker's connections: listening sockets and ready queues."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from dataclasses import dataclass, field
from typing import ClassVar

from ....engines.base import ProtocolEngine
from ....linux.handover import QueueReader

_SCARCITY_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of accept(2) that say that descriptors or memory are scarce."""


@dataclass(slots=True, eq=False)
class ListeningSource:
    """A listening socket and its engine.

    Attributes:
        tls: the context for its connections; None: they are plain.
        owned: no other program will accept from it after this cluster.
        native: the loop's own server on a duplicate of the socket, while the mode is `batch`.
        taken: the number of connections that came from it.
    """

    listener: socket.socket
    engine: ProtocolEngine
    tls: ssl.SSLContext | None
    owned: bool = True
    native: asyncio.Server | None = field(default=None, repr=False)
    taken: int = 0

    @property
    def watched(self) -> socket.socket:
        """The object that epoll watches."""
        return self.listener

    def take(self) -> socket.socket | None:
        """Accept the next connection that waits. Return None if there is none: a sibling was faster, or the client has left.

        Raises:
            OSError: no descriptor, or no memory, is left.
        """
        try:
            connection, _ = self.listener.accept()
        except OSError as error:
            # All other errors concern that one connection (accept(2) lists what the network may report), or a listener that is
            # shut.
            if error.errno in _SCARCITY_ERRNOS:
                raise
            return None
        connection.setblocking(False)
        self.taken += 1
        return connection


@dataclass(slots=True, eq=False)
class ReadyQueue:
    """The exit of a ready queue, and the engine for its connections.

    Attributes:
        taken: the number of connections that came from it.
    """

    tls: ClassVar[None] = None
    reader: QueueReader
    engine: ProtocolEngine
    taken: int = 0

    @property
    def watched(self) -> QueueReader:
        """The object that epoll watches."""
        return self.reader

    def take(self) -> socket.socket | None:
        """Take the next connection that waits. Return None if there is none."""
        handed = self.reader.take()
        if handed is None:
            return None
        self.taken += 1
        try:
            return socket.socket(handed.family, socket.SOCK_STREAM, 0, fileno=handed.descriptor)
        except OSError:  # no socket: only a foreign process can have put it there
            os.close(handed.descriptor)
            return None
