"""The engine for RSGI, and by choice for ASGI and WSGI: granian, whose HTTP is Rust's hyper.

granian owns its accept loop: threads of Rust's take connections from a socket and parse, our loop (for WSGI, threads of a
pool) runs the app. It takes all that comes, at once, so the queue is never work-conserving, and connections stay with their
worker: the steered group (`kernel.steering`) is what makes it roll without a loss. What that means, part by part:

*Heartbeats* are the loop's, so an ASGI or RSGI handler that blocks it looks late, as with uvicorn. WSGI handlers run in
threads, so the loop tells only that the process lives and the GIL changes hands; stuck requests are found by their age.

*Counts.* Requests are counted where each passes through Python anyhow. Connections are counted by looking at our own
descriptors (`kernel.established`), at each tick, less often where that takes long; how many were
*accepted* is not known, so `conn_threshold` is refused.

*Draining.* It goes on accepting, since handshakes under way belong to its socket. A response over HTTP/1.1 says `Connection:
close`: then for nearly all connections the end comes with an answer. When `drain_idle` is over the rest is closed, requests
under way end first. Websockets are cut then: granian gives us no way to say 1012.

*Websockets that don't read.* granian drops its runtime as soon as the last HTTP connection has ended, and what still waits in it:
a `send` of a websocket whose client doesn't read then panics in Rust ("Cannot drop pointer into Python heap"), or hangs with the
GIL held. Either loses all that the worker has, and the app's shutdown. So such connections are reset, and their sends are over,
before granian is told to stop (`_end_websockets`).

*The runtime.* One of several threads would be dropped right after granian has called back, by a thread that holds the GIL and
waits for the others. One of these may want the GIL then: for the result of a `send` or `receive` whose connection, the last one,
has just ended. That hung the worker until it was killed (3 of 10 drains in which the client of several HTTP/2 streams left last).
So the callback never returns: the process ends soon, and the runtime with it. Until then what waits in it comes to its end.

*HTTP/2* ends as RFC 9113 (6.8) suggests: hyper sends GOAWAY for no stream in particular, with a PING; when that is
answered GOAWAY again with the last stream, and it closes when none is open. A client that reads only while it waits
for an answer (Python's httpx) doesn't answer the PING, and hyper would wait for it as long as there is time. So who
has taken all that was sent, and for STOP_GRACE_S neither says nor takes more, is given up (`end_silent`), once no request
has been under way for as long; before, one doesn't see from here whose it is. (As long: a request counts as ended when its
coroutine has, and only then does hyper write the response.)

*Idle and silent connections* are found by the kernel's counts: `granian_clients`.
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
from .idle_clients import Clients, head_patience
from .in_flight import InFlight, by_rsgi, client_of, ending, native
from .internals import check, module
from .rsgi_hooks import RsgiHooks
from .streams import Senders, Transport
from .wsgi_conformance import conforming

logger = logging.getLogger("cluster2.worker")

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
"""What it can do for apps of each interface."""

_COUNTING_TIME_SHARE = 100
"""To count connections may take one in so many parts of the time."""
STOP_GRACE_S = 1.0
"""Seconds that granian may take to stop when nothing is under way any more, or when the time for that is over; and that a
client may take to answer its PING."""
_WEBSOCKET_RESET_S = 0.5
"""Seconds for which a drain may wait until websockets whose clients don't read have noticed that they were reset."""
_THREADS_POLL_INTERVAL_S = 0.005
"""Seconds between two looks whether threads have ended their requests, which were cut off."""
_MIN_TLS_VERSION = "tls1.2"
"""The oldest version of TLS that is spoken, as with uvicorn."""
_POOL_IDLE_TIMEOUT_S = 30
"""Seconds after which a thread of the pool that had nothing to do ends (granian's own default)."""
_MAX_RUST_BLOCKING_THREADS = 512
"""Threads for Rust's own blocking work, at most (granian's own default); they are made when needed."""


class GranianEngine:
    """Serves RSGI, ASGI and WSGI apps."""

    name: ClassVar[str] = "granian"
    capabilities: ClassVar[Mapping[Interface, frozenset[Capability]]] = {
        Interface.RSGI: _ANY | {Capability.WEBSOCKETS, Capability.ECV},
        Interface.ASGI: _ANY | {Capability.WEBSOCKETS, Capability.ECV, Capability.LIFESPAN},
        Interface.WSGI: _ANY | {Capability.ECV, Capability.THREADS},
    }

    def __init__(self, site: AppContext) -> None:
        call = by_rsgi(site.app) if site.interface is Interface.RSGI else site.app
        self._site = site = replace(site, app=site.instrument(call, site.interface))
        self._loop = asyncio.get_running_loop()
        self._under = InFlight(site.gauge, remember=bool(site.settings.request_timeout))
        self._senders = Senders(client_of, self._under.answers.accept)
        self._begun: dict[object, float] = {}
        mode = site.settings.lifespan if site.interface is Interface.ASGI else "off"
        self._state: dict[str, Any] = {}  # what the lifespan has left for requests
        self._lifespan = Lifespan(site.app, self._state, mode)
        self._hooks = RsgiHooks(site.app, self._loop) if site.interface is Interface.RSGI else None
        self._listeners: list[socket.socket] = []
        self._running: list[tuple[Any, asyncio.Future[None]]] = []
        self._numbers = itertools.count(1)
        self._connections = 0
        self._look_at = 0.0
        self._drained_at: float | None = None
        self._told = False
        self._said: list[tuple[socket.socket, dict[int, tuple[int, int]]]] = []
        self._silent_at = 0.0
        self._ended_at_look = -1
        self._websockets_until: float | None = None
        self._lingering = Lingering()
        self._clients = Clients(site.settings, self._under, self._listeners)

    @staticmethod
    def preload(settings: Settings) -> None:
        """Look whether it is a granian that we know, import it, and see that it can read the key. Raises ConfigError."""
        check()
        _check_key(settings)

    @staticmethod
    def peer(scope: Any, receive: Any) -> str | None:
        """granian believes no header: what the scope says is the socket's."""
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
        end_returning_children(self.describe_frame, self._under.set_trap)

    def listen(self, listener: socket.socket) -> None:
        """Serve on this socket."""
        inside = module("_granian")
        unix = listener.family == socket.AF_UNIX
        holder = inside.SocketHolder(os.dup(listener.fileno()), unix, self._site.settings.backlog)
        worker = self._worker(inside, holder, unix)
        finished: asyncio.Future[None] = self._loop.create_future()
        signal = inside.WorkerSignal()
        # As granian chooses: with one thread of Rust's for RSGI over HTTP/1.1, else with a runtime of several.
        single = self._site.interface is Interface.RSGI and not self._site.settings.http2

        def over() -> None:  # in a thread of Rust's
            self._loop.call_soon_threadsafe(finished.set_result, None)
            if not single:
                threading.Event().wait()  # for ever: see "The runtime"

        signal.add_cb(over)
        scheduler = module("_futures")._new_cbscheduler(self._loop, self._called(unix), impl_asyncio=True)
        serve = f"serve_{'str' if single else 'mtr'}{'_uds' if unix else ''}"
        getattr(worker, serve)(scheduler, self._loop, signal)
        self._listeners.append(listener)
        self._running.append((signal, finished))

    def tick(self, now: float) -> None:
        """Count connections, unless that is due later."""
        self._count_connections(now)

    def on_second(self) -> None:
        """Give up clients that were silent for too long, if a look at them is due."""
        self._clients.on_second(time.monotonic())

    def stats(self) -> EngineStats:
        """Requests are exact, connections as of the last look."""
        begun, ended = self._under.counts()
        given_up, stalled = self._clients.patience.given_up, self._clients.patience.stalled
        outcomes = self._under.outcomes()
        return EngineStats(outcomes.total(), self._connections, begun - ended, given_up, stalled, outcomes)

    def oldest_request(self, now: float) -> float | None:
        """Seen by looking at the requests under way."""
        seen = {request: self._begun.get(request, now) for request in self._under.requests()}
        self._begun = seen
        return min(seen.values(), default=None)

    def describe_frame(self, frame: FrameType) -> str | None:
        """Seen by the frames that call the app."""
        found = self._under.serving(frame)
        return None if found is None else _readable(found)

    def movable(self) -> Iterable[Movable]:
        """None: they are Rust's."""
        return ()

    def report_freed(self, freed: Callable[[Movable], None] | None) -> None:
        """There is nothing that could be parked."""

    def close_some(self, count: int, *, fixed: bool) -> int:
        """The next responses end their connections; those come again, and are steered to who has fewer."""
        return self._under.end_next(count)

    def drain(self, *, moving: bool) -> None:
        """Each response from now on ends its connection. At rest the last look may be old: whether it is idle is asked next."""
        if self._drained_at is None:
            self._drained_at = time.monotonic()
            self._under.end_all()
            self._senders.drain()
            self._look_at = 0.0
            self._count_connections(self._drained_at)

    def close_idle(self, grace: float) -> None:
        """When the grace is over stop accepting, close what is idle, and finish what is under way."""
        now = time.monotonic()
        self._count_connections(now)
        if self._drained_at is not None and now - self._drained_at >= grace:
            self._end_senders(now)
            if self._end_websockets(now):
                self._end()
            if self._told:
                self._end_silent(now)
                self._lingering.check(now)

    def idle(self) -> bool:
        """Whether no request is under way, and no connection is open or waiting, as far as one can see."""
        begun, ended = self._under.counts()
        if begun != ended:
            return False
        if self._told:
            return all(finished.done() for _, finished in self._running) and not self._lingering
        return not self._connections and not any(map(_waiting, self._listeners))

    async def abort(self, grace_s: float) -> list[str]:
        """Reset all connections, behind granian's back; then cancel the tasks of requests, and wait for threads.

        In this order: the response of a task that is cancelled would end as if it were whole. A thread can't be cancelled. Its
        next part finds the connection broken, and granian calls the body's `close()` then, as PEP 3333 demands.
        """
        deadline = time.monotonic() + grace_s
        paths = [_readable(path) for path in self._under.paths()]
        self._under.refuse()
        for listener in self._listeners:
            reset_established(listener)
        await cancel(self._under.all_tasks(), grace_s)
        while self._under.in_threads() and time.monotonic() < deadline:
            await asyncio.sleep(_THREADS_POLL_INTERVAL_S)
        self._lingering.close()
        return paths

    async def stop(self) -> None:
        """Stop granian, then the app."""
        self._end()
        if self._running:
            await asyncio.wait([finished for _, finished in self._running], timeout=STOP_GRACE_S)
        try:
            await self._lifespan.stop()
            if self._hooks is not None:
                await self._hooks.close()
        finally:
            self._lingering.close()

    def _end(self) -> None:
        if not self._told:
            self._told = True
            self._said = [(listener, progress(listener)) for listener in self._listeners]
            self._silent_at = time.monotonic() + STOP_GRACE_S
            if self._site.settings.http2:
                for listener in self._listeners:
                    self._lingering.hold(descriptors(listener))
            for signal, _ in self._running:
                signal.set()

    def _end_websockets(self, now: float) -> bool:
        """Reset the websockets whose clients don't read; return whether no `send` waits for one any more, or too long."""
        websockets = self._under.websockets()
        blocked = sum(reset_blocked(listener, set(websockets.values())) for listener in self._listeners)
        if self._websockets_until is None:
            self._websockets_until = now + _WEBSOCKET_RESET_S
            for task, (host, _) in websockets.items():
                if not host:  # a Unix socket: the connection can't be found, but its task
                    task.cancel()
                    blocked += 1
        return not blocked or now >= self._websockets_until

    def _end_silent(self, now: float) -> None:
        """End connections whose clients don't answer the PING."""
        begun, ended = self._under.counts()
        if begun != ended or ended != self._ended_at_look:
            self._ended_at_look = ended if begun == ended else -1
            self._silent_at = now + STOP_GRACE_S
            self._said = [(listener, progress_since(listener, before)) for listener, before in self._said]
        elif now >= self._silent_at:
            self._silent_at = now + STOP_GRACE_S
            self._said = [(listener, end_silent(listener, before)) for listener, before in self._said]

    def _end_senders(self, now: float) -> None:
        """Cancel requests that go on sending to a client that has gone."""
        if gone := self._senders.going_on(now, self._peers):
            for path in self._under.cancel(gone):
                logger.warning("%s still sends, and its client has gone: it is cancelled", _readable(path))

    def _peers(self) -> set[tuple[str, int | None]]:
        return {(each.host, each.port) for listener in self._listeners for each in with_progress(listener)}

    def _count_connections(self, now: float) -> None:
        if now >= self._look_at:
            self._connections = sum(map(established, self._listeners))
            took = time.monotonic() - now
            self._look_at = now + _COUNTING_TIME_SHARE * took

    def _called(self, unix: bool) -> Callable[..., Any]:
        """What granian calls with each request."""
        app, state = self._site.app, self._state
        if self._site.interface is Interface.ASGI:
            app = self._senders.paced(app, listens=unix or self._site.settings.http2)
        if self._site.interface is Interface.RSGI:
            self._under.answers.watch_rsgi(Transport)
        if self._site.interface is Interface.WSGI:
            app = self._under.thread_answers.bodies(conforming(app))
        inner = native(self._site, app, state)
        last = native(self._site, ending(app, self._site.interface), state)
        if self._site.interface is Interface.WSGI:
            return self._under.threads(inner, last, max(1, self._site.settings.threads))
        answers = self._under.answers
        asgi = self._site.interface is Interface.ASGI
        return self._under.tasks(inner, last, answers.ended_asgi if asgi else answers.ended_rsgi)

    def _worker(self, inside: Any, holder: Any, unix: bool) -> Any:
        settings, interface = self._site.settings, self._site.interface
        http = module("http")
        patience = head_patience(settings.timeout, seen=not unix)
        wsgi = interface is Interface.WSGI
        return getattr(inside, f"{interface.upper()}Worker")(
            next(self._numbers),
            (None, holder),
            None,
            1,
            _MAX_RUST_BLOCKING_THREADS,
            max(1, settings.threads) if wsgi else 1,
            _POOL_IDLE_TIMEOUT_S,
            _most_connections(),
            "auto" if settings.http2 else "1",
            http.HTTP1Settings(header_read_timeout=patience, keep_alive=settings.keep_alive),
            http.HTTP2Settings(),
            *(() if wsgi else (True,)),
            None,
            *_tls(self._site),
            (None, None),
        )


def _readable(path: str) -> str:
    """A path as the app sees it, for a log (`ending.readable`)."""
    return readable(path.encode("utf-8", "surrogatepass"))


def _host(client: str) -> str | None:
    """The host of `host:port`."""
    return client.rpartition(":")[0].strip("[]") or None


def _waiting(listener: socket.socket) -> bool:
    return listener.family != socket.AF_UNIX and queue_length(listener) > 0


def _most_connections() -> int:
    """As many as there may be descriptors: granian's own bound would leave keep-alive clients waiting at the door."""
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _check_key(settings: Settings) -> None:
    """Refuse a key that has to be decrypted: granian panics, in each worker, whatever made the key. Plain keys it reads all."""
    if settings.ssl_keyfile_password is not None:
        path = settings.ssl_keyfile or settings.ssl_certfile
        raise ConfigError(
            f"ssl_keyfile_password: engine 'granian' can't decrypt keys; give it a plain one: openssl pkey -in {path}"
        )


def _tls(site: AppContext) -> tuple[Any, ...]:
    """Return granian's arguments for TLS. It reads the files itself, in each new worker: copies (`kernel.snapshots`)."""
    settings = site.settings
    if settings.ssl_certfile is None:
        return (False, None, None, None, _MIN_TLS_VERSION, None, [], False)
    certificate, key = settings.ssl_certfile, settings.ssl_keyfile or settings.ssl_certfile
    authorities = settings.ssl_ca_certs
    return (True, certificate, key, None, _MIN_TLS_VERSION, authorities, [], authorities is not None)
