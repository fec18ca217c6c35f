"""The health check of the app itself: a request without a socket, and the user's validator of the response.

The worker calls the app as its engine calls it, through middleware and with the lifespan state. Two rules bound the checks:

- One check runs at a time. A request that comes meanwhile shares its result.
- A check takes two seconds at most. Work that can't be cancelled then (a call in a thread) is left alone, and no other check
  begins before it has ended. So a probe that comes every second takes one thread from an app that hangs, never all of them.
"""

from __future__ import annotations

import asyncio
import inspect
import io
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from ....core.token_bucket import TokenBucket
from ....engines.base import is_async
from ....linux.app_threads import AppThread

Call = Callable[..., Any]
Ask = Callable[[], Coroutine[Any, Any, "Reply"]]

logger = logging.getLogger("cluster2.worker")

CHECK_TIMEOUT_S = 2.0
"""Seconds that the app and the validator may take together."""
MAX_CHECK_BODY_BYTES = 1 << 20
"""Bytes that the body of the app's response may have."""
_USER_AGENT = "cluster2-ecv"
"""The user agent of the request."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A response of the app, with the names of its headers in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class HealthCheckFailed(Exception):
    """The app is not healthy; the text is the reason."""


class AppHealthCheck:
    """Decide whether the app is healthy.

    Args:
        validator: called with status, headers (a dictionary) and body of a response below 300; a true result means healthy. A
            plain function is called in a thread.
        cancellable: whether the app's work ends when its task is cancelled. The work of a WSGI app, in a thread, doesn't.
        on_change: called with a reason when the app has become unhealthy, with None when it is healthy again.
    """

    def __init__(self, validator: Call | None, *, cancellable: bool, on_change: Callable[[str | None], None]) -> None:
        self._validator = validator
        self._cancellable = cancellable
        self._on_change = on_change
        self._under_way: asyncio.Future[bool] | None = None
        self._stuck: set[object] = set()
        self._healthy = True
        self._report_budget = TokenBucket()

    async def passes(self, ask: Ask) -> bool:
        """Return whether the app is healthy now.

        Args:
            ask: sends the request; used if no check is under way.
        """
        if self._under_way is None:
            self._under_way = asyncio.ensure_future(self._run_check(ask))
            self._under_way.add_done_callback(self._done)
        # Shielded: when one caller is cancelled, the others still need the result.
        return await asyncio.shield(self._under_way)

    def _done(self, under_way: asyncio.Future[bool]) -> None:
        self._under_way = None

    async def _run_check(self, ask: Ask) -> bool:
        deadline: asyncio.Timeout | None = None
        try:
            if self._stuck:
                raise HealthCheckFailed("the last check hasn't ended yet")
            async with asyncio.timeout(CHECK_TIMEOUT_S) as deadline:
                reply = await self._bounded(ask(), cancellable=self._cancellable)
                if reply.status >= 300:
                    raise HealthCheckFailed(f"it responded with {reply.status}")
                await self._validate(reply)
            reason = None
        except HealthCheckFailed as error:
            reason = str(error)
        except Exception as error:
            late = deadline is not None and deadline.expired()
            reason = f"no result within {CHECK_TIMEOUT_S:g} s" if late else f"it raised {type(error).__name__}: {error}"
        # A result that changes with each check isn't reported each time: clients that send checks could cause any number of
        # events.
        if self._healthy != (reason is None) and self._report_budget.take(time.monotonic()):
            self._healthy = reason is None
            self._on_change(reason)
        return reason is None

    async def _validate(self, reply: Reply) -> None:
        if self._validator is None:
            return
        arguments = reply.status, dict(reply.headers), reply.body
        try:
            verdict: Any
            if is_async(self._validator):
                verdict = await self._bounded(self._validator(*arguments), cancellable=True)
            else:
                verdict = await self._bounded(in_thread(self._validator, *arguments), cancellable=False)
                if inspect.iscoroutine(verdict):
                    verdict = await self._bounded(verdict, cancellable=True)
        except HealthCheckFailed:
            raise
        except Exception as error:
            raise HealthCheckFailed(f"ecv.validator raised {type(error).__name__}: {error}") from error
        if not verdict:
            raise HealthCheckFailed("ecv.validator rejected the response")

    async def _bounded(self, work: Coroutine[Any, Any, Any], *, cancellable: bool) -> Any:
        """Return the result of a piece of work.

        When the check's time is over the work is cancelled, if that has an effect. It counts as stuck until it has ended.
        """
        task = asyncio.ensure_future(work)
        self._stuck.add(task)
        task.add_done_callback(self._stuck.discard)
        # Retrieve the exception, also when the check has given up: else asyncio logs it as never retrieved.
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if cancellable:
                task.cancel()
            raise


async def in_thread(function: Call, *arguments: Any) -> Any:
    """Call a function in a thread of its own, and return or raise its result.

    The thread is a daemon: a call that never ends blocks neither the loop nor the worker's exit.

    Raises:
        HealthCheckFailed: the system has no thread for it.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Any] = loop.create_future()

    def finish(result: Any, error: BaseException | None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(result)
        else:
            ended.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = function(*arguments)
        except Exception as raised:
            error = raised
        except BaseException as raised:  # SystemExit would end this thread silently, and the check would never end
            error = RuntimeError(f"{type(raised).__name__}: {raised}")
        try:
            loop.call_soon_threadsafe(finish, result, error)
        except RuntimeError:
            pass  # the loop has ended meanwhile, and the check with it

    try:
        AppThread(run, name="cluster2-check").start()
    except RuntimeError as error:
        raise HealthCheckFailed(f"no thread can be started for the check: {error}") from error
    return await ended


# Requests without a socket


async def ask_asgi(app: Call, scope: MutableMapping[str, Any], root: str, target: str) -> Reply:
    """Send a GET request to an ASGI app, and return its response.

    Args:
        scope: the scope of the health request, whose lifespan state and addresses the new request gets.
        root: the path under which the app is mounted.
        target: path and query.
    """
    path, _, query = target.partition("?")
    host = [(name, value) for name, value in scope["headers"] if name == b"host"]
    inner = {
        **scope,
        "method": "GET",
        "path": root + unquote(path),
        "raw_path": (root + path).encode(),
        "query_string": query.encode(),
        "headers": [*host, (b"user-agent", _USER_AGENT.encode())],
        "extensions": {},
    }
    if "state" in scope:
        inner["state"] = dict(scope["state"])
    response = _Response()
    task = asyncio.ensure_future(_call(app, inner, response))
    try:
        await asyncio.wait({task, response.complete}, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        task.cancel()
        raise
    response.over.set()
    if response.complete.done():
        # Don't wait for work that follows the response (background tasks): a client wouldn't either.
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return response.reply()
    task.result()
    raise HealthCheckFailed("it ended without a response")


async def _call(app: Call, scope: Any, response: _Response) -> None:
    await app(scope, response.receive, response.send)


class _Response:
    """The response that an ASGI app sends."""

    def __init__(self) -> None:
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()
        self._asked = False
        self._start: Any = None
        self._body = bytearray()

    async def receive(self) -> dict[str, Any]:
        if self._asked:
            await self.over.wait()
            return {"type": "http.disconnect"}
        self._asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body" and self._start is not None and not self.complete.done():
            self._body += message.get("body", b"")
            if len(self._body) > MAX_CHECK_BODY_BYTES:
                raise HealthCheckFailed(f"its response has more than {MAX_CHECK_BODY_BYTES} bytes")
            if not message.get("more_body", False):
                self.complete.set_result(None)

    def reply(self) -> Reply:
        headers = [
            (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in self._start.get("headers", [])
        ]
        return Reply(self._start["status"], headers, bytes(self._body))


async def ask_wsgi(app: Call, environ: Mapping[str, Any], target: str) -> Reply:
    """Send a GET request to a WSGI app, in a thread of its own. The arguments are as for `ask_asgi`."""
    path, _, query = target.partition("?")
    inner = {name: value for name, value in environ.items() if not name.startswith(("HTTP_", "CONTENT_"))}
    if "HTTP_HOST" in environ:
        inner["HTTP_HOST"] = environ["HTTP_HOST"]
    inner |= {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "HTTP_USER_AGENT": _USER_AGENT,
        "wsgi.input": io.BytesIO(),
    }
    reply: Reply = await in_thread(_call_wsgi, app, inner)
    return reply


def _call_wsgi(app: Call, environ: dict[str, Any]) -> Reply:
    head: list[Any] = []
    body = bytearray()

    def start_response(status: str, headers: list[tuple[str, str]], error: Any = None) -> Call:
        head[:] = [int(status[:3]), headers]
        return body.extend

    result = app(environ, start_response)
    try:
        for piece in result:
            body += piece
            if len(body) > MAX_CHECK_BODY_BYTES:
                raise HealthCheckFailed(f"its response has more than {MAX_CHECK_BODY_BYTES} bytes")
    finally:
        if hasattr(result, "close"):
            result.close()
    if not head:
        raise HealthCheckFailed("it ended without a response")
    return Reply(head[0], [(name.lower(), value) for name, value in head[1]], bytes(body))


async def ask_rsgi(app: Call, scope: Any, target: str) -> Reply:
    """Send a GET request to an RSGI app: `app(scope, protocol)`. The arguments are as for `ask_asgi`."""
    path, _, query = target.partition("?")
    protocol = _Protocol()
    await _awaited(app(_Scope(scope, path, query), protocol))
    if protocol.reply is None:
        raise HealthCheckFailed("it ended without a response")
    return protocol.reply


async def _awaited(result: Awaitable[Any]) -> None:
    await result


class _Headers(dict[str, str]):
    """Headers with the interface that RSGI requires."""

    def get_all(self, name: str) -> list[str]:
        return [self[name]] if name in self else []


class _Scope:
    """The scope of another request, with its own method, path, query and headers."""

    def __init__(self, outer: Any, path: str, query: str) -> None:
        self._outer = outer
        self.method = "GET"
        self.path = unquote(path)
        self.query_string = query
        host = outer.headers.get("host")
        self.headers = _Headers({"user-agent": _USER_AGENT} | ({} if host is None else {"host": host}))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outer, name)


class _Protocol:
    """The protocol of an RSGI request: takes the response by any of its methods."""

    def __init__(self) -> None:
        self.reply: Reply | None = None

    async def __call__(self) -> bytes:
        return b""

    def __aiter__(self) -> Iterator[bytes]:
        return self  # type: ignore[return-value]

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration

    async def client_disconnect(self) -> None:
        await asyncio.Event().wait()

    def response_empty(self, status: int, headers: list[tuple[str, str]]) -> None:
        self._respond(status, headers, b"")

    def response_str(self, status: int, headers: list[tuple[str, str]], body: str) -> None:
        self._respond(status, headers, body.encode())

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self._respond(status, headers, body)

    def response_file(self, status: int, headers: list[tuple[str, str]], file: str) -> None:
        with open(file, "rb") as opened:
            self._respond(status, headers, opened.read(MAX_CHECK_BODY_BYTES + 1))

    def response_file_range(self, status: int, headers: list[tuple[str, str]], file: str, start: int, end: int) -> None:
        with open(file, "rb") as opened:
            opened.seek(start)
            self._respond(status, headers, opened.read(min(end - start, MAX_CHECK_BODY_BYTES + 1)))

    def response_stream(self, status: int, headers: list[tuple[str, str]]) -> _ResponseStream:
        self._respond(status, headers, b"")
        return _ResponseStream(self)

    def _respond(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        if len(body) > MAX_CHECK_BODY_BYTES:
            raise HealthCheckFailed(f"its response has more than {MAX_CHECK_BODY_BYTES} bytes")
        self.reply = Reply(status, [(name.lower(), value) for name, value in headers], body)


class _ResponseStream:
    """The stream of an RSGI response: takes the body in pieces."""

    def __init__(self, protocol: _Protocol) -> None:
        self._protocol = protocol

    async def send_bytes(self, data: bytes) -> None:
        reply = self._protocol.reply
        assert reply is not None
        self._protocol._respond(reply.status, reply.headers, reply.body + data)

    async def send_str(self, data: str) -> None:
        await self.send_bytes(data.encode())
