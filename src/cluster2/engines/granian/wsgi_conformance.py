"""What PEP 3333 promises a WSGI app, and granian's own layer doesn't keep.

- `start_response` returns no `write`, and is heard only until the app has returned: the status of an app that calls it with its
  first part, as generators do, is lost. Here what is written is collected, and the first part is taken before granian looks.
- Its input knows neither `readline(n)` nor `read(-1)`. Here it is read through `pep3333.body_of`, made when it is used first.
- A part of a body that isn't bytes ends the response, which looks whole to the client. Here it is an error, which cuts it off.
- A body that has raised isn't closed. Here it is.
- The threads that an app starts in granian's threads would be daemons, and be cut off at the worker's end. Here they aren't.
- Its threads keep the context variables that a request has set, for the next one. Here each request has a context of its own,
  with what was set when the worker began, as on engine `http`.

What isn't to be had: what is written reaches the client when the app has returned, not before.
"""

from __future__ import annotations

import contextvars
import io
from collections.abc import Callable, Iterator
from typing import Any

from ...linux.app_threads import adopt_native_thread
from ..wsgi.pep3333 import FILE_BLOCK_BYTES, App, ExcInfo, WsgiViolation, body_of


def conforming(app: App) -> App:
    """Return what granian may call in place of an app. A body in one piece costs 2 µs more."""
    base = contextvars.copy_context()

    def called(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        context = base.copy()
        return context.run(_call, app, environ, _Start(start_response), context)

    return called


def _call(app: App, environ: dict[str, Any], start: _Start, context: contextvars.Context) -> Any:
    adopt_native_thread()
    environ["wsgi.input"] = _Input(environ["wsgi.input"])
    result = app(environ, start)
    if isinstance(result, list | tuple) and start.started:
        start.sent = True
        return [*start.take(), *result]
    body = _ResponseBody(result, start, context)
    try:
        body.read_first_part()
    except BaseException:
        body.end()
        raise
    return body


class _Start:
    """`start_response`, and the `write` that it returns.

    Attributes:
        started: it was called.
        sent: granian has taken status and headers.
    """

    __slots__ = ("_inner", "_written", "sent", "started")

    def __init__(self, inner: Callable[..., Any]) -> None:
        self._inner = inner
        self._written: list[bytes] = []
        self.started = self.sent = False

    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """Take status and headers."""
        if exc_info:
            try:
                if self.sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # else this frame and the traceback keep each other alive
        elif self.started:
            raise WsgiViolation("the app called start_response twice, without exc_info")
        self._inner(status, headers)
        self.started = True
        return self._write

    def _write(self, data: bytes) -> None:
        self._written.append(_bytes(data))

    def take(self) -> list[bytes]:
        """Return what was written since the last time."""
        taken, self._written = self._written, []
        return taken


class _ResponseBody:
    """A body that comes part by part."""

    __slots__ = ("_close", "_context", "_iterator", "_parts", "_start")

    def __init__(self, result: Any, start: _Start, context: contextvars.Context) -> None:
        self._close = getattr(result, "close", None)
        self._iterator = iter(result)
        self._start = start
        self._context = context
        self._parts: list[bytes] = []

    def read_first_part(self) -> None:
        """Take the first part that isn't empty, if there is one: the app may start its response with it."""
        self._parts = self._more()
        if not self._start.started:
            raise WsgiViolation("the app gave a part of its body, or ended, before it called start_response")
        self._start.sent = True

    def _more(self) -> list[bytes]:
        """Return what comes next, without empty parts, which granian takes for the end; nothing at the end."""
        for part in self._iterator:
            if parts := [each for each in (*self._start.take(), _bytes(part)) if each]:
                return parts
        return [each for each in self._start.take() if each]

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._parts:
            try:
                self._parts = self._context.run(self._more)
            except BaseException:
                self.close()
                raise
            if not self._parts:
                raise StopIteration
        return self._parts.pop(0)

    def close(self) -> None:
        """Close what the app returned."""
        self._context.run(self.end)

    def end(self) -> None:
        """Do so once, within the context."""
        close, self._close = self._close, None
        if close is not None:
            close()


def _bytes(part: object) -> bytes:
    if not isinstance(part, bytes):
        raise WsgiViolation(f"the app's body has a part of type {type(part).__name__}; it must be bytes")
    return part


class _Input:
    """`wsgi.input`. Few requests read it, so its buffer is made when one does."""

    __slots__ = ("_inner", "_made")

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._made: io.BufferedReader | None = None

    def _reader(self) -> io.BufferedReader:
        if self._made is None:
            read = self._inner.read
            self._made = body_of(lambda: bytes(read(FILE_BLOCK_BYTES)))
        return self._made

    def read(self, size: int | None = -1) -> bytes:
        """Return so many bytes, or all of them."""
        return self._reader().read(size)

    def readline(self, size: int | None = -1) -> bytes:
        """Return a line, or the beginning of one."""
        return self._reader().readline(size)

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Return lines, until they have so many bytes."""
        return self._reader().readlines(-1 if hint is None else hint)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._reader())
