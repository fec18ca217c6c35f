"""How an engine ends what isn't finished when its time is over.

The client must see a broken connection, never an answer that looks whole. A FIN isn't enough: where a response has neither
length nor chunks (HTTP/1.0), the end of the connection *is* the end of its body. So the connection is reset (`SO_LINGER` of
zero seconds makes close(2) send RST and drop what wasn't sent). An answer with an error status isn't right either: it would say
that the app had failed, or that nothing was done, and neither is known. What proxies and clients make of a broken connection
is well defined.

One connection's failure is its own. The steps of a drain go over all connections; one that raises must not end the drain, since
that would lose the requests of all others. Such a connection is reset, and the exception is logged (`abandon`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_AT_ONCE = struct.pack("ii", 1, 0)
MAX_PATH_CHARS = 100
"""Characters of a path that are told."""
logger = logging.getLogger("cluster2.worker")


def reset(transport: asyncio.WriteTransport) -> None:
    """End a connection so that its client can't take it for finished."""
    with lent(transport) as sock, contextlib.suppress(OSError):
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    transport.abort()


@contextlib.contextmanager
def lent(transport: asyncio.BaseTransport) -> Iterator[socket.socket | None]:
    """Lend a transport's socket, with all methods: uvloop hands out a stand-in with few. None: it is closed.

    No descriptor is needed for that: a worker that has run out of them can still end its connections.
    """
    borrowed = transport.get_extra_info("socket")
    if borrowed is None or borrowed.fileno() < 0:
        yield None
        return
    sock = socket.socket(borrowed.family, socket.SOCK_STREAM, 0, borrowed.fileno())
    try:
        yield sock
    finally:
        sock.detach()


def abandon(transport: asyncio.WriteTransport, step: str) -> None:
    """Log the exception that is being handled, with the peer of the connection that raised it, and reset that connection.

    Args:
        step: the step of the drain that failed, for the log.
    """
    logger.exception("%s failed for the connection from %s; it is reset", step, transport.get_extra_info("peername"))
    try:
        reset(transport)
    except Exception:
        logger.exception("the connection could not be reset")


def alone(step: Callable[[], object], transport: asyncio.WriteTransport, name: str) -> None:
    """Take a step of a drain with one connection; if it raises only that connection is lost (`abandon`)."""
    try:
        step()
    except Exception:
        abandon(transport, name)


async def cancel(tasks: Iterable[asyncio.Task[Any]], patience: float) -> None:
    """Cancel tasks, and give them so many seconds to clean up."""
    left = [task for task in tasks if not task.done()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=patience)


@contextlib.contextmanager
def cancellation_is_no_news(name: str) -> Iterator[None]:
    """Meanwhile that logger doesn't report errors that are nothing but a cancellation: who cancelled says so itself."""
    logger = logging.getLogger(name)
    logger.addFilter(_is_news)
    try:
        yield
    finally:
        logger.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def readable(path: bytes) -> str:
    """A path of a client's for one line of a log: escaped, and cut if it is long."""
    text = path.decode("latin-1").encode("unicode_escape").decode("ascii")
    return text if len(text) <= MAX_PATH_CHARS else f"{text[:MAX_PATH_CHARS]}…"
