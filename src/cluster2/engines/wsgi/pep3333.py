"""The rules of PEP 3333 for requests and responses, without a thread, a loop or a socket.

`EnvironBuilder` turns a request into an environ. `Response` takes what an app starts, writes and ends, and refuses what the PEP
forbids. `body_of` makes `wsgi.input`. The PEP leaves these choices:

- PATH_INFO is made of the raw path's bytes, percent-decoded and read as latin-1 (the PEP's "native strings"). SCRIPT_NAME is
  `root_path`. REQUEST_URI and RAW_URI are the target as the client sent it.
- A header whose name has an underscore is dropped, since it would pose as the one with a hyphen. Headers that come several times
  are joined with commas, cookies with semicolons (RFC 9113, 8.2.3).
- Hop-by-hop headers of the app are dropped, except `Connection: close`, since the engine frames the response.
- A complete body (a list or a tuple) gets its Content-Length. A body that is longer or shorter than the app has declared is an
  error. Before the first byte was sent it becomes a 500. After it the connection ends, so that the client can't take a part for
  the whole.
- The reason phrase is the one that belongs to the code. An app can't send a 1xx status.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, NoReturn, cast
from urllib.parse import unquote_to_bytes

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], None]]
App = Callable[[Environ, Start], Iterable[bytes]]
_Header = tuple[bytes, bytes]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType]

FILE_BLOCK_BYTES = 65536
"""Bytes that are read at a time from a file that the app wraps, and from the client."""
_MAX_CACHED_NAMES = 1000
"""Names of headers that are cached. Clients and apps can invent any number of them."""
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
CONTROL_BYTES = bytes([*range(9), *range(10, 32), 127])
"""The control characters that no header's value may have (RFC 9110, 5.5): all except the tab."""
_HOP_BY_HOP = frozenset(
    {"keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}


class WsgiViolation(Exception):
    """The app broke PEP 3333."""


class ClientGone(ConnectionResetError):
    """The client has left while the app was reading from it or writing to it."""


class FileWrapper:
    """The `wsgi.file_wrapper`: a file as an iterable of blocks."""

    def __init__(self, filelike: Any, block_size: int = FILE_BLOCK_BYTES) -> None:
        self._read: Callable[[int], bytes] = filelike.read
        self._size = block_size
        if hasattr(filelike, "close"):  # the PEP: the wrapper has `close` exactly if the file has it
            self.close = filelike.close

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        """Return the next block."""
        block = self._read(self._size)
        if not block:
            raise StopIteration
        return block


class EnvironBuilder:
    """A builder of environs for one app's requests."""

    def __init__(self, *, root_path: str, multithread: bool, multiprocess: bool) -> None:
        self._base: Environ = {
            "SCRIPT_NAME": root_path.encode().decode("latin-1"),
            "SERVER_SOFTWARE": "cluster2",
            "wsgi.version": (1, 0),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": multithread,
            "wsgi.multiprocess": multiprocess,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,
        }
        self._root = len(self._base["SCRIPT_NAME"])
        self._keys: dict[bytes, str] = {}

    def of_scope(self, scope: Mapping[str, Any]) -> Environ:
        """Return the environ of a request with an ASGI scope, without `wsgi.input`."""
        base = self.base(scope["scheme"], scope["client"], scope["server"])
        made = self.make(
            base, scope["method"], scope["http_version"], scope["path"], scope["raw_path"], scope["query_string"]
        )
        self.put_headers(made, scope["headers"])
        return made

    def base(self, scheme: str, client: Any, server: Any) -> Environ:
        """Return the part of an environ that all requests of a connection share, unless a trusted proxy names other clients.

        Args:
            scheme, client, server: as in an ASGI scope.
        """
        environ = self._base.copy()
        environ["wsgi.url_scheme"] = scheme
        if scheme == "https":
            environ["HTTPS"] = "on"
        if client:
            environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = client[0], str(client[1])
        else:  # a Unix socket: frameworks expect the key
            environ["REMOTE_ADDR"] = ""
        name, port = server or ("", None)
        if port is not None:
            environ["SERVER_NAME"], environ["SERVER_PORT"] = name, str(port)
        return environ

    def make(self, base: Environ, method: str, version: str, path: str, raw_path: bytes, query: bytes) -> Environ:
        """Return the environ of a request, without its headers and `wsgi.input`.

        Args:
            base: see `base`. It isn't changed.
            method, version, raw_path, query: as in an ASGI scope.
            path: decoded, as in an ASGI scope.
        """
        environ = base.copy()
        if b"%" in raw_path:  # the scope's path is decoded as UTF-8
            path = unquote_to_bytes(raw_path).decode("latin-1")
        environ["REQUEST_METHOD"] = method
        environ["PATH_INFO"] = path[self._root :] if self._root else path
        target = raw_path.decode("latin-1")
        if query:
            text = query.decode("latin-1")
            environ["QUERY_STRING"] = text
            target = f"{target}?{text}"
        else:
            environ["QUERY_STRING"] = ""
        environ["RAW_URI"] = environ["REQUEST_URI"] = target
        environ["SERVER_PROTOCOL"] = "HTTP/1.1" if version == "1.1" else "HTTP/" + version
        return environ

    def put_headers(self, environ: Environ, headers: Iterable[_Header]) -> None:
        """Put a request's headers into its environ."""
        keys = self._keys
        for name, value in headers:
            key = keys.get(name)
            if key is None:
                key = self._key(name)
            if not key:
                continue
            text = value.decode("latin-1")
            if key in environ:
                text = environ[key] + ("; " if key == "HTTP_COOKIE" else ",") + text
            environ[key] = text
        if "SERVER_NAME" not in environ:
            host, scheme = environ.get("HTTP_HOST", ""), environ["wsgi.url_scheme"]
            environ["SERVER_NAME"], environ["SERVER_PORT"] = _named(host, scheme)

    def _key(self, name: bytes) -> str:
        """Return a header's key in the environ; "": the header is dropped."""
        key = "" if b"_" in name else name.decode("latin-1").upper().replace("-", "_")
        if key and key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
        if len(self._keys) < _MAX_CACHED_NAMES:
            self._keys[name] = key
        return key


def _named(host: str, scheme: str) -> tuple[str, str]:
    """Return the server's name and port from the Host header, for a socket that has none."""
    name, colon, port = host.rpartition(":")
    if colon and port.isdigit():
        return name or "localhost", port
    return host or "localhost", _PORTS[scheme]


def body_length(environ: Environ) -> int | None:
    """Return the bytes of a request's body; None: not known before its end."""
    if "HTTP_TRANSFER_ENCODING" in environ:
        return None
    length = environ.get("CONTENT_LENGTH")
    if length:
        return int(length)  # the parser has checked it
    return 0 if environ["SERVER_PROTOCOL"].startswith("HTTP/1") else None


class Response:
    """An app's response to one request, which it makes piece by piece.

    Attributes:
        status: 0 before `start_response`.
        lines: the app's headers for the wire, each with a line end before it.
        length: the declared length of the body; None: the app hasn't declared one.
        close: the app wants the connection to end.
        own: the headers of the app that servers usually write themselves (`date`, `server`), or None.
        bodiless: the response has no body, whatever the app yields (HEAD, 204, 304).
        begun: a part of the body was emitted, so the head can't change any more.
        complete: all of the declared body was emitted.
    """

    __slots__ = (
        "_bare",
        "_emit",
        "_head",
        "_left",
        "begun",
        "bodiless",
        "close",
        "complete",
        "length",
        "lines",
        "own",
        "status",
    )

    def __init__(self, method: str, emit: Callable[[bytes], None]) -> None:
        """Begin without a status.

        Args:
            method: the method of the request.
            emit: takes each part of the body that isn't empty. `complete` and `begun` are up to date when it is called.
        """
        self._emit = emit
        self._head = self.bodiless = method == "HEAD"
        self.status = self._left = 0
        self.lines = b""
        self.length: int | None = None
        self.own: set[bytes] | None = None
        self.close = self.begun = self.complete = False

    @property
    def headers(self) -> list[_Header]:
        """The app's headers in ASGI's form."""
        pairs = [line.partition(b": ") for line in self.lines.split(b"\r\n")[1:]]
        return [(name, value) for name, _, value in pairs] + ([(b"connection", b"close")] if self.close else [])

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """Take status and headers from the app. Return `write`. Raises WsgiViolation, or the exception of `exc_info`."""
        if exc_info:
            try:
                if self.begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # else this frame and the traceback keep each other alive
            self.length, self.own, self.close, self.bodiless, self._left = None, None, False, self._head, 0
        elif self.status:  # PEP 3333: only an error page may replace a response that was started
            raise WsgiViolation("the app called start_response twice, without exc_info")
        try:
            code = _codes[status]
        except (KeyError, TypeError):
            code = _code(status)
        # A 304 may have the length of the unchanged content, a 204 must not have a length (RFC 9110, 8.6).
        self._bare = code == 204
        if code == 204 or code == 304:
            self.bodiless = True
        parts: list[str] = []
        try:
            for name, value in headers:
                line = _lines.get(name)
                if line is None:
                    line = self._line(name, value)
                elif line is _LENGTH:
                    value = value.strip()
                    line = self._declare(value)
                if line:
                    parts += line, value
            lines = "".join(parts).encode("latin-1")
        except (TypeError, ValueError, AttributeError) as error:
            raise WsgiViolation(f"the app's headers aren't pairs of texts in latin-1: {error}") from error
        # Each header has two parts, and two control characters (its line end): so the numbers are equal.
        if len(lines) - len(lines.translate(None, CONTROL_BYTES)) != len(parts):
            name = next(name for name, value in headers if _CONTROL.search(value))
            raise WsgiViolation(f"the app's header {name!r} has a control character in its value")
        self.lines, self.status = lines, code
        return self.write

    def _line(self, name: str, value: str) -> str:
        """Check a header's name. Return the beginning of its line; "": the header isn't written, or the engine writes it."""
        low = name.lower()
        if low == "content-length":
            return self._declare(value.strip())
        if not _TOKEN.fullmatch(name):
            raise WsgiViolation(f"the app's header {name!r} has a name that HTTP doesn't allow")
        if low == "connection":
            self.close = self.close or value.strip().lower() == "close"
            return ""
        line = "" if low in _HOP_BY_HOP else f"\r\n{low}: "
        if low in ("date", "server"):
            self.own = {low.encode()} | (self.own or set())
        elif (
            len(_lines) < _MAX_CACHED_NAMES
        ):  # `date` and `server` aren't cached: each response has to note them in `own`
            _lines[name] = line
        return line

    def write(self, data: bytes) -> None:
        """Take a part of the body. `start_response` returns this, and parts that the app yields pass through it."""
        if not isinstance(data, bytes):
            raise WsgiViolation(f"the app's body has a part of type {type(data).__name__}; it must be bytes")
        if not data:
            return
        if not self.status:
            raise WsgiViolation("the app gave a part of its body before it called start_response")
        if self.bodiless:
            return
        if self.length is not None:
            if len(data) > self._left:
                self._wrong_length("longer")
            self._left -= len(data)
            self.complete = not self._left
        self.begun = True
        self._emit(data)

    def parts(self, result: Iterable[bytes]) -> Iterable[bytes]:
        """Return the parts of the app's result. A wrapped file ends at the declared length, as the PEP requires."""
        return self._clipped(result) if isinstance(result, FileWrapper) else result

    def _clipped(self, file: FileWrapper) -> Iterator[bytes]:
        for part in file:
            if self.length is not None and len(part) >= self._left:
                yield part[: self._left]
                return
            yield part

    def whole(self, parts: list[bytes] | tuple[bytes, ...]) -> bytes:
        """Return the body of a complete result, of which nothing was emitted. Raises WsgiViolation."""
        for part in parts:
            if not isinstance(part, bytes):
                raise WsgiViolation(f"the app's body has a part of type {type(part).__name__}; it must be bytes")
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if not self.status:
            self._not_started()
        if self.bodiless:
            return b""
        if self.length is None:
            self.lines += b"\r\ncontent-length: %d" % len(body)
        elif len(body) != self.length:
            self._wrong_length("longer" if len(body) > self.length else "shorter")
        self.begun = self.complete = True
        return body

    def finish(self) -> None:
        """Check the response after its last part. Raises WsgiViolation."""
        if not self.status:
            self._not_started()
        if self._left and not self.bodiless:
            self._wrong_length("shorter")

    def release(self) -> None:
        """Drop the reference to `emit`. Parts that the app still writes are dropped."""
        self._emit = _discard

    def _not_started(self) -> NoReturn:
        raise WsgiViolation("the app returned without a call of start_response")

    def _wrong_length(self, how: str) -> NoReturn:
        raise WsgiViolation(f"the app's body is {how} than its Content-Length, {self.length}")

    def _declare(self, value: str) -> str:
        """Note the length of the body. Return the beginning of its line; "": the line isn't written."""
        known, length = self.length, int(value) if value.isdecimal() and value.isascii() else -1
        if length < 0 or (known is not None and known != length):
            raise WsgiViolation(f"the app's Content-Length {value!r} is no length, or not its only one")
        self.length = self._left = length
        return "" if self._bare or known is not None else _LENGTH


_LENGTH = "\r\ncontent-length: "
_lines: dict[str, str] = {"Content-Length": _LENGTH, "content-length": _LENGTH}
"""Checked names of headers, with the beginnings of their lines; "": an app can't send it."""
_codes: dict[str, int] = {}
"""Checked statuses of apps, with their codes."""


def _discard(data: bytes) -> None:
    """Drop a part of the body."""


def _code(status: str) -> int:
    code = str(status)[:3]
    if not isinstance(cast(object, status), str) or not (
        code.isascii() and code.isdigit() and 200 <= int(code) <= 599 and status[3:4] in ("", " ")
    ):
        raise WsgiViolation(f"the app's status {status!r} isn't one that ends a request, such as '200 OK'")
    if len(_codes) < _MAX_CACHED_NAMES:
        _codes[status] = int(code)
    return int(code)


class _BodyReader(io.RawIOBase):
    """A request's body, read from the client when the app reads. `io.BufferedReader` around it splits it into lines."""

    def __init__(self, more: Callable[[], bytes]) -> None:
        """Read by `more`, which returns b"" at the end."""
        self._more = more
        self._rest = b""
        self._ended = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Copy the rest of the last message, or the next one. Raises ClientGone."""
        if not self._rest and not self._ended:
            self._rest = self._more()
            self._ended = not self._rest
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def body_of(more: Callable[[], bytes]) -> io.BufferedReader:
    """Return a `wsgi.input` over `more`, which returns b"" at the end."""
    return io.BufferedReader(cast(Any, _BodyReader(more)), FILE_BLOCK_BYTES)
