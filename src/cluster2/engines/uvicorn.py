"""The engine for ASGI and WSGI: uvicorn's HTTP, without its manager.

uvicorn parses HTTP and runs the app; processes, listeners, accepting, draining and time limits are ours. Of uvicorn's own
`Server` nothing but the state that its protocols share is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import logging
import math
import socket
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, ClassVar, cast

from uvicorn.config import Config
from uvicorn.lifespan.off import LifespanOff
from uvicorn.lifespan.on import LifespanOn
from uvicorn.server import ServerState

from ..errors import ConfigError
from ..settings import Settings
from .access import logged, noted
from .base import Capability, Census, Hold, Interface, Movable, Served, Site
from .ending import abandon, cancel, cancellation_is_no_news, readable, reset
from .lifespan import Startup
from .patience import Patience
from .uvicorn_answer import answer
from .uvicorn_gone import client_gone, end_senders
from .uvicorn_http import Clock, HttpConnection, TakenConnection, check, template_of
from .uvicorn_websocket import WebSocketConnection
from .wsgi import Bridge
from .wsgi_client import Failed

if TYPE_CHECKING:
    from .uvicorn_versions import Http2

_HTTP = frozenset(
    {
        Capability.TLS,
        Capability.IDLE_TIMEOUT,
        Capability.PROXY_HEADERS,
        Capability.ACCESS_LOG,
        Capability.KEEPER,
        Capability.REQUEST_AGE,
        Capability.KEEP_ALIVE,
        Capability.ECV,
        Capability.HTTP2,
        Capability.CONNECTION_COUNT,
    }
)
"""What it can do for apps of both interfaces."""
_LOOK_INTERVAL_S = 0.005
"""Seconds between two looks whether threads have ended."""
_ASKED = math.inf
"""Stands for the time since when a connection is idle, once it was asked to close: it isn't asked again."""


class UvicornEngine:
    """Serves ASGI apps, and WSGI apps through a bridge (`wsgi`)."""

    name: ClassVar[str] = "uvicorn"
    capabilities: ClassVar[Mapping[Interface, frozenset[Capability]]] = {
        Interface.ASGI: _HTTP | {Capability.LIFESPAN, Capability.WEBSOCKETS},
        Interface.WSGI: _HTTP | {Capability.THREADS},
    }

    def __init__(self, site: Site) -> None:
        self._patience = Patience(site.settings.timeout)
        self._keep_alive = site.settings.keep_alive
        self._clock = Clock()
        # Classes of this engine's own: which hooks they have depends on its worker's mode.
        self._state = ServerState()
        self._http2 = _http2(site, self._clock, self._state)
        base = HttpConnection if self._http2 is None else self._http2.either
        self._plain: type[HttpConnection] = type("HttpConnection", (base,), {"clock": self._clock})
        if not self._keep_alive:
            self._end_each(lambda connection: True)
        self._taken: type[TakenConnection] = type("TakenConnection", (TakenConnection, self._plain), {})
        self._bridge = _bridge(site) if site.interface is Interface.WSGI else None
        self._config = _config(site, self._bridge, self._plain)
        self._pool = None if self._bridge is None else self._bridge.pool
        self._lifespan = _lifespan(self._config)
        self._startup = Startup(self._config.loaded_app, self._config.lifespan)
        if isinstance(self._lifespan, LifespanOn):
            self._lifespan.config = config = copy.copy(self._config)  # its own: requests take the straight way
            config.loaded_app = self._startup.call
        self._idle_since: dict[Any, float] = {}
        self._drained_at = math.inf
        self._hushed = contextlib.ExitStack()
        self._begun: dict[Any, float] = {}
        self.reads_first = site.tls is None

    @staticmethod
    def preload(settings: Settings) -> None:
        """See that it is a uvicorn that we know; import what it imports by name only. Raises ConfigError."""
        check()
        if settings.http2:
            _import_http2()
            from .uvicorn_http2 import check as check_http2

            check_http2()
        import httptools  # noqa: F401
        import uvicorn.protocols.websockets.auto  # noqa: F401

    @staticmethod
    def peer(scope: Any, receive: Any) -> str | None:
        """Asked of the socket: `scope["client"]` is what a header said, if a proxy is believed."""
        transport: asyncio.BaseTransport = receive.__self__.transport
        sock = transport.get_extra_info("socket")
        try:
            return "" if sock.family == socket.AF_UNIX else str(sock.getpeername()[0])
        except OSError:  # it has gone
            return None

    async def start(self) -> None:
        """Run the app's lifespan to the end of its startup; start its threads."""
        with _Quiet():
            await self._lifespan.startup()
        self._startup.check()
        self._plain.context = contextvars.copy_context()
        self._plain.template = template_of(self._config, self._state, self._lifespan.state)
        if self._bridge is not None:
            logging.getLogger("uvicorn.error").addFilter(_TOLD)
            self._bridge.start()
        self.second()

    def protocol(self) -> asyncio.BaseProtocol:
        """Uvicorn's protocol over httptools; it changes to the websocket's by itself."""
        return self._plain()

    def taken(self, first: bytes | None, served: Served) -> asyncio.BaseProtocol:
        """The same, which reads what came already, and tells when its request has begun."""
        connection = self._taken()
        connection.served, connection.first = served, first
        return connection

    def tick(self, now: float) -> None:
        """Set the clock."""
        self._clock.now = now

    def second(self) -> None:
        """Renew the date header, and give up clients that take too long."""
        date = formatdate(time.time(), usegmt=True).encode()
        self._state.default_headers = [(b"date", date), *self._config.encoded_headers]
        self._clock.now = now = time.monotonic()
        self._patience.look(self.movable() if self._http2 is None else [*self.movable(), *self._http2.patients()], now)
        if self._http2 is not None:
            self._http2.press(now)

    def room(self) -> bool:
        """An ASGI app runs as many requests as come; a WSGI app as many as it has threads."""
        return self._bridge is None or self._bridge.room()

    def on_room(self, freed: Callable[[], None]) -> None:
        """Pass it on to those who know."""
        if self._bridge is not None:
            self._bridge.on_room(freed)

    def held(self, now: float, above: float) -> Hold | None:
        """The threads' own account."""
        return None if self._pool is None else self._pool.held(now, above)

    def census(self) -> Census:
        """Uvicorn counts already; nothing is added to the path of a request."""
        state = self._state
        given_up, stalled = self._patience.given_up, self._patience.stalled
        return Census(state.total_requests, len(state.connections), len(state.tasks), given_up, stalled)

    def oldest(self, now: float) -> float | None:
        """Seen by looking at the cycles; nothing is noted on the way of a request."""
        cycles: list[Any] = [connection.cycle for connection in self.movable()]
        if self._http2 is not None:
            cycles += self._http2.cycles()
        under_way = [cycle for cycle in cycles if cycle is not None and not cycle.response_complete]
        self._begun = seen = {cycle: self._begun.get(cycle, now) for cycle in under_way}
        # A thread may still be at a request whose client has left.
        since = [*seen.values(), *([] if self._pool is None else self._pool.under_way())]
        return min(since, default=None)

    def movable(self) -> list[HttpConnection]:
        """HTTP connections; whether one may move is asked of it (with TLS it never may)."""
        return [each for each in self._state.connections if isinstance(each, HttpConnection)]

    def park(self, freed: Callable[[Movable], None] | None) -> None:
        """Put a hook behind each response, or take it out."""
        if freed is None:
            if "on_response_complete" in vars(self._plain):
                del self._plain.on_response_complete
            return

        def on_response_complete(self: HttpConnection) -> None:
            HttpConnection.on_response_complete(self)
            freed(self)

        self._plain.on_response_complete = on_response_complete  # type: ignore[method-assign]

    def shed(self, count: int, *, fixed: bool) -> int:
        """Responses that haven't begun yet announce the end of their connection; those of HTTP/2 say GOAWAY."""
        shed = 0 if self._http2 is None else self._http2.shed(count)
        for connection in self.movable():
            cycle: Any = connection.cycle
            if fixed and connection.scheme == "http":
                continue
            if shed < count and cycle is not None and not cycle.response_started and cycle.keep_alive:
                cycle.keep_alive = False
                shed += 1
        return shed

    def drain(self, *, moving: bool) -> None:
        """Requests under way, and those that come from now on, end their connections, unless these can move instead."""

        def ends(connection: HttpConnection) -> bool:
            return not (moving and self._keep_alive) or connection.scheme != "http"

        self._drained_at = min(self._drained_at, time.monotonic())
        self._end_each(ends)
        for connection in self.movable():
            try:
                cycle: Any = connection.cycle
                # A response whose head is out has not announced the end: such a connection becomes an idle one instead.
                if cycle is not None and not cycle.response_started and ends(connection):
                    cycle.keep_alive = False
            except Exception:
                abandon(connection.transport, "drain")
        if self._http2 is not None:
            self._http2.drain()

    def sweep(self, grace: float) -> None:
        """Close HTTP connections that were idle, and websockets that were open (1012), for `grace` seconds of the drain.

        Each is asked once: a websocket's closing handshake can't be begun twice, and takes as long as its client takes to read.
        """
        now = time.monotonic()
        if now - self._drained_at >= grace and end_senders(self._state.tasks):
            self._hushed.enter_context(cancellation_is_no_news("uvicorn.error"))
        known, self._idle_since = self._idle_since, {}
        if self._http2 is not None:
            self._http2.press(now)
        for connection in list(self._state.connections):
            if isinstance(connection, HttpConnection) and not connection.idle():
                continue
            if self._http2 is not None and self._http2.has(connection):
                continue
            since = self._idle_since[connection] = known.get(connection, now)
            if now - since >= grace:
                self._idle_since[connection] = _ASKED
                try:
                    if not connection.transport.is_closing():
                        connection.shutdown()
                except Exception:
                    abandon(connection.transport, "closing")

    def idle(self) -> bool:
        """Whether no connection is open, no request's task is running, and no thread is at work."""
        return not self._state.connections and not self._state.tasks and not (self._pool and self._pool.busy)

    async def cut(self, patience: float) -> list[str]:
        """Reset all connections; the tasks of requests are cancelled, and nobody is answered any more."""
        paths = []
        for connection in list(self._state.connections):
            try:
                if isinstance(connection, HttpConnection) and not connection.idle():
                    serving: Any = connection.serving
                    if serving is not None and not serving.response_complete:
                        paths.append(readable(serving.scope["raw_path"]))
                        connection.disown()  # else uvicorn would write a 500 to what is closing
                elif isinstance(connection, WebSocketConnection) and connection.handshake_initiated:
                    paths.append(readable(connection.scope["raw_path"]))
                reset(connection.transport)
            except Exception:
                abandon(connection.transport, "cut")
        for cycle in [] if self._http2 is None else self._http2.cycles():
            paths.append(readable(cycle.scope["raw_path"]))
            client_gone(cycle)
        deadline = time.monotonic() + patience
        if self._pool is not None:
            self._pool.drop()
        with cancellation_is_no_news("uvicorn.error"):
            await cancel(self._state.tasks, patience)
        # Threads notice at their next part that nobody wants the rest, and call the app's close().
        while self._pool is not None and self._pool.busy and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_INTERVAL_S)
        return paths

    async def stop(self) -> None:
        """Run the app's lifespan to its end. Threads that are stuck aren't waited for: the process ends without them.

        Raises:
            AppError: the app's shutdown has failed.
        """
        if self._bridge is not None:
            self._bridge.stop()
        self._hushed.close()
        await self._lifespan.shutdown()
        self._startup.check_end()

    def _end_each(self, ends: Callable[[HttpConnection], bool]) -> None:
        """From now on the response to a new request ends its connection, where `ends` says so."""

        def _start_asgi_task(self: Any, cycle: Any, app: Any) -> None:
            if ends(self):
                cycle.keep_alive = False
            HttpConnection._start_asgi_task(self, cycle, app)

        self._plain._start_asgi_task = _start_asgi_task  # type: ignore[method-assign]


class _Told(logging.Filter):
    """Keeps uvicorn from logging what the bridge has logged already, with more to tell."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], Failed))


_TOLD = _Told()


class _Quiet(logging.Filter):
    """Keeps uvicorn from logging what becomes of a startup: that is ours to report (`Startup`)."""

    def filter(self, record: logging.LogRecord) -> bool:
        failed = record.exc_info is not None and record.exc_info[0] is not None
        return not failed and record.msg != "Application startup failed. Exiting."

    def __enter__(self) -> _Quiet:
        logging.getLogger("uvicorn.error").addFilter(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("uvicorn.error").removeFilter(self)


def _import_http2() -> type[Http2]:
    try:
        from .uvicorn_versions import Http2
    except ModuleNotFoundError as error:
        if error.name != "zttp":
            raise
        raise ConfigError(
            "http2: zttp, which speaks it, isn't installed: pip install 'cluster2[http2]', or leave the option out"
        ) from None
    return Http2


def _http2(site: Site, clock: Clock, state: ServerState) -> Http2 | None:
    settings = site.settings
    return _import_http2()(state, clock, settings.drain_idle, settings.keep_alive) if settings.http2 else None


def _bridge(site: Site) -> Bridge:
    settings = site.settings
    return Bridge(
        site.app,
        settings.threads,
        root_path=settings.root_path,
        multiprocess=settings.cluster,
        answer=answer if site.access is None else noted(answer),
    )


def _config(site: Site, bridge: Bridge | None, protocol: type[HttpConnection]) -> Config:
    settings = site.settings
    app = site.wrap(bridge or site.app, Interface.ASGI)
    config = Config(
        app if site.access is None else logged(app, site.access),
        interface="asgi3",
        http=protocol,
        lifespan=cast(Any, settings.lifespan if bridge is None else "off"),
        ws=WebSocketConnection if bridge is None else "none",
        log_config=None,
        access_log=False,  # ours is cheaper (`access`)
        forwarded_allow_ips=settings.forwarded_allow_ips,
        root_path=settings.root_path,
        timeout_keep_alive=cast(Any, settings.timeout),
    )
    _silence_factory_probe(config)
    return config


def _silence_factory_probe(config: Config) -> None:
    """Load the configuration without uvicorn's guess that a callable might be a factory: it calls the app to find out."""
    app = config.app
    config.app = lambda: app
    config.factory = True
    config.load()


def _lifespan(config: Config) -> LifespanOn | LifespanOff:
    return LifespanOff(config) if config.lifespan == "off" else LifespanOn(config)
