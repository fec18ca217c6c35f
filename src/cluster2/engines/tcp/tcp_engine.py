"""The engine for raw TCP: a stream handler, or a factory of asyncio protocols, on uvloop's transports.

Raw TCP has no boundary that cluster2 could see, so a drain has no request to wait for. To drain a connection, the engine
makes it look to the app as if the client had finished sending: after `shutdown(SHUT_RD)` the app reads what has arrived, then
end of file. The app answers and closes in its own time. A protocol with a method `drain()` gets a call of that instead.

An app that knows its boundaries marks them (`boundary`). Its connections then move, except those whose TLS ends here.
`shutdown(2)` acts on the socket, not on the descriptor, and would go with it to the next worker. So the engine leaves a
connection that is to move alone until it comes to a boundary.
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
from ..forked_child import end_returning_children
from .boundary import BoundaryReader, marked_method

_Factory = Callable[[], asyncio.BaseProtocol]

_logger = logging.getLogger("cluster2.tcp")


class TcpEngine:
    """An engine for a stream handler or a protocol factory."""

    name: ClassVar[str] = "tcp"
    capabilities: ClassVar[Mapping[Interface, frozenset[Capability]]] = {
        Interface.TCP: frozenset(
            {Capability.TLS, Capability.IDLE_TIMEOUT, Capability.KEEPER, Capability.CONNECTION_COUNT}
        )
    }
    reads_first = False

    def __init__(self, site: AppContext) -> None:
        # The keys are ids, since an app's protocol need not be hashable (a dataclass isn't).
        self._open: dict[int, _TcpConnection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._classes: dict[type, type] = {}
        self._handler_code: CodeType | None = None
        app = site.instrument(site.app, Interface.TCP)
        self._factory: _Factory = self._stream_factory(app) if is_async(app) else app
        self._drained_at: float | None = None
        self._moving = False
        self._aborted = False
        self._freed: Callable[[Movable], None] | None = None
        self._timeouts = ClientTimeouts(site.settings.timeout)
        self._now = 0.0
        self._failed = 0

    @staticmethod
    def preload(settings: Settings) -> None:
        """Do nothing: the engine needs nothing but asyncio."""

    @staticmethod
    def peer(scope: Any, receive: Any) -> str | None:
        """Return None: there are no requests."""
        return None

    async def start(self) -> None:
        """End forked children that return from a handler. A handler has no startup."""
        end_returning_children(self.describe_frame, self._set_trap)

    def _set_trap(self, trap: Any) -> None:
        """In a child that the app has forked: end the process as soon as the handler ends."""
        self._tasks = trap  # each handler takes its task out of this set

    def protocol(self) -> asyncio.BaseProtocol:
        """Return the app's protocol, in a subclass that reports when its connection opens and closes."""
        protocol = self._factory()
        # A subclass with hooks costs nothing on the way of a byte, unlike a protocol around the app's.
        protocol.__class__ = self._counted(type(protocol))
        return protocol

    def accepted_protocol(self, first: bytes | None, served: Served) -> asyncio.BaseProtocol:
        """Return the protocol. A handler with a boundary reports when a message has begun. Otherwise the acceptor waits for 2 ms."""
        protocol = self.protocol()
        if isinstance(protocol, _StreamProtocol):
            protocol.reader.begun = functools.partial(self._begun, protocol.reader, protocol, served)
        return protocol

    def tick(self, now: float) -> None:
        """Store the time, so that a message needs no call of the clock."""
        self._now = now

    def on_second(self) -> None:
        """Close connections on which neither side has sent anything for too long."""
        self._now = now = time.monotonic()
        connections = self._connections()
        for connection in connections:
            connection.on_second(now)
        self._timeouts.check(connections, now)

    def describe_frame(self, frame: FrameType) -> str | None:
        """Return the connection whose handler was called in this frame. A protocol's methods can't be found: the loop calls them."""
        if frame.f_code is not self._handler_code:
            return None
        peer = frame.f_locals["writer"].get_extra_info("peername")
        return (
            f"the connection of {peer[0]}:{peer[1]}"
            if isinstance(peer, tuple)
            else "the connection of a Unix socket's peer"
        )

    def movable(self) -> list[Movable]:
        """Return the plain connections whose app marks its boundaries."""
        return [connection for connection in self._connections() if connection.moves]

    def report_freed(self, freed: Callable[[Movable], None] | None) -> None:
        """Call `freed` at a handler's boundary behind a message. A protocol isn't asked then, and the next tick finds it."""
        self._freed = freed

    def close_some(self, count: int, *, fixed: bool) -> int:
        """Return 0: a raw stream can't be ended in a way that its client expects."""
        return 0

    def has_capacity(self) -> bool:
        """Return true: handlers run on the loop."""
        return True

    def on_capacity(self, freed: Callable[[], None]) -> None:
        """Do nothing: there is always capacity."""

    def longest_hold(self, now: float, above: float) -> ThreadHold | None:
        """Return None: there are no threads."""
        return None

    def stats(self) -> EngineStats:
        """Return the counts of connections. There are no requests to count."""
        count = len(self._connections())
        # A connection counts as one under way: nothing shows whether its handler is at work.
        return EngineStats(None, count, count, self._timeouts.given_up, self._timeouts.stalled, failed=self._failed)

    def oldest_request(self, now: float) -> float | None:
        """Return None: a stream has no requests."""
        return None

    def drain(self, *, moving: bool) -> None:
        """Call `drain()` of the protocols that have it, except those that will move. The others go on until `close_idle`."""
        if self._drained_at is None:
            self._drained_at = time.monotonic()
        self._moving = moving
        for connection in self._connections():
            if not self._will_move(connection):
                connection.attempt(connection.drain)

    def close_idle(self, grace: float) -> None:
        """When the grace is over, end the reading side of each connection. The app then closes it."""
        if self._drained_at is None or time.monotonic() - self._drained_at < grace:
            return
        for connection in self._connections():
            if not self._will_move(connection) and not connection.can_drain:
                connection.attempt(connection.end_reading)

    def idle(self) -> bool:
        """Return whether all connections are closed and their handlers have ended."""
        return not self._connections() and not self._tasks

    async def abort(self, grace_s: float) -> list[str]:
        """Reset all connections, and cancel their handlers."""
        self._aborted = True
        # Reset before the cancellation: a handler that is cancelled first could end its connection as if all were sent.
        for connection in self._connections():
            connection.attempt(connection.reset)
        await cancel(self._tasks, grace_s)
        return []

    async def stop(self) -> None:
        """Do nothing: a handler has no shutdown."""

    def _will_move(self, connection: _TcpConnection) -> bool:
        return self._moving and connection.moves

    def _connections(self) -> list[_TcpConnection]:
        """Return the open connections."""
        # If an app has set another protocol on the transport, asyncio reports the end to that one, and not to ours.
        gone = [key for key, connection in self._open.items() if connection.is_gone()]
        for key in gone:
            del self._open[key]
        return list(self._open.values())

    def _stream_factory(self, handler: Callable[..., Any]) -> _Factory:
        tracked = self._tracked(handler)

        def factory() -> asyncio.BaseProtocol:
            return _StreamProtocol(BoundaryReader(loop=asyncio.get_running_loop()), tracked)

        return factory

    def _tracked(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await handler(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # the client left in the middle of a message, which is no error of the app
            except asyncio.CancelledError:
                if not self._aborted:  # asyncio's streams would log the cancellation as an error
                    raise
            except Exception:
                self._failed += 1
                _logger.exception("the TCP handler raised; its connection is closed")
            finally:
                self._tasks.discard(task)
                writer.close()

        self._handler_code = run.__code__
        return run

    def _made(self, protocol: Any, transport: asyncio.Transport, between: Callable[[Any], bool] | None) -> None:
        """Register an open connection."""
        asked = None if between is None else functools.partial(between, protocol)
        reader = protocol.reader if isinstance(protocol, _StreamProtocol) else None
        self._open[id(protocol)] = connection = _TcpConnection(protocol, transport, reader, asked)
        if reader is not None:
            reader.arrived = functools.partial(self._arrived, connection, reader)

    def _arrived(self, connection: _TcpConnection, reader: BoundaryReader) -> None:
        """Note that a handler has come to its boundary, and offer the connection to the hand-off."""
        connection.used = self._now or time.monotonic()
        # Before its first message a connection stays here: it may just have come from the keeper.
        if self._freed is not None and reader.messages:
            # Later, because the handler is only about to wait. The connection may not move before.
            asyncio.get_running_loop().call_soon(self._freed, connection)

    def _begun(self, reader: BoundaryReader, protocol: asyncio.BaseProtocol, served: Served) -> None:
        reader.begun = None
        served(protocol)

    def _counted(self, kind: type) -> type:
        """Return a subclass of the app's class with two hooks. It is made once for each class."""
        found = self._classes.get(kind)
        if found is None:
            is_open, made, between = self._open, self._made, marked_method(kind)

            def connection_made(self: Any, transport: asyncio.Transport) -> None:
                made(self, transport, between)
                kind.connection_made(self, transport)  # type: ignore[attr-defined]

            def connection_lost(self: Any, error: Exception | None) -> None:
                is_open.pop(id(self), None)
                kind.connection_lost(self, error)  # type: ignore[attr-defined]

            # CPython allows to assign `__class__` only between classes of the same layout. Empty __slots__ keep that of the app's class.
            hooks = {"__slots__": (), "connection_made": connection_made, "connection_lost": connection_lost}
            found = self._classes[kind] = type(kind.__name__, (kind,), hooks)
        return found


class _StreamProtocol(asyncio.StreamReaderProtocol):
    """asyncio's protocol for a handler. It keeps its reader, which asyncio refers to only weakly."""

    def __init__(self, reader: BoundaryReader, handler: Callable[..., Any]) -> None:
        super().__init__(reader, handler)
        self.reader = reader


class _TcpConnection:
    """An open connection, which may move (`Movable`) and has a timeout (`TimedConnection`).

    Attributes:
        used: the time of the last use on the monotonic clock. With a handler that is its last boundary, otherwise the last time
            that the counters of bytes had changed.
        can_drain: the protocol has a method `drain`.
    """

    def __init__(
        self,
        protocol: Any,
        transport: asyncio.Transport,
        reader: BoundaryReader | None,
        between: Callable[[], bool] | None,
    ) -> None:
        """Wrap an open connection.

        Args:
            protocol: the app's protocol.
            transport: the protocol's transport.
            reader: the reader of a handler.
            between: the method that a protocol has marked.
        """
        self._protocol = protocol
        self._transport = transport
        self._reader = reader
        self._between = between
        self._seen: tuple[int, int] | None = None
        self._released = self._reading_ended = False
        self._is_plain = transport.get_extra_info("sslcontext") is None
        self.can_drain = callable(getattr(protocol, "drain", None))
        self.used = 0.0

    @property
    def moves(self) -> bool:
        """True if the connection can move at all. A handler shows that it has a boundary when it comes to one."""
        known = (
            self._reader.waiting or self._reader.messages > 0 if self._reader is not None else self._between is not None
        )
        return known and self._is_plain

    def on_second(self, now: float) -> None:
        """Note whether the connection was used since the last second."""
        counts = self._counts()
        if not self.used or (self._reader is None and counts != self._seen):
            self.used = now
        self._seen = counts

    def may_move(self) -> bool:
        """Return whether another process could go on with the connection now."""
        transport = self._transport
        return (
            self._is_plain
            and not self._released
            and self._at_boundary()
            and not transport.is_closing()
            and not transport.get_write_buffer_size()  # only the kernel's buffer moves with the socket
            and transport.get_protocol() is self._protocol  # after set_protocol nothing is known of boundaries
        )

    def kept_alive(self) -> bool:
        """Return whether the client has sent a message already."""
        if self._reader is not None:
            return self._reader.messages > 0
        counts = self._counts()
        return counts is None or counts[1] > 0  # a Unix socket has no counters: assume that it has

    def idle_since(self) -> float:
        """Return when the connection was last used. A connection that wasn't checked yet counts as used now."""
        return self.used or time.monotonic()

    def descriptor_and_family(self) -> tuple[int, int]:
        """Return the descriptor and the address family of the socket."""
        sock = self._transport.get_extra_info("socket")
        return sock.fileno(), sock.family

    def release(self) -> None:
        """Close this process's copy of the socket, since another process has the connection."""
        self._released = True
        self._transport.abort()  # with uvloop this is close(2) without shutdown(2), which would end the other copy, too

    def waits(self) -> Wait | None:
        """Return that the connection waits for a byte in either direction, as the kernel counts them.

        Returns:
            None: on a Unix socket the kernel counts no bytes, and the connection never times out.
        """
        counts = self._counts()
        return None if counts is None else Wait(WaitingFor.STREAM, counts)

    def give_up(self, what: WaitingFor) -> None:
        """Close the connection at once, without writing the rest, which would have to wait for the client."""
        # After a plain close(2) the kernel would keep what the client doesn't read.
        # With an empty buffer a plain close lets the client read what the kernel still holds.
        if self._transport.get_write_buffer_size():
            reset(self._transport)
        else:
            self._transport.abort()

    def reset(self) -> None:
        """Reset the connection."""
        reset(self._transport)

    def is_gone(self) -> bool:
        """Return whether the connection is closed, and its end was reported to another protocol."""
        transport = self._transport
        closed = transport.is_closing() and not transport.get_write_buffer_size()
        return closed and transport.get_protocol() is not self._protocol

    def drain(self) -> None:
        """Call the protocol's `drain`, if it has one. That is the app's code, and may raise."""
        if self.can_drain:
            self._protocol.drain()

    def end_reading(self) -> None:
        """Let the app see, once, that its client has finished sending."""
        if self._reading_ended or self._transport.is_closing():
            return
        self._reading_ended = True
        with lent(self._transport) as sock, contextlib.suppress(OSError):
            if sock is not None:
                sock.shutdown(socket.SHUT_RD)  # fails if the client has gone, which the transport notices by itself

    def attempt(self, step: Callable[[], None]) -> None:
        """Take a step of the drain. If it fails, only this connection is lost."""
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
            _logger.exception("the protocol's boundary raised; its connection stays in its worker")
            self._between = None  # it would raise, and be logged, at each check
            return False

    def _counts(self) -> tuple[int, int] | None:
        sock = self._transport.get_extra_info("socket")
        return None if sock is None else transferred(sock.fileno())
