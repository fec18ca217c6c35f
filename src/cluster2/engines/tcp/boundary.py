"""Where a raw TCP connection may change its worker: between two messages, as only the app knows.

A stream of bytes has no boundary that we could see. An app that knows of one says so by `cluster2.tcp.boundary`, in one of two
ways, and then its connections outlive workers as those of HTTP/1.1 do.

A handler of streams waits there for each next message; while it waits, nothing belongs to this worker but the socket:

    async def handler(reader, writer):
        while await cluster2.tcp.boundary(reader, writer):
            line = await reader.readline()
            ...

A protocol marks the method that tells whether it is between two messages. It is asked now and then, never on the way of a byte:

    class Lines(asyncio.Protocol):
        @cluster2.tcp.boundary
        def between(self) -> bool:
            return not self.buffer

*What moves* is the socket, and for how long it was idle; nothing else. In the worker that takes it when it wakes, a handler is
called anew, a protocol is made anew and gets `connection_made`: a greeting would be sent twice, who has logged in is forgotten.
So an app whose connections have a state beyond a message keeps it where all workers find it, or says nothing of boundaries. *In
the worker that gives it up* the app sees the end: `boundary` is false, or `connection_lost(None)` comes; what it writes then
goes nowhere.

Of asyncio's `StreamReader` two internals are used, since one can't look without reading by other means: `_buffer`, and
`_wait_for_data` (which `readline` and the others wait by). `tests/unit/engines/tcp/test_boundary.py` pins them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, cast, overload

_MARK = "__cluster2_boundary__"
_M = TypeVar("_M", bound=Callable[[Any], bool])


class BoundaryReader(asyncio.StreamReader):
    """A reader that knows whether its handler is between two messages.

    Attributes:
        waiting: it is.
        messages: how many have begun.
        arrived: called when the handler comes to the boundary.
        begun: called when a message begins.
    """

    waiting: bool = False
    messages: int = 0
    arrived: Callable[[], None] | None = None
    begun: Callable[[], None] | None = None

    def between(self) -> bool:
        """Whether nothing belongs to this worker but the socket."""
        return self.waiting and not self._buffer and not self._eof  # type: ignore[attr-defined]


class Boundary:
    """What `cluster2.tcp.boundary` is: it says where a connection may change its worker."""

    @overload
    def __call__(self, method: _M, /) -> _M: ...
    @overload
    def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, /) -> Coroutine[Any, Any, bool]: ...
    def __call__(self, first: Any, writer: asyncio.StreamWriter | None = None, /) -> Any:
        """Say where the connection may change its worker.

        As `await boundary(reader, writer)`, in a handler between two messages: wait for the next one. True: its first bytes
        have come. False: the client has finished, or another worker has the connection: leave. Outside of a cluster it only
        waits.

        As a decorator, of a protocol's method without arguments: it answers whether the protocol is between two messages, with
        nothing of one received or still to be answered.

        Raises:
            TypeError: it is given something else.
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


boundary: Final = Boundary()


def marked(kind: type) -> Callable[[Any], bool] | None:
    """The method of a protocol's class that tells of its boundaries, if it has marked one."""
    for each in kind.__mro__:
        for name, value in vars(each).items():
            if getattr(value, _MARK, False):
                # By name, since a subclass may have another one in its place.
                return cast(Callable[[Any], bool], getattr(kind, name))
    return None


async def _next_message(reader: asyncio.StreamReader) -> bool:
    ours = reader if isinstance(reader, BoundaryReader) else None
    if not reader._buffer and not reader.at_eof() and reader.exception() is None:  # type: ignore[attr-defined]
        if ours is not None:
            ours.waiting = True
            if ours.arrived is not None:
                ours.arrived()
        try:
            await reader._wait_for_data("boundary")  # type: ignore[attr-defined]
        except OSError:  # the client is gone: nobody's fault
            return False
        finally:
            if ours is not None:
                ours.waiting = False
    if reader.at_eof() or (reader.exception() is not None and not reader._buffer):  # type: ignore[attr-defined]
        return False
    if ours is not None:
        ours.messages += 1
        if ours.begun is not None:
            ours.begun()
    return True
