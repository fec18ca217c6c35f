"""The layer between granian and an app: it counts requests, finds those under way, and ends connections in a drain."""

from __future__ import annotations

import asyncio
import functools
import itertools
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from types import CodeType, FrameType
from typing import Any

from ..access_log import GRANIAN_FORMAT
from ..base import RSGI_HOOKS, AppContext, Interface
from ..outcomes import Outcomes, reading
from .internals import module, waits, wsgi_callback
from .response_counts import UNANSWERED_STATUS, ResponseCounts, ThreadResponseCounts

Call = Callable[..., Any]
_CLOSE = ("connection", "close")
_CLOSE_BYTES = (b"connection", b"close")


def granian_callback(site: AppContext, app: Call, state: dict[str, Any]) -> Call:
    """Return the app as granian's scheduler calls it: with `(scope, protocol)`, for WSGI with `(protocol, scope)`."""
    log = None if site.access is None else GRANIAN_FORMAT
    made: Call
    match site.interface:
        case Interface.ASGI:
            made = module("asgi")._callback_wrapper(app, {}, state, log)
        case Interface.WSGI:
            made = wsgi_callback(app, log)
        case _:
            made = module("rsgi")._callback_wrapper(app, log)
    return made


def rsgi_callable(app: Call) -> Call:
    """Return what is called of an RSGI app, with its hooks: the function itself, or the object's `__rsgi__`."""
    inner: Call | None = getattr(app, "__rsgi__", None)
    if inner is None:
        return app
    call = inner

    # A bound method can't have the attributes of the hooks, so a function takes its place.
    def called(scope: Any, protocol: Any) -> Any:
        return call(scope, protocol)

    return functools.update_wrapper(called, app, assigned=RSGI_HOOKS, updated=())


class InFlight:
    """The requests under way: how many have begun and ended, and, where their age matters, which.

    A request costs two additions and two stores. They are in the layer that reports a request's end to granian, which is there in
    any case. Several listeners and the threads of the pool share the counts. So a number that is stored may be too low for a
    moment, and the next store corrects it.

    Attributes:
        response_counts: how requests have ended whose app is awaited.
        thread_response_counts: how requests have ended whose app runs in threads.
    """

    def __init__(self, gauge: MutableSequence[int] | None, *, remember: bool) -> None:
        """Start without a request.

        Args:
            gauge: two cells for the numbers of requests begun and ended, which each request updates.
            remember: keep each request, for `requests`.
        """
        self._gauge: MutableSequence[int] = [0, 0] if gauge is None else gauge
        self._remember = remember
        self._remembered: set[object] = set()
        self._closing = False
        self._to_close = 0
        self._switches: list[Callable[[bool], None]] = []
        self._refusals: list[Callable[[], None]] = []
        self._counts: list[Callable[[], tuple[int, int]]] = []
        self.thread_response_counts = ThreadResponseCounts()
        self.response_counts = ResponseCounts()
        self._codes: set[CodeType] = set()
        self._threads = 0
        self._given_up: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    def set_trap(self, trap: Any) -> None:
        """Let a child that the app has forked end its process as soon as a call has ended and counts its response."""
        # Either is updated when a call has ended, so that is where the trap acts.
        self.response_counts.outcomes.by_status = trap
        self.thread_response_counts.set_trap(trap)

    def counts(self) -> tuple[int, int]:
        """Return how many requests have begun, and how many of them have ended."""
        pairs = [count() for count in self._counts]
        return sum(begun for begun, _ in pairs), sum(ended for _, ended in pairs)

    def outcomes(self) -> Outcomes:
        """Return how requests have ended."""
        return self.thread_response_counts.outcomes() if self._threads else self.response_counts.outcomes

    def requests(self) -> Iterable[object]:
        """Return the requests under way, if they are remembered."""
        return list(self._remembered)

    def clients(self) -> dict[tuple[str, int | None], bool] | None:
        """Return the clients whose requests are under way.

        Requests that still wait for the loop aren't included. If an app has changed the scope's `client`, the changed value is
        returned.

        Returns:
            For the host and port of each client (no port where that isn't known), whether all of its requests only wait for the
            rest of a body. A request counts as waiting if it has a body, and its own coroutine (not another task) waits for granian.
            So after a whole body it should wait for nothing but its own work. None: there may be clients that can't be seen.
        """
        if self._threads:
            begun, ended = self.counts()
            if begun - ended >= self._threads:  # more requests may wait for a thread, and they have no frame
                return None
            running = (_environ_of(frame, self._codes) for frame in sys._current_frames().values())
            return {(scope["REMOTE_ADDR"].partition("%")[0], None): False for scope in running if scope is not None}
        found: dict[tuple[str, int | None], bool] = {}
        for _, coroutine, scope in self._awaited():
            # Over HTTP/2 a connection has several requests: it waits for its client only if all of them do.
            peer = client_of(scope)
            found[peer] = found.get(peer, True) and _has_body(scope) and waits(coroutine)
        return found

    def websockets(self) -> dict[asyncio.Task[Any], tuple[str, int | None]]:
        """Return the tasks of websockets, each with host and port of its client; host "" over a Unix socket."""
        return {task: client_of(scope) for task, _, scope in self._awaited() if _is_websocket(scope)}

    def all_tasks(self) -> list[asyncio.Task[Any]]:
        """Return the tasks of the requests under way."""
        return [task for task, _, _ in self._awaited()]

    def paths(self) -> list[str]:
        """Return the paths of the requests under way, as the app sees them. Leave out those that wait for the loop or a thread."""
        if self._threads:
            running = (_environ_of(frame, self._codes) for frame in sys._current_frames().values())
            return [scope["PATH_INFO"] for scope in running if scope is not None]
        return [_path(scope) for _, _, scope in self._awaited()]

    def describe_frame(self, frame: FrameType) -> str | None:
        """Return method and path of the request, if its app was called in this frame."""
        if frame.f_code not in self._codes:
            return None
        scope = frame.f_locals["scope"] if self._threads else frame.f_locals["watcher"].scope
        if self._threads:
            return f"{scope['REQUEST_METHOD']} {scope['PATH_INFO']}"
        if _is_websocket(scope):
            return f"websocket {_path(scope)}"
        return f"{scope['method'] if isinstance(scope, dict) else scope.method} {_path(scope)}"

    def _awaited(self) -> Iterator[tuple[asyncio.Task[Any], Any, Any]]:
        """Return task, coroutine and granian's scope of each request whose coroutine has begun."""
        return ((task, coroutine, watcher.scope) for task, coroutine, watcher in self._with_watchers())

    def _with_watchers(self) -> Iterator[tuple[asyncio.Task[Any], Any, Any]]:
        """Yield task, coroutine and granian's watcher of each request whose coroutine has begun."""
        for task in asyncio.all_tasks():
            coroutine: Any = task.get_coro()
            # The local variables of our own coroutine hold the watcher, so a request pays nothing for being found.
            frame = coroutine.cr_frame if getattr(coroutine, "cr_code", None) in self._codes else None
            if frame is not None:
                yield task, coroutine, frame.f_locals["watcher"]

    def cancel(self, requests: Iterable[Any]) -> list[str]:
        """Cancel requests, each given by its scope or its protocol. Return their paths, as the app sees them."""
        paths = []
        ids = set(map(id, requests))  # granian's objects can't be compared, and live as long as their requests
        for task, _, watcher in self._with_watchers():
            if ids & {id(watcher.scope), id(watcher.proto)}:
                paths.append(_path(watcher.scope))
                self._given_up.add(task)  # `watch` then takes the cancellation for no error
                task.cancel()
        return paths

    def end_all(self) -> None:
        """Let each response from now on end its connection."""
        self._closing = True
        self._switch(ending=True)

    def end_next(self, count: int) -> int:
        """Let the next `count` responses end their connections."""
        if not self._closing and count > 0:  # in a drain all responses end their connections anyway
            self._to_close = max(self._to_close, count)
            self._switch(ending=True)
        return count

    def refuse(self) -> None:
        """Keep requests that still wait for a thread away from the app, since their connections are reset."""
        for use in self._refusals:
            use()

    def in_threads(self) -> bool:
        """Return whether a thread is in the app or in a body of it."""
        begun, ended = self.counts()
        return bool(self._threads) and begun != ended

    def tasks(self, inner: Call, last: Call, settle: Callable[[Any, bool, bool], None]) -> Call:
        """Return what granian calls for each request of an app that is awaited. It makes the coroutine of the request's task.

        Args:
            inner: the app as granian calls it.
            last: the same app, whose responses end their connections.
            settle: called for each request that has ended, with its protocol object, and whether its app has raised or was
                cancelled.
        """
        begin = itertools.count(1)
        ended = 0
        remembered, gauge, given_up = self._remembered, self._gauge, self._given_up
        called = last if self._closing else inner

        def scheduled(watcher: Any) -> Any:
            # This runs in granian's thread, so requests that wait for a blocked loop count, too. `next` is atomic under the GIL.
            gauge[0] = next(begin)
            return watch(watcher)

        async def watch(watcher: Any) -> None:
            nonlocal ended
            failed = cancelled = False
            try:
                await called(watcher.scope, watcher.proto)
            except BaseException as error:  # granian answers 500 and logs it, also for a cancellation
                cancelled = isinstance(error, asyncio.CancelledError)
                failed = not cancelled
                if cancelled and asyncio.current_task() in given_up:
                    watcher.done()  # its client has gone, so no response is needed, and `cancel`'s caller has logged it
                    return
                watcher.err(error)
            else:
                watcher.done()
            finally:
                ended += 1
                gauge[1] = ended
                settle(watcher.proto, failed, cancelled)

        def scheduled_and_remembered(watcher: Any) -> Any:
            gauge[0] = next(begin)
            remembered.add(watcher)
            return forgotten(watcher)

        async def forgotten(watcher: Any) -> None:
            try:
                await watch(watcher)
            finally:
                remembered.discard(watcher)

        def use(ending: bool) -> None:
            nonlocal called
            called = self._counted(last) if ending else inner

        # Invariant: their local variable is named `watcher`, for the methods that read it in frames.
        self._codes |= {watch.__code__, forgotten.__code__}
        self._switches.append(use)
        self._counts.append(lambda: (reading(begin) - 1, ended))
        return scheduled_and_remembered if self._remember else scheduled

    def threads(self, inner: Call, last: Call, count: int) -> Call:
        """Return what granian calls for each request of an app that runs in granian's threads.

        Args:
            inner: the app as granian calls it.
            last: the same app, whose responses end their connections.
            count: the number of threads.
        """
        begin, end = itertools.count(1), itertools.count(1)
        remembered, gauge = self._remembered, self._gauge
        settle = self.thread_response_counts.count_response
        called = last if self._closing else inner

        def run(protocol: Any, scope: Any) -> Any:
            gauge[0] = next(begin)
            status = UNANSWERED_STATUS  # granian answers an app that raises
            try:
                status = called(protocol, scope)
            finally:
                gauge[1] = next(end)
                settle(status)

        def run_remembered(protocol: Any, scope: Any) -> Any:
            token = object()
            remembered.add(token)
            try:
                return run(protocol, scope)
            finally:
                remembered.discard(token)

        def use(ending: bool) -> None:
            nonlocal called
            called = self._counted(last) if ending else inner

        def refuse() -> None:
            nonlocal called
            called = _refused

        self._codes.add(run.__code__)  # `_environ_of` and `describe_frame` read its local variable `scope`
        self._refusals.append(refuse)
        self._threads = count
        self._switches.append(use)
        self._counts.append(lambda: (reading(begin) - 1, reading(end) - 1))
        return run_remembered if self._remember else run

    def _switch(self, *, ending: bool) -> None:
        for use in self._switches:
            use(ending)

    def _counted(self, last: Call) -> Call:
        """Return `last`, which gives way to `inner` when enough connections have been ended."""
        if self._closing:
            return last

        def counted(first: Any, second: Any) -> Any:
            # WSGI's threads may race here. Then one connection more or less is ended, which doesn't matter for balance.
            self._to_close -= 1
            if self._to_close <= 0 and not self._closing:
                self._switch(ending=False)
            return last(first, second)

        return counted


def _refused(protocol: Any, scope: Any) -> int:
    """Answer a WSGI request without its app, and return the status."""
    protocol.response_bytes(503, [], b"")  # granian needs a response, but the connection is gone
    return 503


def _environ_of(frame: FrameType | None, codes: set[CodeType]) -> dict[str, Any] | None:
    """Return the environ of the request that a thread works on. None: the thread has no request."""
    while frame is not None:  # from the app's innermost frame outwards
        if frame.f_code in codes:
            scope: dict[str, Any] = frame.f_locals["scope"]
            return scope
        frame = frame.f_back
    return None


def client_of(scope: Any) -> tuple[str, int | None]:
    """Return host and port of a client, without the zone of a link-local address.

    Returns:
        An empty host and port 0 if an app has put something else there, or for a Unix socket.
    """
    match scope:
        case {"client": [str(host), int(port)]}:
            pass
        case {"client": [str(host), str(number)]} if number.isdecimal():  # granian passes the port as text
            port = int(number)
        case dict():
            return "", 0
        case _:  # RSGI's scope has the client as `host:port`
            host, _, number = scope.client.rpartition(":")
            if not number.isdecimal():  # on a Unix socket the client has no name, or a path
                return "", 0
            port = int(number)
    return host.strip("[]").partition("%")[0], port


def _is_websocket(scope: Any) -> bool:
    return bool(scope["type"] == "websocket" if isinstance(scope, dict) else scope.proto == "ws")


def _path(scope: Any) -> str:
    return str(scope["path"] if isinstance(scope, dict) else scope.path)


def _has_body(scope: Any) -> bool:
    """Return whether a request's head announces a body. Over HTTP/2 a request may have one without an announcement."""
    if isinstance(scope, dict):
        found = dict(scope["headers"]) if scope["type"] == "http" else {}
        length, coding = found.get(b"content-length", b"0"), found.get(b"transfer-encoding")
    else:
        found = scope.headers if scope.proto == "http" else {}
        length, coding = found.get("content-length", "0"), found.get("transfer-encoding")
    # A client chooses these values, so the length need not be a number.
    return bool(coding) or (length.isdigit() and int(length) > 0)


# In a drain each response ends its connection.


def closing(app: Call, interface: Interface) -> Call:
    """Return the app with `Connection: close` in its responses over HTTP/1.1. HTTP/2 forbids that header, and has GOAWAY."""
    match interface:
        case Interface.ASGI:
            return _closing_asgi(app)
        case Interface.WSGI:
            return _closing_wsgi(app)
        case _:
            return _closing_rsgi(app)


def _closing_asgi(app: Call) -> Call:
    def wrapped(scope: Any, receive: Call, send: Call) -> Any:
        if scope["type"] != "http" or not scope["http_version"].startswith("1"):
            return app(scope, receive, send)

        async def closing(message: Any) -> None:
            # A copy: the app may use its message again.
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), _CLOSE_BYTES]}
            await send(message)

        return app(scope, receive, closing)

    return wrapped


def _closing_wsgi(app: Call) -> Call:
    def wrapped(environ: Any, start_response: Call) -> Any:
        if not environ["SERVER_PROTOCOL"].startswith("HTTP/1"):
            return app(environ, start_response)

        def closing(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            return start_response(status, [*headers, _CLOSE], *error)

        return app(environ, closing)

    return wrapped


def _closing_rsgi(callback: Call) -> Call:
    def wrapped(scope: Any, protocol: Any) -> Any:
        if scope.proto == "http" and scope.http_version.startswith("1"):
            protocol = _ClosingProtocol(protocol)
        return callback(scope, protocol)

    return wrapped


class _ClosingProtocol:
    """An RSGI protocol whose response ends its connection."""

    __slots__ = ("_inner",)

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self) -> Any:
        return self._inner()

    def __aiter__(self) -> Any:
        return self._inner.__aiter__()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not name.startswith("response_"):  # the others don't take headers
            return found

        def respond(status: int, headers: Iterable[tuple[str, str]], *more: Any, **named: Any) -> Any:
            return found(status, [*headers, _CLOSE], *more, **named)

        return respond
