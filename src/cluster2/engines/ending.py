"""How an engine ends what isn't finished when its time is over.

The client must see a broken connection, never an answer that looks whole. A FIN isn't enough: where a response has neither
length nor chunks (HTTP/1.0), the end of the connection *is* the end of its body. So the connection is reset (`SO_LINGER` of
zero seconds makes close(2) send RST and drop what wasn't sent). An answer with an error status isn't right either: it would say
that the app had failed, or that nothing was done, and neither is known. What proxies and clients make of a broken connection
is well defined.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Any

_AT_ONCE = struct.pack("ii", 1, 0)
LONGEST = 100
"""Characters of a path that are told."""


def reset(transport: asyncio.WriteTransport) -> None:
    """End a connection so that its client can't take it for finished."""
    borrowed = transport.get_extra_info("socket")
    if borrowed is not None and borrowed.fileno() >= 0:
        # uvloop hands out a stand-in; a duplicate of the descriptor is the same connection.
        with socket.socket(fileno=os.dup(borrowed.fileno())) as twin, contextlib.suppress(OSError):
            twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    transport.abort()


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
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
