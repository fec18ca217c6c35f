"""What stands between granian and an app: the counting, and the end of connections while draining."""

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


def native(site: AppContext, app: Call, state: dict[str, Any]) -> Call:
    """The app as granian's scheduler calls it: `(scope, protocol)`, for WSGI `(protocol, scope)`."""
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


def by_rsgi(app: Call) -> Call:
    """What is called of an RSGI app: a function, or an object's `__rsgi__`; with its hooks."""
    inner: Call | None = getattr(app, "__rsgi__", None)
    if inner is None:
        return app
    call = inner

    def called(scope: Any, protocol: Any) -> Any:
        return call(scope, protocol)

    return functools.update_wrapper(called, app, assigned=RSGI_HOOKS, updated=())


class InFlight:
    """Requests under way: how many have begun and ended, and, where their age matters, which.

    The cost is two additions and two stores a request. They are made in the layer that granian needs anyhow to learn of the end.
    Several listeners share it, and the pool's threads: a number that is stored may be late then, and is put right by the next.

    Attributes:
        answers: how those have ended whose app is awaited.
        thread_answers: how those have ended whose app runs in threads.
    """

    def __init__(self, gauge: MutableSequence[int] | None, *, remember: bool) -> None:
        """Nothing is under way.

        Args:
            gauge: two cells for the numbers of requests begun and ended, kept up to date at each.
            remember: keep each request, for `requests`.
        """
        self._gauge: MutableSequence[int] = [0, 0] if gauge is None else gauge
        self._remember = remember
        self._way: set[object] = set()
        self._ending = False
        self._few = 0
        self._uses: list[Callable[[bool], None]] = []
        self._refusals: list[Callable[[], None]] = []
        self._counts: list[Callable[[], tuple[int, int]]] = []
        self.thread_answers = ThreadResponseCounts()
        self.answers = ResponseCounts()
        self._codes: set[CodeType] = set()
        self._threads = 0
        self._given_up: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    def set_trap(self, trap: Any) -> None:
        """In a child that the app has forked: end the process as soon as a call has ended, and counts its response."""
        self.answers.outcomes.by_status = trap
        self.thread_answers.set_trap(trap)

    def counts(self) -> tuple[int, int]:
        """How many have begun, and how many of them have ended."""
        pairs = [count() for count in self._counts]
        return sum(begun for begun, _ in pairs), sum(ended for _, ended in pairs)

    def outcomes(self) -> Outcomes:
        """Return how requests have ended."""
        return self.thread_answers.outcomes() if self._threads else self.answers.outcomes

    def requests(self) -> Iterable[object]:
        """Those under way, if they are remembered."""
        return list(self._way)

    def clients(self) -> dict[tuple[str, int | None], bool] | None:
        """Whose requests are under way: host and port, no port where that isn't known. None: there may be others.

        With each, whether all of them only wait for the rest of a body. It is taken for one that waits if it has a body, and its
        own coroutine (not a task of its) waits for granian: so after a whole body it should wait for nothing but its own work.
        Requests that still wait for the loop aren't among them. What an app has made of its scope's `client` is taken as it is.
        """
        if self._threads:
            begun, ended = self.counts()
            if begun - ended >= self._threads:  # more may wait for a thread, seen by nobody
                return None
            running = (_called(frame, self._codes) for frame in sys._current_frames().values())
            return {(scope["REMOTE_ADDR"].partition("%")[0], None): False for scope in running if scope is not None}
        found: dict[tuple[str, int | None], bool] = {}
        for _, coroutine, scope in self._awaited():
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
        """Return the paths of the requests under way, as the app sees them, without those that wait for the loop or a thread."""
        if self._threads:
            running = (_called(frame, self._codes) for frame in sys._current_frames().values())
            return [scope["PATH_INFO"] for scope in running if scope is not None]
        return [_path(scope) for _, _, scope in self._awaited()]

    def serving(self, frame: FrameType) -> str | None:
        """Return method and path of the request whose app was called in this frame."""
        if frame.f_code not in self._codes:
            return None
        scope = frame.f_locals["scope"] if self._threads else frame.f_locals["watcher"].scope
        if self._threads:
            return f"{scope['REQUEST_METHOD']} {scope['PATH_INFO']}"
        if _is_websocket(scope):
            return f"websocket {_path(scope)}"
        return f"{scope['method'] if isinstance(scope, dict) else scope.method} {_path(scope)}"

    def _awaited(self) -> Iterator[tuple[asyncio.Task[Any], Any, Any]]:
        """Requests whose coroutine has begun: task, coroutine and granian's scope of each."""
        return ((task, coroutine, watcher.scope) for task, coroutine, watcher in self._watched())

    def _watched(self) -> Iterator[tuple[asyncio.Task[Any], Any, Any]]:
        """The same, with granian's watcher of each."""
        for task in asyncio.all_tasks():
            coroutine: Any = task.get_coro()
            frame = coroutine.cr_frame if getattr(coroutine, "cr_code", None) in self._codes else None
            if frame is not None:
                yield task, coroutine, frame.f_locals["watcher"]

    def cancel(self, requests: Iterable[Any]) -> list[str]:
        """Cancel requests, each told by its scope or its protocol; return their paths, as the app sees them."""
        paths = []
        ids = set(map(id, requests))
        for task, _, watcher in self._watched():
            if ids & {id(watcher.scope), id(watcher.proto)}:
                paths.append(_path(watcher.scope))
                self._given_up.add(task)
                task.cancel()
        return paths

    def end_all(self) -> None:
        """From now on each response ends its connection."""
        self._ending = True
        self._use(ending=True)

    def end_next(self, count: int) -> int:
        """So many of the next ones do."""
        if not self._ending and count > 0:
            self._few = max(self._few, count)
            self._use(ending=True)
        return count

    def refuse(self) -> None:
        """Requests that still wait for a thread no longer reach the app: their connections are reset."""
        for use in self._refusals:
            use()

    def in_threads(self) -> bool:
        """Return whether a thread is in the app or in a body of it."""
        begun, ended = self.counts()
        return bool(self._threads) and begun != ended

    def tasks(self, inner: Call, last: Call, settle: Callable[[Any, bool, bool], None]) -> Call:
        """For apps that are awaited: what makes a request's task.

        Args:
            last: the same as `inner`, whose responses end their connections.
            settle: told of each request that has ended: its protocol object, whether its app has raised, or was cancelled.
        """
        begin = itertools.count(1)
        ended = 0
        way, gauge, given_up = self._way, self._gauge, self._given_up
        called = last if self._ending else inner

        def scheduled(watcher: Any) -> Any:
            # In Rust's thread: so those count that wait for a loop that is held. A count's step is one under the GIL.
            gauge[0] = next(begin)
            return watch(watcher)

        async def watch(watcher: Any) -> None:
            nonlocal ended
            failed = cancelled = False
            try:
                await called(watcher.scope, watcher.proto)
            except BaseException as error:  # granian answers 500 and logs it; a cancelled one must be told as well
                cancelled = isinstance(error, asyncio.CancelledError)
                failed = not cancelled
                if cancelled and asyncio.current_task() in given_up:
                    watcher.done()  # its client has gone, so there is nothing to answer, and the log has it already
                    return
                watcher.err(error)
            else:
                watcher.done()
            finally:
                ended += 1
                gauge[1] = ended
                settle(watcher.proto, failed, cancelled)

        def remembered(watcher: Any) -> Any:
            gauge[0] = next(begin)
            way.add(watcher)
            return forgotten(watcher)

        async def forgotten(watcher: Any) -> None:
            try:
                await watch(watcher)
            finally:
                way.discard(watcher)

        def use(ending: bool) -> None:
            nonlocal called
            called = self._counted(last) if ending else inner

        self._codes |= {watch.__code__, forgotten.__code__}
        self._uses.append(use)
        self._counts.append(lambda: (reading(begin) - 1, ended))
        return remembered if self._remember else scheduled

    def threads(self, inner: Call, last: Call, count: int) -> Call:
        """For apps that run in threads of granian's: so many."""
        begin, end = itertools.count(1), itertools.count(1)
        way, gauge = self._way, self._gauge
        settle = self.thread_answers.count_response
        called = last if self._ending else inner

        def run(protocol: Any, scope: Any) -> Any:
            gauge[0] = next(begin)
            status = UNANSWERED_STATUS
            try:
                status = called(protocol, scope)
            finally:
                gauge[1] = next(end)
                settle(status)

        def remembered(protocol: Any, scope: Any) -> Any:
            token = object()
            way.add(token)
            try:
                return run(protocol, scope)
            finally:
                way.discard(token)

        def use(ending: bool) -> None:
            nonlocal called
            called = self._counted(last) if ending else inner

        def refuse() -> None:
            nonlocal called
            called = _refused

        self._codes.add(run.__code__)
        self._refusals.append(refuse)
        self._threads = count
        self._uses.append(use)
        self._counts.append(lambda: (reading(begin) - 1, reading(end) - 1))
        return remembered if self._remember else run

    def _use(self, *, ending: bool) -> None:
        for use in self._uses:
            use(ending)

    def _counted(self, last: Call) -> Call:
        """`last`, until as many have been ended as were to be."""
        if self._ending:
            return last

        def counted(first: Any, second: Any) -> Any:
            self._few -= 1
            if self._few <= 0 and not self._ending:
                self._use(ending=False)
            return last(first, second)

        return counted


def _refused(protocol: Any, scope: Any) -> int:
    """Answer a WSGI request without its app; return the status."""
    protocol.response_bytes(503, [], b"")
    return 503


def _called(frame: FrameType | None, codes: set[CodeType]) -> dict[str, Any] | None:
    """The environ of the request that a thread works on."""
    while frame is not None:
        if frame.f_code in codes:
            scope: dict[str, Any] = frame.f_locals["scope"]
            return scope
        frame = frame.f_back
    return None


def client_of(scope: Any) -> tuple[str, int | None]:
    """Host and port of a client, without the scope of a link-local address; nobody's, if an app has put something else there."""
    match scope:
        case {"client": [str(host), int(port)]}:
            pass
        case {"client": [str(host), str(number)]} if number.isdecimal():  # granian gives a text
            port = int(number)
        case dict():
            return "", 0
        case _:
            host, _, number = scope.client.rpartition(":")
            if not number.isdecimal():  # a Unix socket: the client has no name, or a path
                return "", 0
            port = int(number)
    return host.strip("[]").partition("%")[0], port


def _is_websocket(scope: Any) -> bool:
    return bool(scope["type"] == "websocket" if isinstance(scope, dict) else scope.proto == "ws")


def _path(scope: Any) -> str:
    return str(scope["path"] if isinstance(scope, dict) else scope.path)


def _has_body(scope: Any) -> bool:
    """Whether a request says that a body follows. Over HTTP/2 it needn't, and isn't known to."""
    if isinstance(scope, dict):
        found = dict(scope["headers"]) if scope["type"] == "http" else {}
        length, coding = found.get(b"content-length", b"0"), found.get(b"transfer-encoding")
    else:
        found = scope.headers if scope.proto == "http" else {}
        length, coding = found.get("content-length", "0"), found.get("transfer-encoding")
    return bool(coding) or (length.isdigit() and int(length) > 0)


# Draining: each response ends its connection.


def ending(app: Call, interface: Interface) -> Call:
    """The app, whose responses over HTTP/1.1 say `Connection: close`; HTTP/2 forbids the word, and has GOAWAY."""
    match interface:
        case Interface.ASGI:
            return _ending_asgi(app)
        case Interface.WSGI:
            return _ending_wsgi(app)
        case _:
            return _ending_rsgi(app)


def _ending_asgi(app: Call) -> Call:
    def wrapped(scope: Any, receive: Call, send: Call) -> Any:
        if scope["type"] != "http" or not scope["http_version"].startswith("1"):
            return app(scope, receive, send)

        async def closing(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), _CLOSE_BYTES]}
            await send(message)

        return app(scope, receive, closing)

    return wrapped


def _ending_wsgi(app: Call) -> Call:
    def wrapped(environ: Any, start_response: Call) -> Any:
        if not environ["SERVER_PROTOCOL"].startswith("HTTP/1"):
            return app(environ, start_response)

        def closing(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            return start_response(status, [*headers, _CLOSE], *error)

        return app(environ, closing)

    return wrapped


def _ending_rsgi(callback: Call) -> Call:
    def wrapped(scope: Any, protocol: Any) -> Any:
        if scope.proto == "http" and scope.http_version.startswith("1"):
            protocol = _Closing(protocol)
        return callback(scope, protocol)

    return wrapped


class _Closing:
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
        if not name.startswith("response_"):
            return found

        def respond(status: int, headers: Iterable[tuple[str, str]], *more: Any, **named: Any) -> Any:
            return found(status, [*headers, _CLOSE], *more, **named)

        return respond
