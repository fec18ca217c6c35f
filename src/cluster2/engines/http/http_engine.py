"""The engine `http`: ASGI and WSGI over HTTP/1.1 and websockets, on connections of our own (`connection`).

An engine has what its connections share: the app, the date, what counts, and what the worker has told it. What the worker asks
now and then (censuses, time limits, ages) is derived from the connections when it asks, so that a request pays nothing for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from email.utils import formatdate
from types import FrameType
from typing import Any, ClassVar

from ...config.settings import Settings
from ...config.value_types import encoded_path, parse_proxies
from ..aborting import alone, cancel, readable, reset
from ..base import AppContext, Capability, EngineStats, Interface, Movable, Served, ThreadHold
from ..client_timeouts import ClientTimeouts
from ..forked_child import end_returning_children
from ..lifespan import Lifespan
from ..outcomes import Outcomes
from .connection import LINGERING, UPGRADED, HttpConnection
from .limits import MESSAGES_BEFORE_CANCEL
from .proxy_headers import UNIX_PEER, TrustedProxies
from .request import COMPLETE, HttpRequest
from .response import Defaults
from .websocket import MAX_MESSAGE_BYTES, WebSocketConnection
from .websocket_session import HandshakeRefusal, open_session
from .wsgi_calls import WsgiServer

_HTTP = frozenset(
    {
        Capability.TLS,
        Capability.IDLE_TIMEOUT,
        Capability.PROXY_HEADERS,
        Capability.ROOT_PATH,
        Capability.ACCESS_LOG,
        Capability.KEEPER,
        Capability.REQUEST_AGE,
        Capability.KEEP_ALIVE,
        Capability.ECV,
        Capability.CONNECTION_COUNT,
    }
)
"""What it can do for apps of both interfaces."""
_THREADS_POLL_INTERVAL_S = 0.01
"""Seconds between two looks whether threads are through with what was cut off."""
_EAGER = sys.version_info >= (3, 12)

logger = logging.getLogger("cluster2.http")


class HttpEngine:
    """Serves ASGI and WSGI apps.

    Attributes:
        loop: of the worker.
        clock: the time, as the worker's tick last told it: coarse, and free to read.
        defaults: how responses begin.
        state: what the lifespan has left for requests.
        root_path: stands before each path.
        connections: that are open.
        half_closed: of these, the ones whose client has ended its side while its request was served, with the seconds since then.
        running: requests whose app runs.
        outcomes: how requests have ended.
        ended: how many with which status (`outcomes.by_status`).
        freed: called with each connection that is between two requests; None: nobody wants to know.
        ending: some responses have to end their connections; see `must_close`.
        access: takes a line for each request; None: nobody wants one.
        serves_websockets: the app can be asked for them.
        websockets: connections that have become one, until app and transport have ended.
    """

    name: ClassVar[str] = "http"
    capabilities: ClassVar[Mapping[Interface, frozenset[Capability]]] = {
        Interface.ASGI: _HTTP | {Capability.LIFESPAN, Capability.WEBSOCKETS},
        Interface.WSGI: _HTTP | {Capability.THREADS},
    }

    loop: asyncio.AbstractEventLoop

    def __init__(self, site: AppContext) -> None:
        """Prepare to serve an app; nothing runs yet."""
        settings = site.settings
        self.clock = 0.0
        self.defaults = Defaults()
        self.root_path = settings.root_path
        self.raw_root_path = encoded_path(settings.root_path).encode()
        self.connections: set[HttpConnection] = set()
        self.half_closed: dict[HttpConnection, int] = {}
        self.running: set[HttpRequest] = set()
        self.outcomes = Outcomes()
        self.ended = self.outcomes.by_status
        self.freed: Callable[[Movable], None] | None = None
        self.ending = not settings.keep_alive
        self.access = site.access
        self.reads_first = site.tls is None
        self._moving = False
        self._keep_alive = settings.keep_alive
        self._timeouts = ClientTimeouts(settings.timeout)
        self._proxies = TrustedProxies(parse_proxies(settings.forwarded_allow_ips))
        self._bridge = self._wsgi_server(site) if site.interface is Interface.WSGI else None
        self._pool = None if self._bridge is None else self._bridge.pool
        self._app = site.instrument(self._bridge or site.app, Interface.ASGI)
        self._concerns: Callable[[str], bool] = getattr(self._app, "concerns", _nothing)
        self.state: dict[str, Any] = {}
        self._lifespan = Lifespan(self._app, self.state, "off" if self._bridge else settings.lifespan)
        self.serves_websockets = self._bridge is None
        self.websockets: set[WebSocketConnection] = set()
        self._idle_since: dict[HttpConnection | WebSocketConnection, float] = {}
        self._begun: dict[HttpRequest, float] = {}
        self._drained_at = math.inf
        self._sent_to_gone: dict[HttpRequest, int] = {}
        self._context = contextvars.copy_context()

    @staticmethod
    def preload(settings: Settings) -> None:
        """Import what is imported late."""
        import httptools  # noqa: F401
        import websockets.server  # noqa: F401

    @staticmethod
    def peer(scope: Any, receive: Any) -> str | None:
        """Asked of the connection: `scope["client"]` is what a header said, if a proxy is believed."""
        connection: HttpConnection = receive.__self__.connection
        if connection.client is not None:
            return str(connection.client[0])
        sock = connection.transport.get_extra_info("socket")
        return "" if sock is not None and sock.family == socket.AF_UNIX else None

    async def start(self) -> None:
        """Run the app's lifespan to the end of its startup; start its threads. Raises AppError."""
        self.loop = asyncio.get_running_loop()
        await self._lifespan.start()
        self._context = contextvars.copy_context()
        if self._bridge is not None:
            self._bridge.context = self._context
            self._bridge.start()
        end_returning_children(self.describe_frame, self._set_trap)
        self.on_second()

    async def stop(self) -> None:
        """Run the app's lifespan to its end. Threads that are stuck aren't waited for: the process ends without them.

        Raises:
            AppError: the app's shutdown has failed.
        """
        if self._bridge is not None:
            self._bridge.stop()
        await self._lifespan.stop()

    def _set_trap(self, trap: Any) -> None:
        """In a child that the app has forked: end the process as soon as a call sends, receives or ends."""
        for connection in self.connections:
            # `send` looks at the one, `receive` makes its future by the other.
            connection.writing_paused = connection.loop = trap
        for websocket in list(self.websockets):
            websocket.connection_lost(None)
        # Each response counts itself in `ended`, each call takes itself out of a set.
        self.ended = self.running = self.websockets = trap
        if self._bridge is not None:
            self._bridge.set_trap(trap)

    def protocol(self) -> asyncio.BaseProtocol:
        """A connection."""
        return HttpConnection(self)

    def accepted_protocol(self, first: bytes | None, served: Served) -> asyncio.BaseProtocol:
        """The same, which has read already, and tells when its request has begun."""
        return HttpConnection(self, first, served)

    def _wsgi_server(self, site: AppContext) -> WsgiServer:
        settings = site.settings
        server = WsgiServer(site.app, settings.threads, root_path=settings.root_path, multiprocess=settings.cluster)
        server.rest = self._finish
        return server

    # For connections.

    def begin(self, request: HttpRequest) -> None:
        """Have the app called with a request that has just come."""
        if self.access is not None:
            request.began = time.perf_counter()
        if self._bridge is not None:
            self._begin_wsgi(request)
            return
        self.running.add(request)
        if _EAGER:
            request.task = asyncio.Task(request.run(self._app), loop=self.loop, eager_start=True)  # type: ignore[call-arg]
        else:
            request.task = self.loop.create_task(request.run(self._app))

    def begin_later(self, request: HttpRequest) -> None:
        """The same from within another request, whose context variables it must not see."""
        if self._bridge is not None:
            # Not within the call of the one before.
            self.loop.call_soon(self.begin, request, context=self._context.copy())
            return
        if self.access is not None:
            request.began = time.perf_counter()
        self.running.add(request)
        request.task = self.loop.create_task(request.run(self._app), context=self._context.copy())

    def _begin_wsgi(self, request: HttpRequest) -> None:
        if request.disconnected:
            return
        assert self._bridge is not None
        if self._pool is not None:
            self.running.add(request)
        if self._concerns(request.path) or not self._bridge.begin(request):
            self._finish(request, self._app(request.scope, request.receive, request.send))

    def _finish(
        self, request: HttpRequest, rest: Awaitable[None] | None, context: contextvars.Context | None = None
    ) -> None:
        """Do what is left of a request of a WSGI app; None: nothing is.

        Args:
            context: in which the app was called, if it was called on the loop.
        """
        if rest is None:
            self.running.discard(request)
            return
        self.running.add(request)
        request.task = self.loop.create_task(request.run(lambda *_: rest), context=context)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call back outside of the request that runs now, whose context variables must not be seen."""
        self.loop.call_soon(callback, context=self._context.copy())

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a websocket's app as a task."""
        if _EAGER:
            return asyncio.Task(work, loop=self.loop, eager_start=True)  # type: ignore[call-arg]
        return self.loop.create_task(work)

    def upgrade(self, connection: HttpConnection, scope: dict[str, Any], early: bytes) -> None:
        """Let a websocket take a connection over, or refuse its handshake.

        Args:
            scope: of the request, which asks for an upgrade to `websocket` over HTTP/1.1.
            early: what has come behind its head.
        """
        session = open_session(scope["method"], scope["headers"], self.defaults, MAX_MESSAGE_BYTES)
        if isinstance(session, HandshakeRefusal):
            connection.refuse(session.status, session.text, session.extra)
            return
        transport = connection.transport
        websocket = WebSocketConnection(self._app, scope, session, transport, self)
        connection.state = UPGRADED
        self.connections.discard(connection)
        self.websockets.add(websocket)
        transport.set_protocol(websocket)
        websocket.start(early)

    def websocket_ended(self, websocket: WebSocketConnection) -> None:
        """Its connection is lost, and its app has ended."""
        self.websockets.discard(websocket)

    def must_close(self, connection: HttpConnection) -> bool:
        """Return whether responses on a connection have to end it, now that some have to (`ending`)."""
        return not self._moving or connection.secure

    def trusts(self, connection: HttpConnection) -> bool:
        """Return whether a connection's peer is a proxy that is believed."""
        return self._proxies.trusts(_peer_of(connection))

    def resolve(self, connection: HttpConnection, headers: list[tuple[bytes, bytes]]) -> tuple[Any, str]:
        """Return client and scheme of a request that has come through a trusted proxy."""
        client, scheme = self._proxies.resolve(_peer_of(connection), headers)
        return client, scheme or ("https" if connection.secure else "http")

    def note_refusal(self, connection: HttpConnection, status: int, text: str) -> None:
        """Log that the server itself answers with an error."""
        logger.warning("%s: refused (%d): %s", connection.described(), status, text)

    # What the worker tells and asks.

    def tick(self, now: float) -> None:
        """Set the clock."""
        self.clock = now

    def on_second(self) -> None:
        """Renew the date, and give up clients that take too long."""
        self.defaults.renew(formatdate(time.time(), usegmt=True).encode())
        self.clock = now = time.monotonic()
        self._timeouts.check(list(self.connections), now)
        for connection, seconds in list(self.half_closed.items()):
            self.half_closed[connection] = seconds + 1
            connection.check_half_closed(seconds + 1)
        for websocket in list(self.websockets):
            websocket.poll(now)

    def has_capacity(self) -> bool:
        """An ASGI app runs as many requests as come; a WSGI app as many as it has threads."""
        return self._bridge is None or self._bridge.has_capacity()

    def on_capacity(self, freed: Callable[[], None]) -> None:
        """Pass it on to those who know."""
        if self._bridge is not None:
            self._bridge.on_capacity(freed)

    def longest_hold(self, now: float, above: float) -> ThreadHold | None:
        """The threads' own account."""
        return None if self._pool is None else self._pool.longest_hold(now, above)

    def stats(self) -> EngineStats:
        """Counts that are kept anyway."""
        timeouts = self._timeouts
        return EngineStats(
            self.outcomes.total(),
            len(self.connections) + len(self.websockets),
            len(self.running) + len(self.websockets),
            timeouts.given_up,
            timeouts.stalled,
            self.outcomes,
            0 if self._bridge is None else self._bridge.failures(),
        )

    def oldest_request(self, now: float) -> float | None:
        """Seen by looking at the requests; nothing is noted on the way of one."""
        under_way = [request for request in self.running if request.phase != COMPLETE and not request.disconnected]
        self._begun = seen = {request: self._begun.get(request, now) for request in under_way}
        # A thread may still be at a request whose client has left.
        since = [*seen.values(), *([] if self._pool is None else self._pool.under_way())]
        return min(since, default=None)

    def describe_frame(self, frame: FrameType) -> str | None:
        """Seen by the frames that call apps: of requests, websockets, and WSGI apps."""
        code = frame.f_code
        if code in _CALLS:
            return str(frame.f_locals["self"].named())
        return None if self._bridge is None else self._bridge.serving(frame)

    def movable(self) -> list[HttpConnection]:
        """All connections; whether one may move is asked of it."""
        return list(self.connections)

    def report_freed(self, freed: Callable[[Movable], None] | None) -> None:
        """Have this called behind each response; None: no more."""
        self.freed = freed

    def close_some(self, count: int, *, fixed: bool) -> int:
        """Responses that haven't begun yet announce the end of their connection."""
        shed = 0
        for connection in self.connections:
            if shed >= count:
                break
            if not fixed or connection.secure:
                shed += connection.end_politely()
        return shed

    def drain(self, *, moving: bool) -> None:
        """Requests under way, and those that come from now on, end their connections, unless these can move instead."""
        self.ending = True
        self._moving = moving and self._keep_alive
        self._drained_at = min(self._drained_at, time.monotonic())
        for connection in list(self.connections):
            if self.must_close(connection):
                alone(connection.end_politely, connection.transport, "drain")

    def close_idle(self, grace: float) -> None:
        """Close connections that were idle, and websockets that were open (1012), for `grace` seconds of the drain."""
        now = time.monotonic()
        if now - self._drained_at >= grace:
            self._cancel_senders()
        known, self._idle_since = self._idle_since, {}
        for connection in list(self.connections):
            if connection.idle():
                since = self._idle_since[connection] = known.get(connection, now)
                if now - since >= grace:
                    alone(connection.close_idle, connection.transport, "closing")
            elif connection.state == LINGERING and now - self._drained_at >= grace:
                alone(connection.close_idle, connection.transport, "closing")
        for websocket in list(self.websockets):
            since = self._idle_since[websocket] = known.get(websocket, now)
            if now - since >= grace:
                alone(websocket.close_for_retire, websocket.transport, "closing")

    def _cancel_senders(self) -> None:
        """Cancel requests that have gone on sending to a client that has gone, since this was called first."""
        known, self._sent_to_gone = self._sent_to_gone, {}
        for request in list(self.running):
            if not request.disconnected or request.task is None:
                continue
            before = self._sent_to_gone[request] = known.get(request, request.unfinished)
            if request.unfinished > before + MESSAGES_BEFORE_CANCEL:
                self._sent_to_gone[request] = sys.maxsize  # once
                logger.warning("%s still sends, and its client has gone: it is cancelled", request.named())
                request.task.cancel()

    def idle(self) -> bool:
        """Whether no connection is open, no request's app is running, and no thread is at work."""
        return not (self.connections or self.websockets or self.running or (self._pool and self._pool.busy))

    async def abort(self, grace_s: float) -> list[str]:
        """Reset all connections; the tasks of requests are cancelled, and nobody is answered any more."""
        paths = []
        for connection in list(self.connections):
            request = connection.request
            if request is not None and request.phase != COMPLETE and connection.state < LINGERING:
                paths.append(readable(request.raw_path))
                request.disconnect()
            alone(lambda connection=connection: reset(connection.transport), connection.transport, "cut")  # type: ignore[misc]
        tasks = [request.task for request in self.running]
        for websocket in list(self.websockets):
            paths.append(readable(websocket.scope["raw_path"]))
            websocket.abort()
            tasks.append(websocket.task)
        deadline = time.monotonic() + grace_s
        if self._pool is not None:
            self._pool.drop_waiting()
        await cancel([task for task in tasks if task is not None], grace_s)
        # Threads notice at their next part that nobody wants the rest, and call the app's close().
        while self._pool is not None and self._pool.busy and time.monotonic() < deadline:
            await asyncio.sleep(_THREADS_POLL_INTERVAL_S)
        return paths


_CALLS = frozenset({HttpRequest.run.__code__, WebSocketConnection.run.__code__})
"""Methods that call ASGI apps."""


def _nothing(path: str) -> bool:
    """Nothing concerns a layer that says nothing of it, for there is none."""
    return False


def _peer_of(connection: HttpConnection) -> tuple[str, int] | None:
    if connection.client is not None:
        return connection.client
    sock = connection.transport.get_extra_info("socket")
    return UNIX_PEER if sock is not None and sock.family == socket.AF_UNIX else None
