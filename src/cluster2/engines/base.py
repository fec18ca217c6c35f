"""The seam between cluster2 and the servers that it runs.

An engine turns an app into a server inside a worker: it starts the app (lifespan), says what it is doing, drains and stops
(`Engine`). There are two kinds, by who takes connections:

- One that is *fed* (`ProtocolEngine`) makes a protocol object for each connection that the worker's acceptor takes. All workers
  share the listeners, connections can move. That is the kind to write, if you can.
- One that *owns* its accept loop (`SelfAcceptingEngine`) is given listening sockets and takes from them as it likes. Each worker gets
  sockets of its own, and the master steers connections to those that serve (`kernel.steering`).

An engine declares, for each interface that it serves, what it can do (`capabilities`); which engines there are, and what options
ask of them, is `catalogue`'s.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl
from collections.abc import Callable, Generator, Iterable, Mapping, MutableSequence
from dataclasses import dataclass
from enum import StrEnum
from types import FrameType
from typing import Any, ClassVar, NamedTuple, Protocol, TypeGuard

from ..config.settings import Settings
from .access_log import AccessLog
from .outcomes import Outcomes


class Interface(StrEnum):
    """What kind of callable an app is."""

    ASGI = "asgi"
    WSGI = "wsgi"
    RSGI = "rsgi"
    TCP = "tcp"


RSGI_HOOKS = ("__rsgi_init__", "__rsgi_del__")
"""What an RSGI app may have besides its call: what is wrapped around it has them, too."""


class Capability(StrEnum):
    """What an engine may be able to do. Options name the one that they need (`Option.needs`)."""

    TLS = "tls"
    LIFESPAN = "lifespan"
    WEBSOCKETS = "websockets"
    IDLE_TIMEOUT = "idle-timeout"
    PROXY_HEADERS = "proxy-headers"
    ROOT_PATH = "root-path"
    ACCESS_LOG = "access-log"
    KEEPER = "keeper"
    REQUEST_AGE = "request-age"
    ECV = "ecv"
    KEEP_ALIVE = "keep-alive"
    THREADS = "threads"
    HTTP2 = "http2"
    CONNECTION_COUNT = "connection-count"


class EngineStats(NamedTuple):
    """What an engine is doing, counted when somebody asks.

    Attributes:
        requests: that have ended since the start; None where the engine can't know.
        connections: open now; None where the engine can't know.
        in_flight: requests (for TCP: connections) under way.
        timed_out: connections that were given up because their client took too long (`timeout`).
        stalled: of these, the ones that were in the middle of something.
        outcomes: how they have ended; None where the engine can't know.
        failed: errors that are in no outcome: the app failed where the engine's connections don't see it.
    """

    requests: int | None
    connections: int | None
    in_flight: int
    timed_out: int = 0
    stalled: int = 0
    outcomes: Outcomes | None = None
    failed: int = 0


class ThreadHold(NamedTuple):
    """For how long requests have held threads of an engine lately.

    Attributes:
        wall: seconds, the longest of them, by the clock: it may have waited for others to give it the GIL.
        used: seconds of CPU time, the longest of those for which it is known.
        full: at times no thread was free.
    """

    wall: float
    used: float
    full: bool


def _as_it_is(app: Callable[..., Any], interface: Interface) -> Callable[..., Any]:
    return app


@dataclass(frozen=True, slots=True)
class AppContext:
    """One app with what its engine needs to know.

    Attributes:
        app: the callable itself.
        interface: of the app.
        tls: the context of its listeners, or None for plain connections.
        wrap: puts the worker's layer (`worker.wrapper`) around what the engine calls: the app, or the engine's own bridge to
            it, with the interface by which that is called.
        gauge: two cells in which an engine that owns its accept loop notes at once how many requests have begun, and how many
            have ended, since the master steers by them (`begun` and `ended` of the scoreboard); None: nobody looks.
        access: takes what is to be logged of each request; None: nobody wants to know.
    """

    app: Callable[..., Any]
    interface: Interface
    settings: Settings
    tls: ssl.SSLContext | None
    instrument: Callable[[Callable[..., Any], Interface], Callable[..., Any]] = _as_it_is
    gauge: MutableSequence[int] | None = None
    access: AccessLog | None = None


class TimedAwaitable:
    """An awaitable of ours that stands around another: whoever looks what a coroutine waits for looks through it."""

    __slots__ = ("inner",)
    inner: Generator[Any, Any, Any]


class Movable(Protocol):
    """A connection that may outlive its worker (`kernel.handover` tells how)."""

    def may_move(self) -> bool:
        """Whether another process could go on with it now."""

    def kept_alive(self) -> bool:
        """Whether it has brought a request already: then it is likely to bring another."""

    def idle_since(self) -> float:
        """When it was last used, on the monotonic clock, as coarse as the tick."""

    def descriptor_and_family(self) -> tuple[int, int]:
        """Its descriptor and address family."""

    def release(self) -> None:
        """Another process has it: close our copy, without a word to the client."""

    def abandon(self, step: str) -> None:
        """Log the exception that is being handled, which a step with this connection raised, and reset the connection."""


Served = Callable[[object], None]
"""Called with a protocol that `Engine.accepted_protocol` made, when its request has begun or never will."""


class Engine(Protocol):
    """A server of one app inside a worker's event loop: what both kinds have. All methods run on that loop.

    Attributes:
        capabilities: what it can do, for each interface that it serves.
    """

    name: ClassVar[str]
    capabilities: ClassVar[Mapping[Interface, frozenset[Capability]]]

    def __init__(self, site: AppContext) -> None: ...

    @staticmethod
    def preload(settings: Settings) -> None:
        """Import all that serving needs. Called in the zygote, so that workers share it.

        Raises:
            ConfigError: an option needs something that isn't installed.
        """

    @staticmethod
    def peer(scope: Any, receive: Any) -> str | None:
        """The host at the other end of the socket of a request that the app is called with, whatever headers say.

        Returns:
            "" for a Unix socket, None if it can't be known.
        """

    async def start(self) -> None:
        """Start the app. Raises AppError if it refuses."""

    def tick(self, now: float) -> None:
        """Called about every 10 ms while there is work: the time, on the monotonic clock."""

    def on_second(self) -> None:
        """Called about once a second: for dates and time limits."""

    def stats(self) -> EngineStats:
        """What it is doing."""

    def oldest_request(self, now: float) -> float | None:
        """Since when, on the monotonic clock, the oldest request is under way, as seen by calls of this; None: there is none."""

    def describe_frame(self, frame: FrameType) -> str | None:
        """Return what the app was called for in this frame: method and path of a request, or a connection's peer, fit for a log.

        A signal handler asks that of all frames there are, in the main thread: so nothing but the frame's variables may be read.

        Returns:
            None: it isn't a frame in which an engine calls the app.
        """

    def movable(self) -> Iterable[Movable]:
        """Its connections, as far as they are of a kind that can move at all."""

    def report_freed(self, freed: Callable[[Movable], None] | None) -> None:
        """From now on call `freed` with each connection when its response is complete, if not written; None: no more."""

    def close_some(self, count: int, *, fixed: bool) -> int:
        """End up to so many connections politely, with their next response; for balance. Returns how many will.

        Args:
            fixed: only connections of a kind that can't move.
        """

    def drain(self, *, moving: bool) -> None:
        """From now on each connection ends politely as soon as it can, and no new ones come.

        Args:
            moving: connections that may move are taken away meanwhile: they needn't end.
        """

    def close_idle(self, grace: float) -> None:
        """Called again and again while draining: end what has been idle for `grace` seconds of it."""

    def idle(self) -> bool:
        """Whether nothing is under way and no connection is open."""

    async def abort(self, patience: float) -> list[str]:
        """Its time is over: reset every connection (`engines.ending`), cancel what is under way.

        Args:
            patience: seconds that what was cancelled may take to clean up.

        Returns:
            What was under way, as far as there are names: paths of requests, fit for a log.
        """

    async def stop(self) -> None:
        """Stop the app, after the last connection has gone.

        Raises:
            AppError: its shutdown has failed: the worker goes on leaving, and tells the command that wanted it to leave.
        """


class ProtocolEngine(Engine, Protocol):
    """An engine that is given connections.

    Attributes:
        reads_first: the acceptor may read from a connection before its protocol exists (no TLS, and the client speaks first).
    """

    reads_first: bool

    def protocol(self) -> asyncio.BaseProtocol:
        """The protocol object of a new connection."""

    def accepted_protocol(self, first: bytes | None, served: Served) -> asyncio.BaseProtocol:
        """The same for a connection that our acceptor took.

        Args:
            first: what was read already, if anything; given only if `reads_first`.
        """

    def has_capacity(self) -> bool:
        """Whether a request that came now could begin at once (a thread is free). If not, see `on_capacity`."""

    def on_capacity(self, freed: Callable[[], None]) -> None:
        """Call this each time when, after `has_capacity` has denied it, one more connection may be taken."""

    def longest_hold(self, now: float, above: float) -> ThreadHold | None:
        """For how long requests have held threads since this was last asked; None: it has no threads.

        Args:
            above: seconds from which on one that still holds its thread counts, and again and again as it gets older.
        """


class SelfAcceptingEngine(Engine, Protocol):
    """An engine that takes connections itself."""

    def listen(self, listener: socket.socket) -> None:
        """Take connections from this socket, too, from now on until the drain is over. Called after `start`.

        The worker's own socket remains open; take a duplicate. It may be that nobody is steered to it.
        """


def owns_accept(engine: type[Engine] | Engine) -> bool:
    """Whether it takes connections itself."""
    return hasattr(engine, "listen")


def is_protocol_engine(engine: Engine) -> TypeGuard[ProtocolEngine]:
    """Whether it is given connections."""
    return not owns_accept(engine)


def is_self_accepting(engine: Engine) -> TypeGuard[SelfAcceptingEngine]:
    """Whether it takes connections itself."""
    return owns_accept(engine)


def is_async(app: Callable[..., Any], *, through: bool = True) -> bool:
    """Whether calling it makes a coroutine: an async function, or an object whose `__call__` is one.

    Args:
        through: a wrapper (`functools.wraps`) that isn't async itself is taken to return what it wraps returns.
    """
    if not through:
        return inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(type(app).__call__)
    try:
        wrapped = inspect.unwrap(app, stop=lambda layer: is_async(layer, through=False))
    except ValueError:  # it wraps itself
        return False
    return is_async(wrapped, through=False)
