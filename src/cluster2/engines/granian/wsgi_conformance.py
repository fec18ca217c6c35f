"""The parts of PEP 3333 that granian's own WSGI layer leaves out, put around the app.

granian's layer differs from the PEP in these points, each of which this module corrects:

- `start_response` returns no `write`, and granian reads its arguments when the app returns. An app that calls it together
  with its first part, as generators do, loses its status. Here `write` collects its data, and the first part is read before
  granian reads the status.
- Nothing checks a response. granian sends a body that comes in one piece with whatever Content-Length the app declares, so
  the surplus bytes look like the next response, and it drops a header whose value has a line break without a log line. Here
  `pep3333.Response` checks status, headers and length, as on engine `http`. A violation is answered 500 before the first
  part, and cuts the connection after it. granian logs it, and the exception's text names the request.
- Its input has neither `readline(n)` nor `read(-1)`. Here `pep3333.body_of` reads it, made when the app reads for the first time.
- A part of a body that isn't bytes ends the response, which then looks whole to the client. Here it is a violation.
- A body that has raised isn't closed. Here it is.
- Its threads look like daemons to `threading`, so the threads that an app starts in them would be daemons too, and be cut off
  at the worker's end. Here `adopt_native_thread` corrects that.
- Its threads keep the context variables that a request has set, and show them to the next request. Here each request runs in
  a context of its own, a copy of the worker's, as on engine `http`.

Not corrected: what an app gives to `write` reaches the client when the app has returned, not before. granian encodes the values
of response headers as UTF-8, where the PEP asks for latin-1.
"""

from __future__ import annotations

import contextvars
import io
from collections.abc import Callable, Iterator
from typing import Any

from ...linux.app_threads import adopt_native_thread
from ..aborting import readable
from ..wsgi.pep3333 import FILE_BLOCK_BYTES, App, ExcInfo, Response, WsgiViolation, body_of


def conforming(app: App) -> App:
    """Return the callable that granian calls in place of an app.

    For a body in one piece it adds 2.6 µs to a request, of which the checks take 1.5.
    """
    base = contextvars.copy_context()

    def called(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        context = base.copy()
        return context.run(_call, app, environ, _Start(environ["REQUEST_METHOD"], start_response), context)

    return called


def _call(app: App, environ: dict[str, Any], start: _Start, context: contextvars.Context) -> Any:
    adopt_native_thread()
    environ["wsgi.input"] = _Input(environ["wsgi.input"])
    body: _ResponseBody | None = None
    try:
        result = app(environ, start)
        if isinstance(result, list | tuple):
            return start.whole(result)
        body = _ResponseBody(result, start, context, environ)
        body.read_first_part()
    except BaseException as error:
        _name_request(error, environ)
        if body is not None:
            body.end()
        raise
    return body


def _name_request(error: BaseException, environ: dict[str, Any]) -> None:
    """Put method and path before a violation's text, since granian's log line names no request, and leaves notes out."""
    if isinstance(error, WsgiViolation):
        path = readable(environ["PATH_INFO"].encode("utf-8", "surrogatepass"))
        error.args = (f"{environ['REQUEST_METHOD']} {path}: {error}",)


class _Start:
    """The `start_response` of one request, with the `write` that it returns.

    Attributes:
        response: checks what the app says, and knows whether a part was given away.
    """

    __slots__ = ("_inner", "_written", "response")

    def __init__(self, method: str, inner: Callable[..., Any]) -> None:
        self._inner = inner
        self._written: list[bytes] = []
        self.response = Response(method, self._written.append)

    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """Check status and headers, and hand them to granian."""
        write = self.response.start_response(status, headers, exc_info)
        self._inner(status, headers)
        return write

    def whole(self, parts: list[bytes] | tuple[bytes, ...]) -> list[bytes]:
        """Return a body of which the app has returned all parts, behind what it has written."""
        response = self.response
        if not response.begun:
            body = response.whole(parts)
            # hyper leaves the body of a HEAD request out by itself, and needs it here to compute the Content-Length.
            return [*parts] if response.bodiless else [body]
        for part in parts:
            response.write(part)
        response.finish()
        return self.take()

    def take(self) -> list[bytes]:
        """Return the parts since the last call."""
        taken = self._written[:]  # `Response` keeps a reference to the list's `append`, so the list stays the same
        self._written.clear()
        return taken


class _ResponseBody:
    """A body that comes part by part."""

    __slots__ = ("_close", "_context", "_environ", "_iterator", "_parts", "_start")

    def __init__(self, result: Any, start: _Start, context: contextvars.Context, environ: dict[str, Any]) -> None:
        self._close = getattr(result, "close", None)
        self._iterator = iter(result)
        self._start = start
        self._context = context
        self._environ = environ
        self._parts: list[bytes] = []

    def read_first_part(self) -> None:
        """Read the first part that isn't empty, if there is one, since the app may start its response with it."""
        self._parts = self._more()
        self._start.response.begun = True  # granian reads status and headers now: they can't change any more

    def _more(self) -> list[bytes]:
        """Return the next parts, or an empty list at the end. Leave empty parts out, which granian takes for the end."""
        response = self._start.response
        for part in self._iterator:
            response.write(part)
            if parts := self._start.take():
                return parts
            if (
                part and response.bodiless
            ):  # hyper drops it, and granian stops reading: an endless body must not be read here
                return [part]
        response.finish()
        return self._start.take()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._parts:
            # granian calls this from a thread of its own, so the request's context has to be entered for each part.
            try:
                self._parts = self._context.run(self._more)
            except BaseException as error:
                _name_request(error, self._environ)
                self.close()
                raise
            if not self._parts:
                raise StopIteration
        return self._parts.pop(0)

    def close(self) -> None:
        """Close what the app returned."""
        self._context.run(self.end)

    def end(self) -> None:
        """Close it once. The caller runs this within the request's context."""
        close, self._close = self._close, None
        if close is not None:
            close()


class _Input:
    """`wsgi.input`. Few requests read it, so its buffer is made when the app reads for the first time."""

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
        """Return up to `size` bytes, or all that are left."""
        return self._reader().read(size)

    def readline(self, size: int | None = -1) -> bytes:
        """Return a line, or the first `size` bytes of one."""
        return self._reader().readline(size)

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Return lines, until they have `hint` bytes together."""
        return self._reader().readlines(-1 if hint is None else hint)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._reader())
