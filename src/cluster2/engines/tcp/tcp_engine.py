"""The engine for raw TCP: a stream handler, or a factory of asyncio protocols, on uvloop's transports.

Raw TCP has no boundary that we could see, so there is no request to wait for. To drain means to tell each connection's app
that its client has finished sending (`shutdown(SHUT_RD)`: it reads what has arrived, then end of file) and to let it answer
and close in its own time. A protocol that has a method `drain()` is told by that instead.

An app that knows its boundaries says so (`boundary`): then its connections move, unless TLS ends here. `shutdown(2)` is of the
socket, not of a descriptor, so one that is yet to move must not be told that way: it stays until it comes to a boundary.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import time
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any, ClassVar

from ...config.settings import Settings
from ...linux.tcp_progress import transferred
from ..aborting import abandon, cancel, lent, reset
from ..base import AppContext, Capability, EngineStats, Interface, Movable, Served, ThreadHold, is_async
from ..client_timeouts import ClientTimeouts, Wait, WaitingFor
from .boundary import BoundaryReader, marked

Factory = Callable[[], asyncio.BaseProtocol]

logger = logging.getLogger("cluster2.tcp")


class TcpEngine:
    """Serves a stream handler or a protocol factory."""

    name: ClassVar[str] = "tcp"
    capabilities: ClassVar[Mapping[Interface, frozenset[Capability]]] = {
        Interface.TCP: frozenset(
            {Capability.TLS, Capability.IDLE_TIMEOUT, Capability.KEEPER, Capability.CONNECTION_COUNT}
        )
    }
    reads_first = False

    def __init__(self, site: AppContext) -> None:
        # By id, since an app's protocol need not be hashable (a dataclass isn't).
        self._open: dict[int, TcpConnection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._classes: dict[type, type] = {}
        self._call: CodeType | None = None
        app = site.instrument(site.app, Interface.TCP)
        self._factory: Factory = self._streams(app) if is_async(app) else app
        self._drained_at: float | None = None
        self._moving = False
        self._cut = False
        self._freed: Callable[[Movable], None] | None = None
        self._timeouts = ClientTimeouts(site.settings.timeout)
        self._now = 0.0
        self._failed = 0

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

    def accepted_protocol(self, first: bytes | None, served: Served) -> asyncio.BaseProtocol:
        """The same. A handler with a boundary tells when a message has begun; else the acceptor waits its two milliseconds."""
        protocol = self.protocol()
        if isinstance(protocol, _Streams):
            protocol.reader.begun = functools.partial(self._begun, protocol.reader, protocol, served)
        return protocol

    def tick(self, now: float) -> None:
        """Set the clock."""
        self._now = now

    def on_second(self) -> None:
        """Close what neither side has sent anything on for too long."""
        self._now = now = time.monotonic()
        connections = self._connections()
        for connection in connections:
            connection.on_second(now)
        self._timeouts.check(connections, now)

    def describe_frame(self, frame: FrameType) -> str | None:
        """Seen by the frame that calls a handler. A protocol's methods are called by the loop."""
        if frame.f_code is not self._call:
            return None
        peer = frame.f_locals["writer"].get_extra_info("peername")
        return (
            f"the connection of {peer[0]}:{peer[1]}"
            if isinstance(peer, tuple)
            else "the connection of a Unix socket's peer"
        )

    def movable(self) -> list[Movable]:
        """Plain connections whose app knows its boundaries."""
        return [connection for connection in self._connections() if connection.moves]

    def report_freed(self, freed: Callable[[Movable], None] | None) -> None:
        """Called at a handler's boundary behind a message. A protocol isn't asked then: it is found by the next tick."""
        self._freed = freed

    def close_some(self, count: int, *, fixed: bool) -> int:
        """A raw stream can't be ended politely."""
        return 0

    def has_capacity(self) -> bool:
        """Always: handlers run on the loop."""
        return True

    def on_capacity(self, freed: Callable[[], None]) -> None:
        """There always is."""

    def longest_hold(self, now: float, above: float) -> ThreadHold | None:
        """There are no threads."""
        return None

    def stats(self) -> EngineStats:
        """Connections; there are no requests that could be counted."""
        count = len(self._connections())
        return EngineStats(None, count, count, self._timeouts.given_up, self._timeouts.stalled, failed=self._failed)

    def oldest_request(self, now: float) -> float | None:
        """A stream has no requests."""
        return None

    def drain(self, *, moving: bool) -> None:
        """Protocols that can drain are told to; the others go on until `close_idle` ends them. Those that will move aren't told."""
        if self._drained_at is None:
            self._drained_at = time.monotonic()
        self._moving = moving
        for connection in self._connections():
            if not self._will_move(connection):
                connection.attempt(connection.drain)

    def close_idle(self, grace: float) -> None:
        """When the grace is over, tell each app that its client has finished sending. To close is then the app's part."""
        if self._drained_at is None or time.monotonic() - self._drained_at < grace:
            return
        for connection in self._connections():
            if not self._will_move(connection) and not connection.can_drain:
                connection.attempt(connection.end_reading)

    def idle(self) -> bool:
        """Whether all connections are closed and their handlers are through."""
        return not self._connections() and not self._tasks

    async def abort(self, grace_s: float) -> list[str]:
        """Reset all connections, cancel their handlers."""
        self._cut = True
        for connection in self._connections():
            connection.attempt(connection.reset)
        await cancel(self._tasks, grace_s)
        return []

    async def stop(self) -> None:
        """There is nothing to stop."""

    def _will_move(self, connection: TcpConnection) -> bool:
        return self._moving and connection.moves

    def _connections(self) -> list[TcpConnection]:
        """Those that are open. If an app has put another protocol in the place of its first one, that isn't told of the end."""
        gone = [key for key, connection in self._open.items() if connection.is_gone()]
        for key in gone:
            del self._open[key]
        return list(self._open.values())

    def _streams(self, handler: Callable[..., Any]) -> Factory:
        tracked = self._tracked(handler)

        def factory() -> asyncio.BaseProtocol:
            return _Streams(BoundaryReader(loop=asyncio.get_running_loop()), tracked)

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
                self._failed += 1
                logger.exception("the TCP handler raised; its connection is closed")
            finally:
                self._tasks.discard(task)
                writer.close()

        self._call = run.__code__
        return run

    def _made(self, protocol: Any, transport: asyncio.Transport, between: Callable[[Any], bool] | None) -> None:
        """A connection is open."""
        asked = None if between is None else functools.partial(between, protocol)
        reader = protocol.reader if isinstance(protocol, _Streams) else None
        self._open[id(protocol)] = connection = TcpConnection(protocol, transport, reader, asked)
        if reader is not None:
            reader.arrived = functools.partial(self._arrived, connection, reader)

    def _arrived(self, connection: TcpConnection, reader: BoundaryReader) -> None:
        """A handler has come to its boundary. Before its first message it isn't parked: it has just come from there."""
        connection.used = self._now or time.monotonic()
        if self._freed is not None and reader.messages:
            asyncio.get_running_loop().call_soon(self._freed, connection)

    def _begun(self, reader: BoundaryReader, protocol: asyncio.BaseProtocol, served: Served) -> None:
        reader.begun = None
        served(protocol)

    def _counted(self, kind: type) -> type:
        """The app's class with our two hooks; made once for each class."""
        found = self._classes.get(kind)
        if found is None:
            is_open, made, between = self._open, self._made, marked(kind)

            def connection_made(self: Any, transport: asyncio.Transport) -> None:
                made(self, transport, between)
                kind.connection_made(self, transport)  # type: ignore[attr-defined]

            def connection_lost(self: Any, error: Exception | None) -> None:
                is_open.pop(id(self), None)
                kind.connection_lost(self, error)  # type: ignore[attr-defined]

            # No slots of its own, so that an instance of a class with __slots__ can change over to it, too.
            hooks = {"__slots__": (), "connection_made": connection_made, "connection_lost": connection_lost}
            found = self._classes[kind] = type(kind.__name__, (kind,), hooks)
        return found


class _Streams(asyncio.StreamReaderProtocol):
    """Calls the handler; has its reader for as long as it lives."""

    def __init__(self, reader: BoundaryReader, handler: Callable[..., Any]) -> None:
        super().__init__(reader, handler)
        self.reader = reader


class TcpConnection:
    """An open connection, which may move (`Movable`) and has a timeout (`TimedConnection`).

    Attributes:
        used: when it was last used, by the clock: when a handler came to its boundary, else when it was last seen to differ.
        moves: it may change its worker at times.
        can_drain: its protocol has a method for that.
    """

    def __init__(
        self,
        protocol: Any,
        transport: asyncio.Transport,
        reader: BoundaryReader | None,
        between: Callable[[], bool] | None,
    ) -> None:
        """It has been made.

        Args:
            reader: of a handler.
            between: tells of a protocol whether it is at a boundary.
        """
        self._protocol = protocol
        self._transport = transport
        self._reader = reader
        self._between = between
        self._seen: tuple[int, int] | None = None
        self._left = self._reading_ended = False
        self._is_plain = transport.get_extra_info("sslcontext") is None
        self.can_drain = callable(getattr(protocol, "drain", None))
        self.used = 0.0

    @property
    def moves(self) -> bool:
        """A handler shows that it has a boundary by coming to it."""
        known = (
            self._reader.waiting or self._reader.messages > 0 if self._reader is not None else self._between is not None
        )
        return known and self._is_plain

    def on_second(self, now: float) -> None:
        """Called once a second: note whether it was used."""
        counts = self._counts()
        if not self.used or (self._reader is None and counts != self._seen):
            self.used = now
        self._seen = counts

    def may_move(self) -> bool:
        """Whether another process could go on with it."""
        transport = self._transport
        return (
            self._is_plain
            and not self._left
            and self._at_boundary()
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
            and transport.get_protocol() is self._protocol
        )

    def kept_alive(self) -> bool:
        """Whether it has brought a message already."""
        if self._reader is not None:
            return self._reader.messages > 0
        counts = self._counts()
        return counts is None or counts[1] > 0

    def idle_since(self) -> float:
        """When it was last used; 0: long ago, as nobody has looked yet."""
        return self.used or time.monotonic()

    def descriptor_and_family(self) -> tuple[int, int]:
        """Its descriptor and address family."""
        sock = self._transport.get_extra_info("socket")
        return sock.fileno(), sock.family

    def release(self) -> None:
        """Another process has it: close our copy. With uvloop, abort() is close(2) without shutdown(2)."""
        self._left = True
        self._transport.abort()

    def waits(self) -> Wait | None:
        """For a byte, in either direction, as the kernel counts them. Unix sockets aren't counted: those are never given up."""
        counts = self._counts()
        return None if counts is None else Wait(WaitingFor.STREAM, counts)

    def give_up(self, what: WaitingFor) -> None:
        """At once: to write the rest would have to wait for the client, and the kernel would keep what it doesn't take."""
        if self._transport.get_write_buffer_size():
            reset(self._transport)
        else:
            self._transport.abort()

    def reset(self) -> None:
        """Its time is over."""
        reset(self._transport)

    def is_gone(self) -> bool:
        """Whether it is closed, as far as another protocol hides that from ours."""
        transport = self._transport
        closed = transport.is_closing() and not transport.get_write_buffer_size()
        return closed and transport.get_protocol() is not self._protocol

    def drain(self) -> None:
        """Tell a protocol that can. Its method is the app's code, and may raise."""
        if self.can_drain:
            self._protocol.drain()

    def end_reading(self) -> None:
        """Tell the app, once, that its client has finished sending."""
        if self._reading_ended or self._transport.is_closing():
            return
        self._reading_ended = True
        with lent(self._transport) as sock, contextlib.suppress(OSError):
            if sock is not None:
                sock.shutdown(socket.SHUT_RD)  # fails if the client has gone meanwhile: the transport notices by itself

    def attempt(self, step: Callable[[], None]) -> None:
        """Take a step of the drain; if it fails only this connection is lost."""
        try:
            step()
        except Exception:
            self.abandon("drain")

    def abandon(self, step: str) -> None:
        """Log the exception that is being handled, and reset the connection."""
        abandon(self._transport, step)

    def _at_boundary(self) -> bool:
        if self._reader is not None:
            return self._reader.between()
        if self._between is None:
            return False
        try:
            return bool(self._between())
        except Exception:
            logger.exception("the protocol's boundary raised; its connection stays in its worker")
            self._between = None
            return False

    def _counts(self) -> tuple[int, int] | None:
        sock = self._transport.get_extra_info("socket")
        return None if sock is None else transferred(sock.fileno())
