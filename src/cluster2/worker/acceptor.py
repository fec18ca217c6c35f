"""Who takes a connection: this worker, when its loop has nothing better to do.

All workers watch the same listening socket. A worker that is busy computing doesn't come round to its loop, so it takes
nothing, and a sibling that is idle does: the queue is work-conserving. One connection is taken a turn of the loop; taking
all that is pending (as asyncio's own server does, up to the backlog) would hand a burst to one worker.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable

logger = logging.getLogger("cluster2.worker")

_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
PAUSE = 0.1
"""Seconds to wait when descriptors have run out: trying on would spin."""


class Acceptor:
    """Takes connections from one listening socket and gives each a protocol of the engine."""

    def __init__(
        self, listener: socket.socket, protocol: Callable[[], asyncio.BaseProtocol], tls: ssl.SSLContext | None
    ) -> None:
        self._listener = listener
        self._protocol = protocol
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._joining: set[asyncio.Task[object]] = set()
        self.accepted = 0

    def start(self) -> None:
        """Watch the listener."""
        self._loop.add_reader(self._listener, self._take)

    def stop(self) -> None:
        """Take nothing more. Connections just taken still join (see `joining`)."""
        self._loop.remove_reader(self._listener)

    def serve_queue(self) -> None:
        """Take all that waits in the accept queue: nobody will after us."""
        while self._take():
            pass

    def joining(self) -> bool:
        """Whether a connection was taken that its engine doesn't know yet (a TLS handshake, for one)."""
        return bool(self._joining)

    def _take(self) -> bool:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # a sibling was faster, or the client has gone
        except OSError as error:
            if error.errno in _OUT_OF_FILES:
                self._pause(error)
                return False
            raise
        connection.setblocking(False)
        self.accepted += 1
        task = self._loop.create_task(self._join(connection))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)
        return True

    async def _join(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection, ssl=self._tls)
        except (OSError, ssl.SSLError) as error:  # the client left, or failed the handshake
            logger.debug("a connection was given up: %s", error)
            connection.close()

    def _pause(self, error: OSError) -> None:
        logger.warning("no connection can be taken for %.1f s: %s", PAUSE, error)
        self.stop()
        self._loop.call_later(PAUSE, self.start)
