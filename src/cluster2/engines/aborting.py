"""Reset connections and cancel requests that aren't finished at the end of `drain_timeout`.

The client must see a broken connection, never a response that looks whole. A FIN isn't enough: where a response has neither
length nor chunks (HTTP/1.0), the end of the connection *is* the end of its body. So the connection is reset (`SO_LINGER` of
zero seconds makes close(2) send RST and drop what wasn't sent). A response with an error status would be wrong as well. It would
say that the app had failed, or that nothing was done, and neither is known. Proxies and clients handle a broken connection in
well-defined ways.

A failure of one connection must not affect others. The steps of a drain go over all connections, and an exception that ended the
drain would lose all their requests. So the connection that raised is reset, and the exception is logged (`abandon`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""`struct linger`: on, with zero seconds (socket(7))."""
_MAX_PATH_CHARS = 100
"""Characters of a path that a log line shows."""
logger = logging.getLogger("cluster2.worker")


def reset(transport: asyncio.WriteTransport) -> None:
    """Reset a connection, so that its client can't take the response for complete."""
    with lent(transport) as sock, contextlib.suppress(OSError):
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


@contextlib.contextmanager
def lent(transport: asyncio.BaseTransport) -> Iterator[socket.socket | None]:
    """Lend a transport's socket with all methods, since uvloop's own object has few. None: the socket is closed.

    This takes no descriptor, so a worker that has run out of descriptors can still end its connections.
    """
    borrowed = transport.get_extra_info("socket")
    if borrowed is None or borrowed.fileno() < 0:
        yield None
        return
    sock = socket.socket(borrowed.family, socket.SOCK_STREAM, 0, borrowed.fileno())
    try:
        yield sock
    finally:
        sock.detach()  # the descriptor belongs to the transport


def abandon(transport: asyncio.WriteTransport, step: str) -> None:
    """Log the exception that is being handled, with the connection's peer, and reset the connection.

    Args:
        transport: the connection whose step raised.
        step: the step of the drain that failed, for the log.
    """
    logger.exception("%s failed for the connection from %s; it is reset", step, transport.get_extra_info("peername"))
    try:
        reset(transport)
    except Exception:
        logger.exception("the connection could not be reset")


def alone(step: Callable[[], object], transport: asyncio.WriteTransport, name: str) -> None:
    """Take a step of a drain with one connection. If the step raises, only that connection is lost (`abandon`)."""
    try:
        step()
    except Exception:
        abandon(transport, name)


async def cancel(tasks: Iterable[asyncio.Task[Any]], grace_s: float) -> None:
    """Cancel tasks, and give them so many seconds to clean up."""
    left = [task for task in tasks if not task.done()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=grace_s)


def readable(path: bytes) -> str:
    """Return a client's path for a line of the log: escaped, and cut if it is long."""
    text = path.decode("latin-1").encode("unicode_escape").decode("ascii")
    return text if len(text) <= _MAX_PATH_CHARS else f"{text[:_MAX_PATH_CHARS]}…"
