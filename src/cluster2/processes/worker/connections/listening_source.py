"""Where a worker's connections come from."""

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

_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(slots=True, eq=False)
class ListeningSource:
    """A listening socket, with the engine behind it.

    Attributes:
        owned: nobody will accept from it after us.
        taken: how many connections came from it.
    """

    listener: socket.socket
    engine: ProtocolEngine
    tls: ssl.SSLContext | None
    owned: bool = True
    native: asyncio.Server | None = field(default=None, repr=False)
    taken: int = 0

    @property
    def watched(self) -> socket.socket:
        """What epoll knows of it."""
        return self.listener

    def take(self) -> socket.socket | None:
        """The next connection that waits; None: there is none, for a sibling was faster, or the client has gone.

        Raises:
            OSError: no descriptor, or no memory, is left.
        """
        try:
            connection, _ = self.listener.accept()
        except OSError as error:
            # All else is about that one connection (accept(2) lists what the network may report), or a door that is shut.
            if error.errno in _OUT_OF_FILES:
                raise
            return None
        connection.setblocking(False)
        self.taken += 1
        return connection


@dataclass(slots=True, eq=False)
class ReadyQueue:
    """The exit of a ready queue, with the engine behind it.

    Attributes:
        taken: how many connections came from it.
    """

    tls: ClassVar[None] = None
    reader: QueueReader
    engine: ProtocolEngine
    taken: int = 0

    @property
    def watched(self) -> QueueReader:
        """What epoll knows of it."""
        return self.reader

    def take(self) -> socket.socket | None:
        """The next connection that waits; None: there is none."""
        parcel = self.reader.take()
        if parcel is None:
            return None
        self.taken += 1
        try:
            return socket.socket(parcel.family, socket.SOCK_STREAM, 0, fileno=parcel.descriptor)
        except OSError:  # no socket: only a foreign hand can have put it there
            os.close(parcel.descriptor)
            return None
