"""The engine for raw TCP: a stream handler, or a factory of asyncio protocols, on uvloop's transports.

Raw TCP has no boundary that we could see, so there is no request to wait for. To drain means to tell each connection's app
that its client has finished sending (`shutdown(SHUT_RD)`: it reads what has arrived, then end of file) and to let it answer
and close in its own time. A protocol that has a method `drain()` is told by that instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, cast

from ..kernel.progress import transferred
from ..settings import Settings
from .base import Capability, Census, Hold, Interface, Movable, Served, Site, is_async
from .ending import cancel, reset
from .patience import For, Patience, Wait

Factory = Callable[[], asyncio.BaseProtocol]

logger = logging.getLogger("cluster2.tcp")


class TcpEngine:
    """Serves a stream handler or a protocol factory."""

    name: ClassVar[str] = "tcp"
    capabilities: ClassVar[Mapping[Interface, frozenset[Capability]]] = {
        Interface.TCP: frozenset({Capability.TLS, Capability.IDLE_TIMEOUT, Capability.CONNECTION_COUNT})
    }
    reads_first = False

    def __init__(self, site: Site) -> None:
        # By id, since an app's protocol need not be hashable (a dataclass isn't).
        self._open: dict[int, tuple[asyncio.BaseProtocol, asyncio.BaseTransport]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._classes: dict[type, type] = {}
        app = site.wrap(site.app, Interface.TCP)
        self._factory: Factory = self._streams(app) if is_async(app) else app
        self._drained_at: float | None = None
        self._cut = False
        self._patience = Patience(site.settings.timeout)
        self._asked: dict[int, _Stream] = {}

    @staticmethod
    def preload(settings: Settings) -> None:
        """Nothing beyond asyncio is needed."""

    @staticmethod
    def peer(scope: Any, receive: Any) -> str | None:
        """There are no requests."""
        return None

    async def start(self) -> None:
        """There is nothing to start."""

    def protocol(self) -> asyncio.BaseProtocol:
        """The app's protocol, in a subclass that reports when its connection opens and closes."""
        protocol = self._factory()
        protocol.__class__ = self._counted(type(protocol))
        return protocol

    def taken(self, first: bytes | None, served: Served) -> asyncio.BaseProtocol:
        """The same: there is no request whose beginning could be told, so the acceptor waits its two milliseconds."""
        return self.protocol()

    def tick(self, now: float) -> None:
        """There is nothing to do now and then."""

    def second(self) -> None:
        """Close what neither side has sent anything on for too long."""
        # The same object for a connection each time: patience knows it by that.
        known, self._asked = self._asked, {}
        for key, (_, transport) in self._open.items():
            stream = known.get(key)
            self._asked[key] = stream if stream is not None and stream.transport is transport else _Stream(transport)
        self._patience.look(self._asked.values(), time.monotonic())

    def movable(self) -> Iterable[Movable]:
        """None: the bytes of a raw stream belong to the app that reads them."""
        return ()

    def park(self, freed: Callable[[Movable], None] | None) -> None:
        """There is nothing that could be parked."""

    def shed(self, count: int, *, fixed: bool) -> int:
        """A raw stream can't be ended politely."""
        return 0

    def room(self) -> bool:
        """Always: handlers run on the loop."""
        return True

    def on_room(self, freed: Callable[[], None]) -> None:
        """There always is."""

    def held(self, now: float, above: float) -> Hold | None:
        """There are no threads."""
        return None

    def census(self) -> Census:
        """Connections; there are no requests that could be counted."""
        return Census(None, len(self._open), len(self._open), self._patience.given_up, self._patience.stalled)

    def oldest(self, now: float) -> float | None:
        """A stream has no requests."""
        return None

    def drain(self, *, moving: bool) -> None:
        """Protocols that can drain are told to; the others go on until `sweep` ends them."""
        self._drained_at = time.monotonic()
        for protocol, _ in list(self._open.values()):
            told = getattr(protocol, "drain", None)
            if callable(told):
                told()

    def sweep(self, grace: float) -> None:
        """When the grace is over, tell each app that its client has finished sending. To close is then the app's part."""
        if self._drained_at is None or time.monotonic() - self._drained_at < grace:
            return
        for protocol, transport in list(self._open.values()):
            if not callable(getattr(protocol, "drain", None)):
                _end_reading(transport)

    def idle(self) -> bool:
        """Whether all connections are closed and their handlers are through."""
        return not self._open and not self._tasks

    async def cut(self, patience: float) -> list[str]:
        """Reset all connections, cancel their handlers."""
        self._cut = True
        for _, transport in list(self._open.values()):
            reset(transport)
        await cancel(self._tasks, patience)
        return []

    async def stop(self) -> None:
        """There is nothing to stop."""

    def _streams(self, handler: Callable[..., Any]) -> Factory:
        def factory() -> asyncio.BaseProtocol:
            loop = asyncio.get_running_loop()
            reader = asyncio.StreamReader(loop=loop)
            return asyncio.StreamReaderProtocol(reader, self._tracked(handler), loop=loop)

        return factory

    def _tracked(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await handler(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # the client left in the middle: nobody's fault, and nothing to be done
            except asyncio.CancelledError:
                if not self._cut:  # asyncio's streams would report it as an error
                    raise
            except Exception:
                logger.exception("the TCP handler raised; its connection is closed")
            finally:
                self._tasks.discard(task)
                writer.close()

        return run

    def _counted(self, kind: type) -> type:
        """The app's class with our two hooks; made once for each class."""
        found = self._classes.get(kind)
        if found is None:
            is_open = self._open

            def connection_made(self: Any, transport: asyncio.BaseTransport) -> None:
                is_open[id(self)] = self, transport
                kind.connection_made(self, transport)  # type: ignore[attr-defined]

            def connection_lost(self: Any, error: Exception | None) -> None:
                is_open.pop(id(self), None)
                kind.connection_lost(self, error)  # type: ignore[attr-defined]

            # No slots of its own, so that an instance of a class with __slots__ can change over to it, too.
            hooks = {"__slots__": (), "connection_made": connection_made, "connection_lost": connection_lost}
            found = self._classes[kind] = type(kind.__name__, (kind,), hooks)
        return found


class _Stream:
    """A connection as `patience` sees it."""

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def waits(self) -> Wait | None:
        """For a byte, in either direction, as the kernel counts them. Unix sockets aren't counted: those are never given up."""
        sock = self.transport.get_extra_info("socket")
        counts = None if sock is None else transferred(sock.fileno())
        return None if counts is None else Wait(For.STREAM, counts)

    def give_up(self, what: For) -> None:
        """At once: to write the rest would have to wait for the client."""
        cast(asyncio.Transport, self.transport).abort()


def _end_reading(transport: asyncio.BaseTransport) -> None:
    borrowed = transport.get_extra_info("socket")
    if borrowed is None or transport.is_closing():
        return
    # uvloop hands out a stand-in without shutdown(); a duplicate of the descriptor shuts down the same connection.
    with socket.socket(fileno=os.dup(borrowed.fileno())) as twin, contextlib.suppress(OSError):
        twin.shutdown(socket.SHUT_RD)  # fails if the client has gone meanwhile: the transport notices by itself
