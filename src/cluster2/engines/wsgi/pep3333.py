"""What PEP 3333 says about a request and its response, without a thread, a loop or a socket.

`EnvironBuilder` turns an ASGI scope into an environ; `Response` is what an app starts, writes and ends, and refuses what the PEP
forbids; `body_of` and `BodyReader` are `wsgi.input`. Where the PEP leaves room:

- PATH_INFO is made of the raw path's bytes, percent-decoded and read as latin-1 (the PEP's "native strings"); SCRIPT_NAME is
  `root_path`, REQUEST_URI and RAW_URI are what the client sent.
- A header whose name has an underscore is dropped: it would pose as the one with a hyphen. Headers that come several times
  are joined with commas, cookies with semicolons (RFC 9113, 8.2.3).
- Hop-by-hop headers of the app are dropped, but for `Connection: close`: the engine frames the response.
- A body that is all there (a list or a tuple) gets its Content-Length. One that is longer or shorter than the app has
  declared is an error: before the first byte it becomes a 500, after it the connection ends, so that the client can't take a
  part for the whole.
- Status and reason: an ASGI server writes the reason that belongs to the code. 1xx is none of an app's.
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
Header = tuple[bytes, bytes]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType]

FILE_BLOCK_BYTES = 65536
"""Bytes that are read at a time from a file that the app wraps, and from the client."""
MAX_CACHED_NAMES = 1000
"""Names of headers that are remembered; clients can invent any number of them."""
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
CONTROL_BYTES = bytes([*range(9), *range(10, 32), 127])
"""Control characters that no header's value may have (RFC 9110, 5.5): all but the tab."""
_HOP_BY_HOP = frozenset(
    {"keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}


class WsgiViolation(Exception):
    """The app broke PEP 3333."""


class ClientGone(ConnectionResetError):
    """The client has left while the app was reading from it or writing to it."""


class FileWrapper:
    """`wsgi.file_wrapper`: a file as an iterable of blocks."""

    def __init__(self, filelike: Any, block_size: int = FILE_BLOCK_BYTES) -> None:
        self._read: Callable[[int], bytes] = filelike.read
        self._size = block_size
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        """The next block."""
        block = self._read(self._size)
        if not block:
            raise StopIteration
        return block


class EnvironBuilder:
    """Makes environs of scopes: those of one app."""

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
        """The environ of a request that ASGI describes, but for `wsgi.input`."""
        base = self.base(scope["scheme"], scope["client"], scope["server"])
        made = self.make(
            base, scope["method"], scope["http_version"], scope["path"], scope["raw_path"], scope["query_string"]
        )
        self.put_headers(made, scope["headers"])
        return made

    def base(self, scheme: str, client: Any, server: Any) -> Environ:
        """What all requests of a connection have in common; those through a proxy that is believed differ.

        Args:
            client, server: as in an ASGI scope.
        """
        environ = self._base.copy()
        environ["wsgi.url_scheme"] = scheme
        if scheme == "https":
            environ["HTTPS"] = "on"
        if client:
            environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = client[0], str(client[1])
        else:  # of a Unix socket; frameworks expect to find something
            environ["REMOTE_ADDR"] = ""
        name, port = server or ("", None)
        if port is not None:
            environ["SERVER_NAME"], environ["SERVER_PORT"] = name, str(port)
        return environ

    def make(self, base: Environ, method: str, version: str, path: str, raw_path: bytes, query: bytes) -> Environ:
        """The environ of a request, but for its headers and `wsgi.input`.

        Args:
            base: see `base`. It isn't changed.
            path: decoded, as in an ASGI scope.
        """
        environ = base.copy()
        if b"%" in raw_path:
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

    def put_headers(self, environ: Environ, headers: Iterable[Header]) -> None:
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
        """The name by which an app finds a header; "": not at all."""
        key = "" if b"_" in name else name.decode("latin-1").upper().replace("-", "_")
        if key and key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
        if len(self._keys) < MAX_CACHED_NAMES:
            self._keys[name] = key
        return key


def _named(host: str, scheme: str) -> tuple[str, str]:
    """Name and port where the socket has none, by the request's own word."""
    name, colon, port = host.rpartition(":")
    if colon and port.isdigit():
        return name or "localhost", port
    return host or "localhost", _PORTS[scheme]


def body_length(environ: Environ) -> int | None:
    """Bytes of a request's body; None: only its end will tell."""
    if "HTTP_TRANSFER_ENCODING" in environ:
        return None
    length = environ.get("CONTENT_LENGTH")
    if length:
        return int(length)  # the parser has checked it
    return 0 if environ["SERVER_PROTOCOL"].startswith("HTTP/1") else None


class Response:
    """What an app answers to one request, piece by piece.

    Attributes:
        status: 0 before `start_response`.
        lines: the app's headers for the wire, each with a line end before it.
        length: of the body, if the app has declared it.
        close: the app wants the connection to end.
        own: the app has a header of its own that servers usually write: `date`, `server`.
        bodiless: the answer has no body, whatever the app yields (HEAD, 204, 304).
        begun: a part of the body was given away, so that the head can't change any more.
        complete: all of the body that was declared has been given away.
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
        """Nothing is known yet.

        Args:
            emit: takes each part of the body, none of them empty; `complete` and `begun` are up to date then.
        """
        self._emit = emit
        self._head = self.bodiless = method == "HEAD"
        self.status = self._left = 0
        self.lines = b""
        self.length: int | None = None
        self.own: set[bytes] | None = None
        self.close = self.begun = self.complete = False

    @property
    def headers(self) -> list[Header]:
        """The app's headers, as ASGI has them."""
        pairs = [line.partition(b": ") for line in self.lines.split(b"\r\n")[1:]]
        return [(name, value) for name, _, value in pairs] + ([(b"connection", b"close")] if self.close else [])

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """What the app calls before it answers."""
        if exc_info:
            try:
                if self.begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # else this frame and the traceback keep each other alive
            self.length, self.own, self.close, self.bodiless, self._left = None, None, False, self._head, 0
        elif self.status:
            raise WsgiViolation("the app called start_response twice, without exc_info")
        try:
            code = _codes[status]
        except (KeyError, TypeError):
            code = _code(status)
        # A 304 may tell the length of what hasn't changed, a 204 has none to tell (RFC 9110, 8.6).
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
        # Two parts for each header, and two control characters: its line end.
        if len(lines) - len(lines.translate(None, CONTROL_BYTES)) != len(parts):
            name = next(name for name, value in headers if _CONTROL.search(value))
            raise WsgiViolation(f"the app's header {name!r} has a control character in its value")
        self.lines, self.status = lines, code
        return self.write

    def _line(self, name: str, value: str) -> str:
        """How a header's line begins; "": it isn't written here, or not at all."""
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
        elif len(_lines) < MAX_CACHED_NAMES:
            _lines[name] = line
        return line

    def write(self, data: bytes) -> None:
        """A part of the body: what `start_response` returns, and what each part that the app yields goes through."""
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
                self._lies("longer")
            self._left -= len(data)
            self.complete = not self._left
        self.begun = True
        self._emit(data)

    def parts(self, result: Iterable[bytes]) -> Iterable[bytes]:
        """What the app returned, part by part; of a wrapped file only as much as was declared, as the PEP has it."""
        return self._clipped(result) if isinstance(result, FileWrapper) else result

    def _clipped(self, file: FileWrapper) -> Iterator[bytes]:
        for part in file:
            if self.length is not None and len(part) >= self._left:
                yield part[: self._left]
                return
            yield part

    def whole(self, parts: list[bytes] | tuple[bytes, ...]) -> bytes:
        """The body, where all of it is there and nothing was given away."""
        for part in parts:
            if not isinstance(part, bytes):
                raise WsgiViolation(f"the app's body has a part of type {type(part).__name__}; it must be bytes")
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if not self.status:
            self._never_started()
        if self.bodiless:
            return b""
        if self.length is None:
            self.lines += b"\r\ncontent-length: %d" % len(body)
        elif len(body) != self.length:
            self._lies("longer" if len(body) > self.length else "shorter")
        self.begun = self.complete = True
        return body

    def finish(self) -> None:
        """The app has nothing more to say."""
        if not self.status:
            self._never_started()
        if self._left and not self.bodiless:
            self._lies("shorter")

    def release(self) -> None:
        """Let go of what takes the parts of the body: what the app still writes goes nowhere."""
        self._emit = _nowhere

    def _never_started(self) -> NoReturn:
        raise WsgiViolation("the app returned without a call of start_response")

    def _lies(self, how: str) -> NoReturn:
        raise WsgiViolation(f"the app's body is {how} than its Content-Length, {self.length}")

    def _declare(self, value: str) -> str:
        """Note the length of the body. Returns how its line begins; "": it has none."""
        known, length = self.length, int(value) if value.isdecimal() and value.isascii() else -1
        if length < 0 or (known is not None and known != length):
            raise WsgiViolation(f"the app's Content-Length {value!r} is no length, or not its only one")
        self.length = self._left = length
        return "" if self._bare or known is not None else _LENGTH


_LENGTH = "\r\ncontent-length: "
_lines: dict[str, str] = {"Content-Length": _LENGTH, "content-length": _LENGTH}
"""Names of headers that were checked, and how their lines begin; "": they aren't the app's to send."""
_codes: dict[str, int] = {}


def _nowhere(data: bytes) -> None:
    """Take a part of the body for nobody."""


def _code(status: str) -> int:
    code = str(status)[:3]
    if not isinstance(cast(object, status), str) or not (
        code.isascii() and code.isdigit() and 200 <= int(code) <= 599 and status[3:4] in ("", " ")
    ):
        raise WsgiViolation(f"the app's status {status!r} isn't one that ends a request, such as '200 OK'")
    if len(_codes) < MAX_CACHED_NAMES:
        _codes[status] = int(code)
    return int(code)


class BodyReader(io.RawIOBase):
    """A request's body, read from the client when the app asks for it. `io.BufferedReader` around it makes lines of it."""

    def __init__(self, more: Callable[[], bytes]) -> None:
        """Read by `more`, which returns b"" at the end."""
        self._more = more
        self._rest = b""
        self._ended = False

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """What came last, or what comes next. Raises ClientGone."""
        if not self._rest and not self._ended:
            self._rest = self._more()
            self._ended = not self._rest
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def body_of(more: Callable[[], bytes]) -> io.BufferedReader:
    """`wsgi.input` over `more`, which returns b"" at the end."""
    return io.BufferedReader(cast(Any, BodyReader(more)), FILE_BLOCK_BYTES)
