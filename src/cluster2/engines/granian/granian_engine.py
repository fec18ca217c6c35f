"""The engine for RSGI, and by choice for ASGI and WSGI: granian, whose HTTP is Rust's hyper.

granian has its own accept loop. Threads in Rust take connections from a socket and parse requests, and the worker's loop (for
WSGI, threads of a pool) runs the app. granian takes every connection at once, so the accept queue is not work-conserving, and a
connection stays with its worker. The steered group (`linux.steered_group`) makes a rolling reload lose nothing all the same. Part by
part:

*Heartbeats* come from the loop. An ASGI or RSGI handler that blocks the loop makes the heartbeat late, as with uvicorn. WSGI
handlers run in threads, so there the heartbeat shows only that the process lives and that the GIL changes hands. Hung WSGI
requests are found by their age.

*Counts.* Requests are counted where each passes through Python in any case. Connections are counted from the worker's own
descriptors (`linux.established_connections`), at each tick, or less often where that takes long. The number of *accepted*
connections is not known, so `conn_threshold` is refused.

*Draining.* granian goes on accepting, since handshakes under way belong to its socket. A response over HTTP/1.1 says
`Connection: close`, so nearly all connections end with a response. When `drain_idle` is over, the engine closes the other
connections, after the requests under way. Websockets are cut then, because granian offers no way to send the close code 1012.

*Websockets whose clients don't read.* granian drops its runtime as soon as the last HTTP connection has ended, with everything
that still waits in it. A `send` to a websocket whose client doesn't read then panics in Rust ("Cannot drop pointer into Python
heap") or hangs with the GIL held. Either loses all that the worker has, and the app's shutdown. So the engine resets such
connections, and waits for their sends to end, before it stops granian (`_reset_websockets`).

*The runtime.* granian would drop a runtime of several threads right after its callback, from a thread that holds the GIL and
waits for the other threads. One of those may need the GIL at that time: it delivers the result of a `send` or `receive` whose
connection, the last one, has just ended. That hung the worker until it was killed (3 of 10 drains in which the client of several
HTTP/2 streams left last). So the callback never returns. The process ends soon, and the runtime with it, and until then the
runtime completes its work.

*HTTP/2* ends as RFC 9113 (6.8) suggests. hyper sends GOAWAY without a stream number, together with a PING. When the client has
answered the PING, hyper sends GOAWAY with the last stream, and closes the connection when no stream is open. A client that reads
only while it waits for a response (Python's httpx) doesn't answer the PING, and hyper would wait for it without a limit. So
the engine closes a connection whose client has received all that was sent, and neither sends nor receives anything for
STOP_GRACE_S (`end_silent`). It does so only when no request has been under way for the same time. Before that, the engine can't
see which connection a request belongs to, and a request counts as ended when its coroutine has ended, while hyper writes the
response only afterwards.

*Idle and silent connections* are found by the kernel's counters (`idle_clients`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import FrameType
from typing import Any, ClassVar

from ...config.settings import Settings
from ...errors import ConfigError
from ...linux.established_connections import (
    descriptors,
    end_silent,
    established,
    progress,
    progress_since,
    reset_blocked,
    reset_established,
    with_progress,
)
from ...linux.lingering_close import Lingering
from ...linux.listeners import queue_length
from ..aborting import cancel, readable
from ..base import AppContext, Capability, EngineStats, Interface, Movable
from ..forked_child import end_returning_children
from ..lifespan import Lifespan
from .idle_clients import Clients, head_timeout_ms
from .in_flight import InFlight, client_of, closing, granian_callback, rsgi_callable
from .internals import check, module
from .rsgi_hooks import RsgiHooks
from .streams import Senders, Transport
from .wsgi_conformance import conforming

_logger = logging.getLogger("cluster2.worker")

_ANY = frozenset(
    {
        Capability.TLS,
        Capability.IDLE_TIMEOUT,
        Capability.ACCESS_LOG,
        Capability.REQUEST_AGE,
        Capability.KEEP_ALIVE,
        Capability.HTTP2,
    }
)
"""The capabilities that the engine has for apps of every interface."""

_COUNTING_TIME_SHARE = 100
"""Counting connections may take at most one part in this many of the time."""
STOP_GRACE_S = 1.0
"""Seconds that granian may take to stop once nothing is under way, or once the time for that is over. Also the seconds that a
client may take to answer its PING."""
_WEBSOCKET_RESET_S = 0.5
"""Seconds that a drain may wait until the sends of websockets that were reset have ended."""
_THREADS_POLL_INTERVAL_S = 0.005
"""Seconds between two checks whether threads have ended their requests, which were cut off."""
_MIN_TLS_VERSION = "tls1.2"
"""The oldest version of TLS that the engine accepts, as with uvicorn."""
_POOL_IDLE_TIMEOUT_S = 30
"""Seconds after which an idle thread of the pool ends (granian's own default)."""
_MAX_RUST_BLOCKING_THREADS = 512
"""Maximum number of threads for blocking work in Rust (granian's own default). granian starts them when it needs them."""


class GranianEngine:
    """An engine for RSGI, ASGI and WSGI apps."""

    name: ClassVar[str] = "granian"
    capabilities: ClassVar[Mapping[Interface, frozenset[Capability]]] = {
        Interface.RSGI: _ANY | {Capability.WEBSOCKETS, Capability.ECV},
        Interface.ASGI: _ANY | {Capability.WEBSOCKETS, Capability.ECV, Capability.LIFESPAN},
        Interface.WSGI: _ANY | {Capability.ECV, Capability.THREADS},
    }

    def __init__(self, site: AppContext) -> None:
        # The worker's layer calls its app as a function, so an RSGI object is reduced to one first.
        call = rsgi_callable(site.app) if site.interface is Interface.RSGI else site.app
        self._site = site = replace(site, app=site.instrument(call, site.interface))
        self._loop = asyncio.get_running_loop()
        self._in_flight = InFlight(site.gauge, remember=bool(site.settings.request_timeout))
        self._senders = Senders(client_of, self._in_flight.response_counts.accept)
        self._first_seen: dict[object, float] = {}
        mode = site.settings.lifespan if site.interface is Interface.ASGI else "off"
        self._state: dict[str, Any] = {}  # the lifespan's state, of which each request gets a copy
        self._lifespan = Lifespan(site.app, self._state, mode)
        self._hooks = RsgiHooks(site.app, self._loop) if site.interface is Interface.RSGI else None
        self._listeners: list[socket.socket] = []
        self._running: list[tuple[Any, asyncio.Future[None]]] = []
        self._worker_ids = itertools.count(1)
        self._connections = 0
        self._count_at = 0.0
        self._drained_at: float | None = None
        self._stopping = False
        self._progress_at_check: list[tuple[socket.socket, dict[int, tuple[int, int]]]] = []
        self._silent_check_at = 0.0
        self._ended_at_check = -1
        self._websockets_until: float | None = None
        self._lingering = Lingering()
        self._clients = Clients(site.settings, self._in_flight, self._listeners)

    @staticmethod
    def preload(settings: Settings) -> None:
        """Check granian's version and parts, import it, and check that it can read the TLS key.

        Raises:
            ConfigError: one of them is missing or does not fit.
        """
        check()
        _check_key(settings)

    @staticmethod
    def peer(scope: Any, receive: Any) -> str | None:
        """Return the host in the scope, which is the socket's peer: granian takes nothing from proxy headers."""
        if isinstance(scope, Mapping):
            if "REMOTE_ADDR" in scope:  # WSGI
                return str(scope["REMOTE_ADDR"]) or None
            client = scope.get("client")
            return str(client[0]) if client else None
        return _host(scope.client)

    async def start(self) -> None:
        """Run the lifespan's startup, or RSGI's hook."""
        await self._lifespan.start()
        if self._hooks is not None:
            await self._hooks.init()
        end_returning_children(self.describe_frame, self._in_flight.set_trap)

    def listen(self, listener: socket.socket) -> None:
        """Serve on a duplicate of this socket."""
        inside = module("_granian")
        unix = listener.family == socket.AF_UNIX
        # granian closes the descriptor of its holder at its end, and the worker's own socket has to stay open.
        holder = inside.SocketHolder(os.dup(listener.fileno()), unix, self._site.settings.backlog)
        worker = self._worker(inside, holder, unix)
        finished: asyncio.Future[None] = self._loop.create_future()
        signal = inside.WorkerSignal()
        # The same choice as granian's own: one thread in Rust for RSGI over HTTP/1.1, otherwise a runtime of several.
        single = self._site.interface is Interface.RSGI and not self._site.settings.http2

        def over() -> None:  # granian calls this in one of its threads
            self._loop.call_soon_threadsafe(finished.set_result, None)
            if not single:
                threading.Event().wait()  # without an end: see "The runtime" above

        signal.add_cb(over)
        scheduler = module("_futures")._new_cbscheduler(self._loop, self._callback(unix), impl_asyncio=True)
        serve = f"serve_{'str' if single else 'mtr'}{'_uds' if unix else ''}"
        getattr(worker, serve)(scheduler, self._loop, signal)
        self._listeners.append(listener)
        self._running.append((signal, finished))

    def tick(self, now: float) -> None:
        """Count connections, if that is due."""
        self._count_connections(now)

    def on_second(self) -> None:
        """Close connections whose clients were silent for too long, if a check of them is due."""
        self._clients.on_second(time.monotonic())

    def stats(self) -> EngineStats:
        """Return the counts: exact for requests, as of the last poll for connections."""
        begun, ended = self._in_flight.counts()
        given_up, stalled = self._clients.timeouts.given_up, self._clients.timeouts.stalled
        outcomes = self._in_flight.outcomes()
        return EngineStats(outcomes.total(), self._connections, begun - ended, given_up, stalled, outcomes)

    def oldest_request(self, now: float) -> float | None:
        """Return when the oldest request was first seen by a call of this method."""
        seen = {request: self._first_seen.get(request, now) for request in self._in_flight.requests()}
        self._first_seen = seen
        return min(seen.values(), default=None)

    def describe_frame(self, frame: FrameType) -> str | None:
        """Return method and path of the request, if the app was called in this frame."""
        found = self._in_flight.describe_frame(frame)
        return None if found is None else _readable(found)

    def movable(self) -> Iterable[Movable]:
        """Return nothing: the connections belong to Rust and can't move."""
        return ()

    def report_freed(self, freed: Callable[[Movable], None] | None) -> None:
        """Do nothing: no connection could be parked."""

    def close_some(self, count: int, *, fixed: bool) -> int:
        """Let the next responses end their connections. Their clients reconnect, and are steered to workers with fewer."""
        return self._in_flight.end_next(count)

    def drain(self, *, moving: bool) -> None:
        """Let each response from now on end its connection."""
        if self._drained_at is None:
            self._drained_at = time.monotonic()
            self._in_flight.end_all()
            self._senders.drain()
            # At rest the last count may be old, and the caller asks next whether the engine is idle.
            self._count_at = 0.0
            self._count_connections(self._drained_at)

    def close_idle(self, grace: float) -> None:
        """When the grace is over, stop accepting, close idle connections, and finish requests under way."""
        now = time.monotonic()
        self._count_connections(now)
        if self._drained_at is not None and now - self._drained_at >= grace:
            self._cancel_senders(now)
            if self._reset_websockets(now):
                self._stop_granian()
            if self._stopping:
                self._end_silent(now)
                self._lingering.check(now)

    def idle(self) -> bool:
        """Return whether no request is under way, and no connection is open or in the accept queue, as far as the kernel shows."""
        begun, ended = self._in_flight.counts()
        if begun != ended:  # the cheap check first
            return False
        if self._stopping:
            return all(finished.done() for _, finished in self._running) and not self._lingering
        # A connection in the accept queue is open to its client, and may bring a request.
        return not self._connections and not any(map(_has_waiting, self._listeners))

    async def abort(self, grace_s: float) -> list[str]:
        """Reset all connections without granian's help, then cancel the tasks of requests, and wait for threads.

        The order matters: the response of a task that is cancelled first would end as if it were whole. A thread can't be
        cancelled. When it sends its next part, granian finds the connection broken and calls the body's `close()`, as PEP 3333
        demands.
        """
        deadline = time.monotonic() + grace_s
        paths = [_readable(path) for path in self._in_flight.paths()]
        self._in_flight.refuse()
        for listener in self._listeners:
            reset_established(listener)
        await cancel(self._in_flight.all_tasks(), grace_s)
        while self._in_flight.in_threads() and time.monotonic() < deadline:
            await asyncio.sleep(_THREADS_POLL_INTERVAL_S)
        self._lingering.close()
        return paths

    async def stop(self) -> None:
        """Stop granian, then the app."""
        self._stop_granian()
        if self._running:
            await asyncio.wait([finished for _, finished in self._running], timeout=STOP_GRACE_S)
        try:
            await self._lifespan.stop()
            if self._hooks is not None:
                await self._hooks.close()
        finally:
            self._lingering.close()

    def _stop_granian(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._progress_at_check = [(listener, progress(listener)) for listener in self._listeners]
            self._silent_check_at = time.monotonic() + STOP_GRACE_S
            if self._site.settings.http2:
                # A client of HTTP/2 sends window updates up to its last byte. A close(2) that finds one unread is a reset, which
                # loses what the client has not read yet. So duplicates of the descriptors stay open for a lingering close.
                for listener in self._listeners:
                    self._lingering.hold(descriptors(listener))
            for signal, _ in self._running:
                signal.set()  # granian stops accepting, and ends each connection when its requests have ended

    def _reset_websockets(self, now: float) -> bool:
        """Reset the websockets whose clients don't read. Return whether no `send` waits any more, or has waited too long."""
        websockets = self._in_flight.websockets()
        blocked = sum(reset_blocked(listener, set(websockets.values())) for listener in self._listeners)
        if self._websockets_until is None:  # the first call
            self._websockets_until = now + _WEBSOCKET_RESET_S
            for task, (host, _) in websockets.items():
                if not host:  # on a Unix socket the connection can't be found, only its task
                    task.cancel()
                    blocked += 1
        return not blocked or now >= self._websockets_until

    def _end_silent(self, now: float) -> None:
        """Close connections whose clients don't answer the PING."""
        begun, ended = self._in_flight.counts()
        # The wait starts anew while requests are under way (-1), and once more when the last one has ended.
        if begun != ended or ended != self._ended_at_check:
            self._ended_at_check = ended if begun == ended else -1
            self._silent_check_at = now + STOP_GRACE_S
            self._progress_at_check = [
                (listener, progress_since(listener, before)) for listener, before in self._progress_at_check
            ]
        elif now >= self._silent_check_at:
            self._silent_check_at = now + STOP_GRACE_S
            self._progress_at_check = [
                (listener, end_silent(listener, before)) for listener, before in self._progress_at_check
            ]

    def _cancel_senders(self, now: float) -> None:
        """Cancel requests that go on sending although their client has gone."""
        if gone := self._senders.going_on(now, self._peers):
            for path in self._in_flight.cancel(gone):
                _logger.warning("%s still sends although its client has gone; it is cancelled", _readable(path))

    def _peers(self) -> set[tuple[str, int | None]]:
        return {(each.host, each.port) for listener in self._listeners for each in with_progress(listener)}

    def _count_connections(self, now: float) -> None:
        if now >= self._count_at:
            self._connections = sum(map(established, self._listeners))
            took = time.monotonic() - now  # grows with the number of descriptors
            self._count_at = now + _COUNTING_TIME_SHARE * took

    def _callback(self, unix: bool) -> Callable[..., Any]:
        """Return what granian calls with each request."""
        app, state = self._site.app, self._state
        if self._site.interface is Interface.ASGI:
            app = self._senders.paced(app, listens=unix or self._site.settings.http2)
        if self._site.interface is Interface.RSGI:  # in the classes of granian, since its objects are written in Rust
            self._in_flight.response_counts.watch_rsgi(Transport)
        if self._site.interface is Interface.WSGI:
            app = self._in_flight.thread_response_counts.bodies(conforming(app))
        # Both exist from the start, so that a drain only switches from one to the other.
        inner = granian_callback(self._site, app, state)
        last = granian_callback(self._site, closing(app, self._site.interface), state)
        if self._site.interface is Interface.WSGI:
            return self._in_flight.threads(inner, last, max(1, self._site.settings.threads))
        answers = self._in_flight.response_counts
        asgi = self._site.interface is Interface.ASGI
        return self._in_flight.tasks(inner, last, answers.ended_asgi if asgi else answers.ended_rsgi)

    def _worker(self, inside: Any, holder: Any, unix: bool) -> Any:
        settings, interface = self._site.settings, self._site.interface
        http = module("http")
        head_timeout = head_timeout_ms(settings.timeout, seen=not unix)
        wsgi = interface is Interface.WSGI
        return getattr(inside, f"{interface.upper()}Worker")(
            next(self._worker_ids),
            (None, holder),  # a socket that granian itself opened, or a holder
            None,  # granian's channel to its own supervisor
            1,  # threads of the runtime
            _MAX_RUST_BLOCKING_THREADS,
            max(1, settings.threads) if wsgi else 1,  # threads for Python
            _POOL_IDLE_TIMEOUT_S,
            _max_connections(),  # granian calls it backpressure: it accepts no more connections than this
            "auto" if settings.http2 else "1",
            http.HTTP1Settings(header_read_timeout=head_timeout, keep_alive=settings.keep_alive),
            http.HTTP2Settings(),
            *(() if wsgi else (True,)),  # websockets, which a WSGI worker has no parameter for
            None,  # static files
            *_tls(self._site),
            (None, None),  # metrics
        )


def _readable(path: str) -> str:
    """Return a path as the app sees it, in a form fit for a log (`aborting.readable`)."""
    # A path may have lone surrogates, which a strict encoder refuses.
    return readable(path.encode("utf-8", "surrogatepass"))


def _host(client: str) -> str | None:
    """Return the host of `host:port`, without the brackets of an IPv6 address."""
    return client.rpartition(":")[0].strip("[]") or None


def _has_waiting(listener: socket.socket) -> bool:
    # tcp_info counts the queue of a TCP listener. On a Unix socket (`cluster = false`) nothing shows it.
    return listener.family != socket.AF_UNIX and queue_length(listener) > 0


def _max_connections() -> int:
    """Return the limit of descriptors. granian's own, lower bound would leave keep-alive clients in the accept queue."""
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _check_key(settings: Settings) -> None:
    """Refuse an encrypted key: granian panics on it in each worker, whatever tool made the key. It reads every plain key."""
    if settings.ssl_keyfile_password is not None:
        path = settings.ssl_keyfile or settings.ssl_certfile
        raise ConfigError(
            f"ssl_keyfile_password: engine 'granian' can't decrypt keys; give it a plain one: openssl pkey -in {path}"
        )


def _tls(site: AppContext) -> tuple[Any, ...]:
    """Return granian's arguments for TLS. It reads the files itself in each new worker, so it gets copies (`linux.file_snapshots`)."""
    settings = site.settings
    if settings.ssl_certfile is None:
        return (False, None, None, None, _MIN_TLS_VERSION, None, [], False)
    certificate, key = settings.ssl_certfile, settings.ssl_keyfile or settings.ssl_certfile
    authorities = settings.ssl_ca_certs
    return (True, certificate, key, None, _MIN_TLS_VERSION, authorities, [], authorities is not None)
