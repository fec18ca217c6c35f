"""Let an app name the points between two messages, where its raw TCP connection may move to another worker.

A stream of bytes has no boundary that cluster2 could see. An app that knows one marks it with `cluster2.tcp.boundary`, in one of
two ways. Its connections then outlive workers, as those of HTTP/1.1 do.

A stream handler waits there for each next message. While it waits, nothing but the socket belongs to this worker:

    async def handler(reader, writer):
        while await cluster2.tcp.boundary(reader, writer):
            line = await reader.readline()
            ...

A protocol marks the method that returns whether it is between two messages. cluster2 calls the method now and then, and never
while it passes bytes on:

    class Lines(asyncio.Protocol):
        @cluster2.tcp.boundary
        def between(self) -> bool:
            return not self.buffer

The socket moves, with the time for which it was idle, and nothing else. In the worker that takes the connection when
its client sends again, the handler is called anew, or a protocol is made anew and gets `connection_made`. A greeting would be
sent twice, and a login would be forgotten. So an app whose connections have state beyond a message keeps it where all workers
find it, or marks no boundaries.

In the worker that gives the connection up the app sees its end: `boundary` returns false, or
`connection_lost(None)` is called. Bytes that the app writes after that are dropped.

Two private attributes of asyncio's `StreamReader` are used, since nothing else allows to look without reading: `_buffer`, and
`_wait_for_data`, by which `readline` and the other methods wait. `tests/unit/engines/tcp/test_boundary.py` pins them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, cast, overload

_MARK = "__cluster2_boundary__"
_Method = TypeVar("_Method", bound=Callable[[Any], bool])


class BoundaryReader(asyncio.StreamReader):
    """A reader that knows whether its handler is between two messages.

    Attributes:
        waiting: the handler is between two messages.
        messages: the number of messages that have begun.
        arrived: called when the handler comes to the boundary.
        begun: called when a message begins.
    """

    waiting: bool = False
    messages: int = 0
    arrived: Callable[[], None] | None = None
    begun: Callable[[], None] | None = None

    def between(self) -> bool:
        """Return whether nothing but the socket belongs to this worker."""
        return self.waiting and not self._buffer and not self._eof  # type: ignore[attr-defined]


class _Boundary:
    """The callable `cluster2.tcp.boundary`, which marks where a connection may move to another worker."""

    @overload
    def __call__(self, method: _Method, /) -> _Method: ...
    @overload
    def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, /) -> Coroutine[Any, Any, bool]: ...
    def __call__(self, first: Any, writer: asyncio.StreamWriter | None = None, /) -> Any:
        """Mark where the connection may move to another worker.

        As `await boundary(reader, writer)`, in a handler between two messages: wait for the next message. Return true when its
        first bytes have arrived. Return false when the client has finished or another worker has the connection, and the handler
        is to return. Outside of a cluster the call only waits.

        As a decorator of a protocol's method without arguments: the method returns whether the protocol is between two messages,
        which means that it has received no part of one, and owes no response.

        Raises:
            TypeError: the argument is something else.
        """
        if isinstance(first, asyncio.StreamReader) and writer is not None:
            return _next_message(first)
        if writer is None and callable(first) and not isinstance(first, type):
            setattr(first, _MARK, True)
            return first
        raise TypeError(
            "cluster2.tcp.boundary takes a reader and its writer, or marks a protocol's method; "
            f"not a {type(first).__name__}"
        )


boundary: Final = _Boundary()


def marked_method(kind: type) -> Callable[[Any], bool] | None:
    """Return the method that a protocol's class has marked, if it has one."""
    for each in kind.__mro__:
        for name, value in vars(each).items():
            if getattr(value, _MARK, False):
                # Look it up by name, since a subclass may override it.
                return cast(Callable[[Any], bool], getattr(kind, name))
    return None


async def _next_message(reader: asyncio.StreamReader) -> bool:
    own = reader if isinstance(reader, BoundaryReader) else None
    if not reader._buffer and not reader.at_eof() and reader.exception() is None:  # type: ignore[attr-defined]
        if own is not None:  # a reader of asyncio's own server, outside of a cluster, has no such attributes
            own.waiting = True
            if own.arrived is not None:
                own.arrived()
        try:
            # Unlike a read it leaves the bytes in the buffer, for the app's own read.
            await reader._wait_for_data("boundary")  # type: ignore[attr-defined]
        except OSError:  # the client has gone, which is no error of the app
            return False
        finally:
            if own is not None:
                own.waiting = False
    # Bytes that arrived before an error are still a message.
    if reader.at_eof() or (reader.exception() is not None and not reader._buffer):  # type: ignore[attr-defined]
        return False
    if own is not None:
        own.messages += 1
        if own.begun is not None:
            own.begun()
    return True
