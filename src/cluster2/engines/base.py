"""The interface between a worker and the engines, which turn an app into a server.

An engine starts the app (lifespan), reports what it is doing, drains and stops (`Engine`). There are two kinds:

- A `ProtocolEngine` makes a protocol object for each connection that the worker's acceptor takes. All workers share the
  listeners, and connections can move to another worker. Write this kind if you can.
- A `SelfAcceptingEngine` has an accept loop of its own and is given listening sockets. Each worker gets sockets of its
  own, and the master steers connections to the workers that serve (`linux.steered_group`).

An engine declares its capabilities for each interface that it serves. `registry` lists the engines, and checks which options
they can honour.
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
    """The kind of callable that an app is."""

    ASGI = "asgi"
    WSGI = "wsgi"
    RSGI = "rsgi"
    TCP = "tcp"


RSGI_HOOKS = ("__rsgi_init__", "__rsgi_del__")
"""Attributes that an RSGI app may have besides its call. A wrapper around the app has to copy them."""


class Capability(StrEnum):
    """A feature that an engine may have. An option names the one that it needs (`Option.requires`)."""

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
    """Counts of an engine, made when they are asked for.

    Attributes:
        requests: requests that have ended since the start; None where the engine can't know.
        connections: connections that are open; None where the engine can't know.
        in_flight: requests (for TCP: connections) under way.
        timed_out: connections that were closed because their client took too long (`timeout`).
        stalled: those among `timed_out` that were in the middle of a request or a response.
        outcomes: how the requests have ended; None where the engine can't know.
        failed: errors that are in no outcome, since the engine's connections didn't see that the app failed.
    """

    requests: int | None
    connections: int | None
    in_flight: int
    timed_out: int = 0
    stalled: int = 0
    outcomes: Outcomes | None = None
    failed: int = 0


class ThreadHold(NamedTuple):
    """The longest times for which requests have held threads of an engine lately.

    Attributes:
        wall: seconds by the clock. They include waits for the GIL.
        used: seconds of CPU time, of the requests for which it was measured.
        full: at times no thread was free.
    """

    wall: float
    used: float
    full: bool


def _uninstrumented(app: Callable[..., Any], interface: Interface) -> Callable[..., Any]:
    return app


@dataclass(frozen=True, slots=True)
class AppContext:
    """One app, with all that its engine needs for it.

    Attributes:
        app: the callable itself.
        interface: the app's interface.
        settings: the cluster's options.
        tls: the context of the app's listeners, or None for plain connections.
        instrument: puts the worker's layer (`worker.instrumentation`) around the callable that the engine calls: the app, or the
            engine's own bridge to it. It takes that callable and the interface by which it is called.
        gauge: two cells in which a self-accepting engine notes at once how many requests have begun, and how many have
            ended. The master steers by them (`begun` and `ended` of the scoreboard). None: the numbers aren't needed.
        access: the access log; None: requests aren't logged.
    """

    app: Callable[..., Any]
    interface: Interface
    settings: Settings
    tls: ssl.SSLContext | None
    instrument: Callable[[Callable[..., Any], Interface], Callable[..., Any]] = _uninstrumented
    gauge: MutableSequence[int] | None = None
    access: AccessLog | None = None


class TimedAwaitable:
    """An awaitable of ours around another one. Code that inspects what a coroutine waits for has to unwrap it.

    Attributes:
        inner: the awaitable inside.
    """

    __slots__ = ("inner",)
    inner: Generator[Any, Any, Any]


class Movable(Protocol):
    """A connection that may outlive its worker (see `linux.handover`)."""

    def may_move(self) -> bool:
        """Return whether another process could go on with it now."""

    def kept_alive(self) -> bool:
        """Return whether it has brought a request already, and so is likely to bring another."""

    def idle_since(self) -> float:
        """Return the monotonic time of its last use, as coarse as the tick."""

    def descriptor_and_family(self) -> tuple[int, int]:
        """Return its descriptor and its address family."""

    def release(self) -> None:
        """Close our copy of the socket, since another process has it. The client must not notice."""

    def abandon(self, step: str) -> None:
        """Log the exception that is being handled, which a step with this connection raised, and reset the connection."""


Served = Callable[[object], None]
"""A callback that takes a protocol made by `ProtocolEngine.accepted_protocol`, when its request has begun or never will."""


class Engine(Protocol):
    """A server of one app inside a worker: the methods of both kinds. All of them run on the worker's event loop.

    Attributes:
        name: as in the option `engine`.
        capabilities: the features, for each interface that the engine serves.
    """

    name: ClassVar[str]
    capabilities: ClassVar[Mapping[Interface, frozenset[Capability]]]

    def __init__(self, context: AppContext) -> None: ...

    @staticmethod
    def preload(settings: Settings) -> None:
        """Import all that serving needs. Called in the zygote, so that workers share it.

        Raises:
            ConfigError: an option needs something that isn't installed.
        """

    @staticmethod
    def peer(scope: Any, receive: Any) -> str | None:
        """Return the host at the other end of a request's socket, whatever headers say.

        Args:
            scope, receive: the app is called with these.

        Returns:
            "" for a Unix socket, None if it can't be known.
        """

    async def start(self) -> None:
        """Start the app. Raises AppError if the app refuses to start."""

    def tick(self, now: float) -> None:
        """Take the monotonic time. Called about every 10 ms while there is work."""

    def on_second(self) -> None:
        """Renew dates and apply time limits. Called about once a second."""

    def stats(self) -> EngineStats:
        """Return the engine's counts."""

    def oldest_request(self, now: float) -> float | None:
        """Return the monotonic time at which a call of this method first saw the oldest request that is under way.

        Returns:
            None: no request is under way.
        """

    def describe_frame(self, frame: FrameType) -> str | None:
        """Describe the call of the app in this frame, for a log: method and path of a request, or a connection's peer.

        A signal handler calls this in the main thread for all frames of the process, so it may read only the frame's variables.

        Returns:
            None: the engine doesn't call the app in this frame.
        """

    def movable(self) -> Iterable[Movable]:
        """Return the connections of a kind that can move at all."""

    def report_freed(self, freed: Callable[[Movable], None] | None) -> None:
        """Call `freed` from now on with each connection whose response is complete, even if not all is written; None: stop it."""

    def close_some(self, count: int, *, fixed: bool) -> int:
        """End up to so many connections with their next response, to balance the load. Return how many will end.

        Args:
            fixed: end only connections of a kind that can't move.
        """

    def drain(self, *, moving: bool) -> None:
        """End each connection from now on with its next response. No new connections come.

        Args:
            moving: the worker moves the connections that may move, so these needn't end.
        """

    def close_idle(self, grace: float) -> None:
        """Close each connection that has been idle for `grace` seconds of the drain. Called repeatedly during the drain."""

    def idle(self) -> bool:
        """Return whether nothing is under way and no connection is open."""

    async def abort(self, grace_s: float) -> list[str]:
        """Reset all connections (`engines.aborting`), and cancel the requests under way. Called at the end of `drain_timeout`.

        Args:
            grace_s: seconds that cancelled requests may take to clean up.

        Returns:
            The requests that were under way, as far as they have names: their paths, fit for a log.
        """

    async def stop(self) -> None:
        """Stop the app, after the last connection has gone.

        Raises:
            AppError: the app's shutdown has failed. The worker exits all the same, and reports the failure to the command
                by which it was retired.
        """


class ProtocolEngine(Engine, Protocol):
    """An engine that is given accepted connections.

    Attributes:
        reads_first: the acceptor may read from a connection before its protocol exists (no TLS, and the client speaks first).
    """

    reads_first: bool

    def protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol object of a new connection."""

    def accepted_protocol(self, first: bytes | None, served: Served) -> asyncio.BaseProtocol:
        """Return the protocol object of a connection that the worker's acceptor took.

        Args:
            first: the bytes that the acceptor has read, if any; given only if `reads_first`.
            served: to be called when the first request has begun, or never will.
        """

    def has_capacity(self) -> bool:
        """Return whether a request that came now could begin at once (a thread is free). If not, see `on_capacity`."""

    def on_capacity(self, freed: Callable[[], None]) -> None:
        """Have `freed` called each time when, after `has_capacity` has returned False, one more connection may be taken."""

    def longest_hold(self, now: float, above: float) -> ThreadHold | None:
        """Return how long requests have held threads since the last call; None: the engine has no threads.

        Args:
            now: the monotonic time.
            above: seconds after which a request that still holds its thread counts. It counts again as it gets older.
        """


class SelfAcceptingEngine(Engine, Protocol):
    """An engine that accepts connections itself."""

    def listen(self, listener: socket.socket) -> None:
        """Accept connections from this socket as well, until the drain is over. Called after `start`.

        Take a duplicate: the worker's own socket stays open. The master may steer no connection to it.
        """


def owns_accept(engine: type[Engine] | Engine) -> bool:
    """Return whether an engine accepts connections itself."""
    return hasattr(engine, "listen")


def is_protocol_engine(engine: Engine) -> TypeGuard[ProtocolEngine]:
    """Return whether an engine is given accepted connections."""
    return not owns_accept(engine)


def is_self_accepting(engine: Engine) -> TypeGuard[SelfAcceptingEngine]:
    """Return whether an engine accepts connections itself."""
    return owns_accept(engine)


def is_async(app: Callable[..., Any], *, through: bool = True) -> bool:
    """Return whether calling an app makes a coroutine: an async function, or an object whose `__call__` is one.

    Args:
        through: look through wrappers (`functools.wraps`): one that isn't async itself returns what the wrapped function returns.
    """
    if not through:
        return inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(type(app).__call__)
    try:
        wrapped = inspect.unwrap(app, stop=lambda layer: is_async(layer, through=False))
    except ValueError:  # it wraps itself
        return False
    return is_async(wrapped, through=False)
