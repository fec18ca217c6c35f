"""The engine `http`: serve ASGI and WSGI apps over HTTP/1.1 and websockets, on connections of our own (`connection`).

The engine has the state that its connections share: the app, the date, the counts, and the orders of the worker. Figures that
the worker asks for now and then (stats, timeouts, ages) are derived from the connections, so that a request pays nothing for
them.
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
"""Capabilities for both interfaces."""
_THREADS_POLL_INTERVAL_S = 0.01
"""Seconds between two checks whether threads have finished the requests that were cut off."""
_EAGER = sys.version_info >= (3, 12)
"""Tasks can be started without a turn of the loop (`eager_start`)."""

logger = logging.getLogger("cluster2.http")


class HttpEngine:
    """The engine that serves ASGI and WSGI apps.

    Attributes:
        loop: the worker's event loop.
        clock: the monotonic time of the worker's last tick: coarse, and free to read.
        defaults: the beginnings of responses.
        state: the dictionary that the app's lifespan has filled for requests.
        root_path, raw_root_path: the prefix of each path, decoded and raw.
        reads_first: see `ProtocolEngine`.
        connections: the open connections.
        half_closed: those among them whose client has ended its side while its request was served, with the seconds since then.
        running: the requests whose app runs.
        outcomes: how requests have ended.
        ended: the number of requests that have ended, by status (`outcomes.Outcomes.by_status`).
        freed: called with each connection that becomes idle; None: the worker doesn't need it.
        ending: some responses have to end their connections; see `must_close`.
        access: the access log; None: requests aren't logged.
        serves_websockets: the app can be called with a websocket.
        websockets: the connections that have become websockets, until app and transport have ended.
    """

    name: ClassVar[str] = "http"
    capabilities: ClassVar[Mapping[Interface, frozenset[Capability]]] = {
        Interface.ASGI: _HTTP | {Capability.LIFESPAN, Capability.WEBSOCKETS},
        Interface.WSGI: _HTTP | {Capability.THREADS},
    }

    loop: asyncio.AbstractEventLoop

    def __init__(self, context: AppContext) -> None:
        """Prepare to serve an app. Nothing runs yet."""
        settings = context.settings
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
        self.access = context.access
        self.reads_first = context.tls is None
        self._moving = False
        self._keep_alive = settings.keep_alive
        self._timeouts = ClientTimeouts(settings.timeout)
        self._proxies = TrustedProxies(parse_proxies(settings.forwarded_allow_ips))
        self._bridge = self._wsgi_server(context) if context.interface is Interface.WSGI else None
        self._pool = None if self._bridge is None else self._bridge.pool
        self._app = context.instrument(self._bridge or context.app, Interface.ASGI)
        # Only the worker's layer has it. Without a layer no path needs one.
        self._concerns: Callable[[str], bool] = getattr(self._app, "concerns", _concerns_nothing)
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
        """Import the modules that are imported late, so that workers share them."""
        import httptools  # noqa: F401
        import websockets.server  # noqa: F401

    @staticmethod
    def peer(scope: Any, receive: Any) -> str | None:
        """Return the peer of the request's connection. `scope["client"]` comes from a header if the proxy is trusted."""
        connection: HttpConnection = receive.__self__.connection
        if connection.client is not None:
            return str(connection.client[0])
        sock = connection.transport.get_extra_info("socket")
        return "" if sock is not None and sock.family == socket.AF_UNIX else None

    async def start(self) -> None:
        """Run the app's lifespan to the end of its startup, and start its threads. Raises AppError."""
        self.loop = asyncio.get_running_loop()
        await self._lifespan.start()
        self._context = contextvars.copy_context()
        if self._bridge is not None:
            self._bridge.context = self._context
            self._bridge.start()
        end_returning_children(self.describe_frame, self._set_trap)
        self.on_second()

    async def stop(self) -> None:
        """Run the app's lifespan to its end. Stuck threads aren't waited for: the process ends without them.

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
        """Return a new connection."""
        return HttpConnection(self)

    def accepted_protocol(self, first: bytes | None, served: Served) -> asyncio.BaseProtocol:
        """Return a new connection whose first bytes were read, and which calls `served` when its request has begun."""
        return HttpConnection(self, first, served)

    def _wsgi_server(self, context: AppContext) -> WsgiServer:
        settings = context.settings
        server = WsgiServer(context.app, settings.threads, root_path=settings.root_path, multiprocess=settings.cluster)
        server.rest = self._finish
        return server

    # For connections.

    def begin(self, request: HttpRequest) -> None:
        """Call the app with a request that has just come."""
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
        """Call the app with a request from within the one before, whose context variables it must not see."""
        if self._bridge is not None:
            # Later, since an inline app would be called within the call for the request before.
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
        if self._pool is not None:  # an inline call is over when this returns, unless `_finish` adds it
            self.running.add(request)
        if self._concerns(request.path) or not self._bridge.begin(request):
            self._finish(request, self._app(request.scope, request.receive, request.send))

    def _finish(
        self, request: HttpRequest, rest: Awaitable[None] | None, context: contextvars.Context | None = None
    ) -> None:
        """Do the rest of the work for a request of a WSGI app.

        Args:
            request: the request.
            rest: the work; None: the request is finished.
            context: the context in which the app was called, if it was called on the loop.
        """
        if rest is None:
            self.running.discard(request)
            return
        self.running.add(request)
        request.task = self.loop.create_task(request.run(lambda *_: rest), context=context)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Schedule a callback outside of the current request, whose context variables it must not see."""
        self.loop.call_soon(callback, context=self._context.copy())

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a websocket's app as a task."""
        if _EAGER:
            return asyncio.Task(work, loop=self.loop, eager_start=True)  # type: ignore[call-arg]
        return self.loop.create_task(work)

    def upgrade(self, connection: HttpConnection, scope: dict[str, Any], early: bytes) -> None:
        """Let a websocket take a connection over, or refuse the handshake.

        Args:
            connection: the connection.
            scope: the scope of the request, which asks for an upgrade to `websocket` over HTTP/1.1.
            early: the bytes that have come behind the request's head.
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
        """Forget a websocket whose connection is lost and whose app has ended."""
        self.websockets.discard(websocket)

    def must_close(self, connection: HttpConnection) -> bool:
        """Return whether responses on this connection have to end it. Called only if `ending`."""
        return not self._moving or connection.secure

    def trusts(self, connection: HttpConnection) -> bool:
        """Return whether a connection's peer is a trusted proxy."""
        return self._proxies.trusts(_peer_of(connection))

    def resolve(self, connection: HttpConnection, headers: list[tuple[bytes, bytes]]) -> tuple[Any, str]:
        """Return client and scheme of a request that has come through a trusted proxy."""
        client, scheme = self._proxies.resolve(_peer_of(connection), headers)
        return client, scheme or ("https" if connection.secure else "http")

    def note_refusal(self, connection: HttpConnection, status: int, text: str) -> None:
        """Log that the server itself responds with an error."""
        logger.warning("%s: refused (%d): %s", connection.described(), status, text)

    # For the worker; see `engines.base`.

    def tick(self, now: float) -> None:
        """Set the clock."""
        self.clock = now

    def on_second(self) -> None:
        """Renew the date, apply the timeouts, and check half-closed clients and websockets."""
        self.defaults.renew(formatdate(time.time(), usegmt=True).encode())
        self.clock = now = time.monotonic()
        self._timeouts.check(list(self.connections), now)
        for connection, seconds in list(self.half_closed.items()):
            self.half_closed[connection] = seconds + 1
            connection.check_half_closed(seconds + 1)
        for websocket in list(self.websockets):
            websocket.poll(now)

    def has_capacity(self) -> bool:
        """Return whether a request could begin. An ASGI app runs any number of requests, a WSGI app one for each thread."""
        return self._bridge is None or self._bridge.has_capacity()

    def on_capacity(self, freed: Callable[[], None]) -> None:
        """Pass the callback on to the bridge, which knows its threads."""
        if self._bridge is not None:
            self._bridge.on_capacity(freed)

    def longest_hold(self, now: float, above: float) -> ThreadHold | None:
        """Return the times of the pool's threads."""
        return None if self._pool is None else self._pool.longest_hold(now, above)

    def stats(self) -> EngineStats:
        """Return the counts, which are kept anyway."""
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
        """Return since when the oldest request has been seen. It is derived from the requests, which note no time themselves."""
        under_way = [request for request in self.running if request.phase != COMPLETE and not request.disconnected]
        self._begun = seen = {request: self._begun.get(request, now) for request in under_way}
        # A thread may still work on a request whose client has left.
        since = [*seen.values(), *([] if self._pool is None else self._pool.under_way())]
        return min(since, default=None)

    def describe_frame(self, frame: FrameType) -> str | None:
        """Describe the request or websocket whose app is called in this frame; see `Engine`."""
        code = frame.f_code
        if code in _CALLS:
            return str(frame.f_locals["self"].named())
        return None if self._bridge is None else self._bridge.serving(frame)

    def movable(self) -> list[HttpConnection]:
        """Return all connections. The caller asks each one whether it may move now."""
        return list(self.connections)

    def report_freed(self, freed: Callable[[Movable], None] | None) -> None:
        """Call this after each response; None: stop it."""
        self.freed = freed

    def close_some(self, count: int, *, fixed: bool) -> int:
        """Announce the end of connections in responses that haven't begun. Return how many there are."""
        closing = 0
        for connection in self.connections:
            if closing >= count:
                break
            if not fixed or connection.secure:
                closing += connection.end_politely()
        return closing

    def drain(self, *, moving: bool) -> None:
        """End each connection with the request that is under way, or the next one, unless the connection can move."""
        self.ending = True
        self._moving = moving and self._keep_alive
        self._drained_at = min(self._drained_at, time.monotonic())
        for connection in list(self.connections):
            if self.must_close(connection):
                alone(connection.end_politely, connection.transport, "drain")

    def close_idle(self, grace: float) -> None:
        """Close connections that were idle for `grace` seconds of the drain, and websockets that were open for as long (1012)."""
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
        """Cancel requests that have continued to send to a client that has gone, since the first call of this."""
        known, self._sent_to_gone = self._sent_to_gone, {}
        for request in list(self.running):
            if not request.disconnected or request.task is None:
                continue
            before = self._sent_to_gone[request] = known.get(request, request.unfinished)
            if request.unfinished > before + MESSAGES_BEFORE_CANCEL:
                self._sent_to_gone[request] = sys.maxsize  # so that it is cancelled only once
                logger.warning("%s still sends although its client has gone; it is cancelled", request.named())
                request.task.cancel()

    def idle(self) -> bool:
        """Return whether no connection is open, no request's app is running, and no thread is at work."""
        return not (self.connections or self.websockets or self.running or (self._pool and self._pool.busy))

    async def abort(self, grace_s: float) -> list[str]:
        """Reset all connections, and cancel the tasks of requests. No request gets a response any more."""
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
        # A thread notices at its next part that the client has gone, and calls the app's close().
        while self._pool is not None and self._pool.busy and time.monotonic() < deadline:
            await asyncio.sleep(_THREADS_POLL_INTERVAL_S)
        return paths


_CALLS = frozenset({HttpRequest.run.__code__, WebSocketConnection.run.__code__})
"""The code of the methods that call ASGI apps."""


def _concerns_nothing(path: str) -> bool:
    return False


def _peer_of(connection: HttpConnection) -> tuple[str, int] | None:
    if connection.client is not None:
        return connection.client
    sock = connection.transport.get_extra_info("socket")
    return UNIX_PEER if sock is not None and sock.family == socket.AF_UNIX else None
