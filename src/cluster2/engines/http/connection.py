"""The state machine of an HTTP/1.1 connection (RFC 9112), on the public API of httptools.

A connection is in one of these states. Its timeout, and whether it may move to another process, follow from the state.

| state | meaning | leaves it when |
|---|---|---|
| `IDLE` | between two requests: the last response is complete, no byte of the next request has come | a byte comes: `HEAD` |
| `HEAD` | a part of a head has come, and no request is served | the head is complete: `SERVING`, `UPGRADED` |
| `SERVING` | a request is served; more may wait behind it | the response is complete: any of the others |
| `DISCARDING` | the response is complete; the rest of the request's body is dropped | the body is complete: `IDLE` |
| `LINGERING` | our side has ended; input is dropped | the client ends its side, or its time is over: `CLOSED` |
| `UPGRADED` | a websocket has taken the transport over | never |
| `CLOSED` | closed, reset, lost or handed over | never |

`IDLE` is the only state in which a connection may move. `LINGERING` exists because close(2) on a socket with unread input sends
a reset, by which the client may lose the response (RFC 9112, 9.6).

The file is long because each callback of the parser and of the transport changes this one state. In several classes the transitions
could not be checked at one place.

*Input.* The parser's callbacks only record what has come. No app runs inside the parser; a request begins when the parser has
used up its slice. Errors of a client take effect in their order: the requests before it get their responses first (`_refusal`),
and a request whose body is wrong is `broken` (see `request`). `_input_over` means that nothing more is parsed, because the client
has ended its side, has asked for the end, or has sent something invalid.

*Half-closed clients.* A client that has ended its side (`eof_received`) may still read, so requests that have come get their
responses. The server can't see whether the client is still there before it sends something. So the kernel sends probes, the
connection sends interim responses as long as the response hasn't begun, and the engine checks for a reset once a second.

*Upgrade.* httptools stops at the end of a head that asks for an upgrade, and takes the request's body for the bytes of another
protocol. If the server doesn't upgrade, the client goes on in HTTP, and its body would be parsed as the next request. So unless
the request becomes a websocket, a new parser is fed the same head without its `Upgrade` field, and the bytes behind it.

*Cost.* Figures are derived when they are asked for. A request has no timer, no event object, and no task callbacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol, cast

import httptools

from ...linux.tcp_progress import has_left, probe
from ..aborting import abandon, lent, readable, reset
from ..client_timeouts import Same, Wait, WaitingFor, progress_mark
from .head import (
    FORWARDED_HEADER,
    HOST_HEADER,
    METHOD_CACHE,
    SPECIAL_HEADERS,
    TARGET_CACHE,
    VALID_HOSTS_CACHE,
    Header,
    Refused,
    Target,
    is_valid_host,
    method_name,
    split_target,
)
from .limits import (
    INTERIM_RESPONSE_INTERVAL_S,
    LINGER_S,
    LINGER_TOTAL_S,
    MAX_BODYLESS_BYTES,
    MAX_DISCARDED_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_LINGER_BYTES,
    MAX_PIPELINED,
    MAX_RAW_HEAD_BYTES,
    MAX_SLICE_BYTES,
    MAX_TARGET_BYTES,
    MAX_UNREAD_BODY_BYTES,
    TCP_PROBE_INTERVAL_S,
)
from .request import COMPLETE, SENDING, HttpRequest, RequestHost
from .response import CONTINUE_RESPONSE, refusal

if TYPE_CHECKING:
    from ..base import Movable, Served


class ConnectionState(IntEnum):
    """A state of a connection; see the module's docstring."""

    IDLE = 0
    HEAD = 1
    SERVING = 2
    DISCARDING = 3
    LINGERING = 4
    UPGRADED = 5
    CLOSED = 6


IDLE, HEAD, SERVING, DISCARDING, LINGERING, UPGRADED, CLOSED = 0, 1, 2, 3, 4, 5, 6
"""States as plain numbers, which save the enum's lookup."""

_VERSION_1_1 = b" HTTP/1.1\r\n"

_REASONS = {"Invalid HTTP version": (505, "only the versions 1.0 and 1.1 of HTTP are supported")}


class _Dropped(list[Any]):
    """A list that stays empty. Trailers are put here, since they could pose as headers (RFC 9110, 6.5.1)."""

    def append(self, _: Any) -> None: ...


_DROPPED: list[Header] = _Dropped()


class _InputOver(Exception):
    """Raised in a callback, to stop the parser: nothing more is to be parsed."""


class ConnectionHost(RequestHost, Protocol):
    """The part of the engine that a connection needs; see `HttpEngine` for the attributes and methods."""

    loop: asyncio.AbstractEventLoop
    clock: float
    connections: set[HttpConnection]
    half_closed: dict[HttpConnection, int]
    ending: bool
    freed: Callable[[Movable], None] | None
    raw_root_path: bytes
    serves_websockets: bool

    def begin(self, request: HttpRequest) -> None:
        """Call the app with a request that has just come."""

    def begin_later(self, request: HttpRequest) -> None:
        """Call the app with a request from within the one before."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Schedule a callback outside of the current request."""

    def must_close(self, connection: HttpConnection) -> bool:
        """Return whether responses on this connection have to end it. Called only if `ending`."""

    def note_refusal(self, connection: HttpConnection, status: int, text: str) -> None:
        """Log that the server itself responds with an error."""

    def trusts(self, connection: HttpConnection) -> bool:
        """Return whether a connection's peer is a trusted proxy."""

    def resolve(self, connection: HttpConnection, headers: list[Header]) -> tuple[Any, str]:
        """Return client and scheme of a request that has come through a trusted proxy."""

    def upgrade(self, connection: HttpConnection, scope: dict[str, Any], early: bytes) -> None:
        """Let a websocket take a connection over, or refuse the handshake."""


class HttpConnection(asyncio.Protocol):
    """An HTTP/1.1 connection.

    Attributes:
        engine: the engine that serves it.
        transport: the loop's, or a one-shot transport of the acceptor's.
        state: see the module's docstring.
        request: the request that is served, or was served last; None before the first.
        pipeline: the requests that wait behind it.
        environ: the part of a WSGI environ that the connection's requests have in common; None before the first.
        writing_paused: futures of the calls that wait until the client has taken what was sent; None: writing isn't paused.
        used: the time of the last use, by the engine's clock; 0: not known.
        secure: the connection is over TLS, so it can't move.
        first: bytes that were read before the transport existed, until they are parsed.
        served: called when the first request has begun, or never will; None: it was called, or isn't needed.
        client, server: addresses of the peer and of our side, as in an ASGI scope.
    """

    __slots__ = (
        "_bodyless",
        "_data",
        "_discarded",
        "_eof",
        "_feeding",
        "_fresh",
        "_head_read",
        "_headers",
        "_in_head",
        "_input_over",
        "_linger_bytes",
        "_linger_until",
        "_lingering",
        "_muted",
        "_parser",
        "_reading_paused",
        "_receiving",
        "_refusal",
        "_seen",
        "_target",
        "_unparsed",
        "_upgrade",
        "_upgrade_scope",
        "client",
        "engine",
        "environ",
        "first",
        "loop",
        "pipeline",
        "request",
        "secure",
        "served",
        "server",
        "state",
        "transport",
        "used",
        "writing_paused",
    )

    transport: asyncio.Transport

    def __init__(self, engine: ConnectionHost, first: bytes | None = None, served: Served | None = None) -> None:
        """Begin without a transport; see the class for the arguments."""
        self.engine = engine
        self.first = first
        self.served = served
        self.loop = engine.loop
        self.state = IDLE
        self.request: HttpRequest | None = None
        self.pipeline: deque[HttpRequest] | None = None
        self.environ: dict[str, Any] | None = None
        self.writing_paused: list[asyncio.Future[None]] | None = None
        self.used = 0.0
        self._lingering: asyncio.TimerHandle | None = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._fresh: HttpRequest | None = None  # it has come in this slice, and begins when the slice is parsed
        self._receiving: HttpRequest | None = None  # the request whose body is being parsed
        self._in_head = False  # the parser is within a head
        self._head_read = 0  # bytes of an unfinished head; -1: all of it came in one slice so far
        self._bodyless = 0  # bytes on the wire since something useful came
        self._discarded = 0  # bytes of a dropped body, or bytes dropped in `LINGERING`
        self._unparsed: bytes | memoryview = b""
        self._data = b""  # the slice, if a request begins at its beginning
        self._feeding = False  # `_go_on_parsing` runs: a callback must not start it again
        self._reading_paused = False
        self._eof = False  # the client has ended its side
        self._input_over = False  # nothing more is parsed
        self._refusal: bytes | None = None  # an error response that waits for the response before it
        self._muted = False  # the parser has stopped at an upgrade that isn't made
        self._upgrade = False  # a websocket takes over after the requests before it

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport, and parse the bytes that came before it existed."""
        self.transport = transport = cast(asyncio.Transport, transport)
        engine = self.engine
        engine.connections.add(self)
        info = transport.get_extra_info
        local, peer = info("sockname"), info("peername")
        self.server = (local[0], local[1]) if isinstance(local, tuple) else (local, None) if local else None
        self.client = (peer[0], peer[1]) if isinstance(peer, tuple) else None  # a Unix socket's peer has no name
        self.secure = info("sslcontext") is not None
        first, self.first = self.first, None
        if first is not None:
            self.data_received(first)

    def data_received(self, data: bytes) -> None:
        """Parse the bytes that have come, and begin with the request that they complete."""
        if self._reading_paused or self._input_over or len(data) > MAX_SLICE_BYTES:
            self._received_much(data)
        else:
            self._parse(data)

    def eof_received(self) -> bool:
        """Respond to the requests that have come. Return whether the transport stays open, since the client may still read."""
        self._eof = True
        if not self._unparsed:
            self._input_ended()
        if self.state == SERVING:
            self._watch_half_closed()
        return not self.secure and self.state != CLOSED  # TLS has no half-closed connections

    def _watch_half_closed(self) -> None:
        """Have the kernel and the engine check the client: nothing is read any more, so a reset would go unnoticed."""
        self.engine.half_closed[self] = 0
        with lent(self.transport) as sock, contextlib.suppress(OSError):
            if sock is not None:
                probe(sock, TCP_PROBE_INTERVAL_S)

    def check_half_closed(self, seconds: int) -> None:
        """End the connection if its client, which has ended its side, has left altogether.

        Args:
            seconds: since the client ended its side.
        """
        with lent(self.transport) as sock:
            left = sock is None or has_left(sock.fileno())
        if left:
            self._disown()
            self._reset()
        elif not seconds % INTERIM_RESPONSE_INTERVAL_S:
            self._send_interim_response()

    def _send_interim_response(self) -> None:
        """Send `100 Continue`, by which a closed client shows itself.

        close(2) and shutdown(SHUT_WR) send the same FIN, and the client's kernel acknowledges keep-alive probes of a closed
        socket until `tcp_fin_timeout` (60 s) is over. But it answers data with RST. A client that still reads has to take any
        number of interim responses, also unexpected ones (RFC 9110, 15.2). HTTP/1.0 has none.
        """
        request = self.request
        if (
            self.state == SERVING
            and request is not None
            and request.phase < SENDING
            and request.version == "1.1"
            and not self.transport.get_write_buffer_size()
        ):
            self.transport.write(CONTINUE_RESPONSE)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the loss to the requests, and wake the calls that wait."""
        if self.state == UPGRADED:
            return
        self.state = CLOSED
        self._input_over = True
        if self._lingering is not None:
            self._lingering.cancel()
        self.engine.connections.discard(self)
        if self._eof:
            self.engine.half_closed.pop(self, None)
        self._disown()
        self._unparsed = b""
        self.resume_writing()
        self._tell_served()
        # These three refer back to the connection. With them it would wait for the garbage collector, which takes a fifth of
        # the CPU that a connection costs.
        self._parser = self._receiving = self.request = None

    def pause_writing(self) -> None:
        """Make `writable` wait, since the client takes less than it is sent."""
        if self.writing_paused is None:
            self.writing_paused = []

    def resume_writing(self) -> None:
        """Wake the calls of `writable`, and begin with the next request if it has waited for this."""
        waiters, self.writing_paused = self.writing_paused, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)
        request = self.request
        if self.pipeline and self.state == SERVING and request is not None and request.phase == COMPLETE:
            self._next()

    async def writable(self) -> None:
        """Wait until the client has taken what was sent, or has left."""
        # In a loop: another waiter may have written, and filled the buffer, before this one runs.
        while self.writing_paused is not None:
            waiter = self.loop.create_future()
            self.writing_paused.append(waiter)
            await waiter

    # Input.

    def _parse(self, data: bytes | memoryview) -> None:
        """Parse a slice, and begin with the request that it completes."""
        if self.state == IDLE:
            self._data = data if type(data) is bytes else b""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            if self._stopped(data[stop.args[0] :]):
                return
        except httptools.HttpParserError as error:
            self._invalid(error)
        fresh = self._fresh
        if fresh is None:
            self._check_progress(len(data))
            return
        self._fresh = None
        engine = self.engine
        if engine.ending and not self.pipeline and engine.must_close(self):
            fresh.keep_alive = False
        engine.begin(fresh)
        if self.served is not None:
            self._tell_served()

    def _check_progress(self, size: int) -> None:
        """Limit the bytes that are parsed without effect.

        Args:
            size: bytes of a slice that hasn't completed a request.
        """
        if self._in_head:
            self._check_unfinished_head(size)
            return
        self._bodyless += size
        if self._bodyless > MAX_BODYLESS_BYTES:
            if self._receiving is not None:
                self.refuse(400, "the body's chunks have no content")
            elif self.state == IDLE:
                self.refuse(431, "too many empty lines before a request")

    def _received_much(self, data: bytes) -> None:
        """Take data that can't be parsed at once: reading is paused, the input is over, or it is longer than a slice."""
        if self._input_over:
            if self.state == LINGERING:
                self._discarded += len(data)
                if self._discarded > self._linger_bytes:
                    self._close()
            return
        self._unparsed = memoryview(b"".join((self._unparsed, data)) if self._unparsed else data)
        if not self._reading_paused:
            self._go_on_parsing()

    def _go_on_parsing(self) -> None:
        """Parse the waiting bytes, slice by slice, until a limit pauses reading."""
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._unparsed and not self._reading_paused and not self._input_over:
                size = MAX_SLICE_BYTES
                if self._receiving is not None and not self._in_head:
                    size = max(size, min(self._receiving.left_of_body(), MAX_UNREAD_BODY_BYTES))
                data, self._unparsed = self._unparsed[:size], self._unparsed[size:]
                self._parse(data)
        finally:
            self._feeding = False
        if self._input_over:
            self._unparsed = b""
        if self._eof and not self._unparsed:
            self._input_ended()

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def _read_on(self) -> None:
        """Resume reading if no limit is exceeded any more."""
        if not self._reading_paused or self.state >= LINGERING or self._upgrade:
            return
        receiving = self._receiving
        if receiving is not None and not receiving.takes_more_body():
            return
        if self.pipeline is not None and len(self.pipeline) > MAX_PIPELINED:
            return
        self._reading_paused = False
        idle = self.state == IDLE
        self._go_on_parsing()  # this may pause again
        if not self._reading_paused and not self._eof:
            self.transport.resume_reading()
        if idle:
            self._freed()

    def body_taken(self) -> None:
        """Resume reading, since the app has received all that has come of its body."""
        if self._reading_paused:
            self._read_on()

    def _input_ended(self) -> None:
        """Handle the end of the client's side, when all of its bytes are parsed."""
        if self._in_head and not self._input_over:
            self.refuse(400, "the head is incomplete")
        if self._input_over and self.state != LINGERING:
            return
        self._input_over = True
        receiving = self._receiving
        if receiving is not None and self.state == SERVING:
            self._receiving = None
            receiving.broken = self._refused(400, "the body is incomplete")
            receiving.keep_alive = False
            receiving.wake()
        elif self.state == SERVING:
            self._last().keep_alive = False
        if self.state != SERVING:
            self._close()

    def _last(self) -> HttpRequest:
        """Return the last request that has come."""
        request = self.pipeline[-1] if self.pipeline else self.request
        assert request is not None
        return request

    # The parser's callbacks. No app runs in here.

    def on_message_begin(self) -> None:
        """Handle the first byte of a request."""
        if self._input_over:
            raise _InputOver
        if self.state == IDLE:
            self.state = HEAD
        self._in_head = True
        self._head_read = -1
        self._target = b""
        self._headers: list[Header] = []
        self._seen = 0

    def on_url(self, target: bytes) -> None:
        """Take a part of the target, usually all of it."""
        self._target = self._target + target if self._target else target

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. A trailer is dropped."""
        name, value = name.lower(), value.rstrip()  # llhttp leaves whitespace at the end
        special = SPECIAL_HEADERS.get(name)
        if special is not None:
            self._seen += special
            if special == HOST_HEADER and value not in VALID_HOSTS_CACHE and not is_valid_host(value):
                self._seen += HOST_HEADER  # an invalid Host counts like a second one, and is refused with it
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Make a request of the head, if the head is valid."""
        parser = self._parser
        engine = self.engine
        self._in_head = False
        target = self._target
        method = parser.get_method()
        # The parser takes longer to format the version than this comparison with the usual one. If the head isn't at the
        # beginning of the slice (in a pipeline, or in parts), the comparison fails, and the parser is asked.
        version = (
            "1.1" if self._data.startswith(_VERSION_1_1, len(method) + 1 + len(target)) else parser.get_http_version()
        )
        self._data = b""
        expects = False
        scheme, client = "https" if self.secure else "http", self.client
        seen = self._seen
        if seen != HOST_HEADER or version != "1.1" or self._head_read >= 0:
            if not self._examine(method, version):
                return
            expects = seen >> 24 & 0xFFF != 0 and version == "1.1"
            if seen >= FORWARDED_HEADER and engine.trusts(self):
                client, scheme = engine.resolve(self, self._headers)
        if len(self._headers) > MAX_HEADERS or len(target) > MAX_TARGET_BYTES:
            too_many = len(target) <= MAX_TARGET_BYTES
            self.refuse(431, "too many headers") if too_many else self.refuse(414, "the target is too long")
            return
        name = METHOD_CACHE.get(method) or self._method_name(method)
        parts = TARGET_CACHE.get(target) or self._split(target, method)
        if name is None or parts is None:
            return
        path, raw, query = parts
        if engine.root_path:
            path, raw = engine.root_path + path, engine.raw_root_path + raw
        request = HttpRequest(
            self,
            name,
            version,
            path,
            raw,
            query,
            self._headers,
            scheme,
            client,
            parser.should_keep_alive(),
            expects,
        )
        if self._upgrade:
            self._upgrade_scope = request.scope
            return
        self._receiving = request
        self._bodyless = 0
        if self.state == HEAD:
            self.state = SERVING
            self.request = self._fresh = request
        else:
            self._queue(request)

    def _method_name(self, method: bytes) -> str | None:
        """Return a method's name; None if it is refused."""
        try:
            return method_name(method)
        except Refused as refused:
            self.refuse(refused.status, refused.text)
            return None

    def _split(self, target: bytes, method: bytes) -> Target | None:
        """Return the parts of a target; None if it is refused."""
        try:
            parts, authority = split_target(target, method)
        except Refused as refused:
            self.refuse(refused.status, refused.text)
            return None
        if authority is not None:  # it replaces the Host header (RFC 9112, 3.2.2)
            self._headers[:] = [each for each in self._headers if each[0] != b"host"] + [(b"host", authority)]
        return parts

    def _queue(self, request: HttpRequest) -> None:
        if self.pipeline is None:
            self.pipeline = deque()
        self.pipeline.append(request)
        if len(self.pipeline) > MAX_PIPELINED:
            self._pause_reading()

    def on_body(self, data: bytes) -> None:
        """Take a part of the body."""
        request = self._receiving
        if request is None:
            return
        self._bodyless = -len(data)  # `_check_progress` adds the slice's size after the parser's step
        if request.phase == COMPLETE:
            self._discarded += len(data)
            if self._discarded > MAX_DISCARDED_BYTES:
                self.end()
        elif not request.body_came(data):
            self._pause_reading()

    def on_chunk_header(self) -> None:
        """Drop the headers from now on: behind a chunk they can only be trailers."""
        self._headers = _DROPPED

    def on_message_complete(self) -> None:
        """Handle the end of a request."""
        request = self._receiving
        if request is None:
            return
        self._receiving = None
        request.ended, request.expects = True, False
        if self._headers is _DROPPED and not self._parser.should_keep_alive():
            request.keep_alive = False  # a trailer `Connection: close` has ended the parser's work
        if not request.keep_alive:
            self._input_over = True
        if request.phase == COMPLETE:
            self._discarded_all()
        elif request.waiters is not None:
            request.wake()

    def _discarded_all(self) -> None:
        if self.state == DISCARDING:
            self.state = IDLE
            self.used = self.engine.clock
            if self.engine.freed is not None:
                self.loop.call_soon(self._freed)

    def _freed(self) -> None:
        if self.engine.freed is not None and self.state == IDLE:
            self.engine.freed(self)

    # Unusual heads.

    def _examine(self, method: bytes, version: str) -> bool:
        """Check a head that has something special. Return whether a request is to be made of it."""
        seen = self._seen
        # Twelve bits for each header (`head.SPECIAL_HEADERS`). A count that overflows does no harm, since a head with more than
        # MAX_HEADERS is refused in any case.
        hosts, codings, upgrades = seen & 0xFFF, seen >> 12 & 0xFFF, seen >> 36 & 0xFFF
        if version not in ("1.1", "1.0"):
            return self.refuse(505, "only the versions 1.0 and 1.1 of HTTP are supported")
        if hosts > 1 or (not hosts and version == "1.1"):
            return self.refuse(400, "a request must have one Host header, and a valid one")
        if codings and not self._can_decode(version):  # a request with a coding that can't be decoded could be smuggled
            return False
        if self._head_read >= 0 and self._head_size() > MAX_HEAD_BYTES:
            return self.refuse(431, "the head is too long")
        if seen >> 24 & 0xFFF and version == "1.1":
            wanted = [value.strip().lower() for name, value in self._headers if name == b"expect"]
            if wanted != [b"100-continue"] * len(wanted):
                return self.refuse(417, "the only supported expectation is 100-continue")
        if upgrades and self._parser.should_upgrade():
            self._upgrade = self._is_handshake(version)
            self._muted = not self._upgrade
            return self._upgrade
        return True

    def _can_decode(self, version: str) -> bool:
        codings = b",".join(value for name, value in self._headers if name == b"transfer-encoding").lower()
        if version == "1.0":
            return self.refuse(400, "HTTP/1.0 has no Transfer-Encoding")
        if codings.strip() == b"chunked":
            return True
        last = codings.rpartition(b",")[2].strip()
        # If `chunked` isn't the last coding, the end of the body can't be found (RFC 9112, 6.3).
        return self.refuse(501 if last == b"chunked" else 400, "the only supported Transfer-Encoding is chunked")

    def _head_size(self) -> int:
        return len(self._target) + sum(len(name) + len(value) for name, value in self._headers)

    def _check_unfinished_head(self, size: int) -> None:
        """Limit a head that isn't complete. The slice with its beginning isn't counted, since a body may end in it."""
        self._head_read = size + self._head_read if self._head_read >= 0 else 0
        if len(self._target) > MAX_TARGET_BYTES:
            self.refuse(414, "the target is too long")
        elif self._head_read > MAX_RAW_HEAD_BYTES or (
            self._head_read > MAX_HEAD_BYTES and self._head_size() > MAX_HEAD_BYTES
        ):
            self.refuse(431, "the head is too long")

    # Upgrade.

    def _is_handshake(self, version: str) -> bool:
        """Return whether the head is a handshake after which a websocket takes over."""
        if not self.engine.serves_websockets or version != "1.1":
            return False
        return [value.lower() for name, value in self._headers if name == b"upgrade"] == [b"websocket"]

    def _stopped(self, rest: bytes | memoryview) -> bool:
        """Go on behind a head that asks for another protocol, where the parser has stopped.

        Args:
            rest: the bytes behind the head.

        Returns:
            Whether a websocket has taken over. If not, requests of the same slice may have to begin.
        """
        while self._muted and not self._input_over:  # in a loop, since many such heads may come in one slice
            self._muted = False
            parser = self._parser
            lines = [b"%b %b HTTP/%b" % (parser.get_method(), self._target, parser.get_http_version().encode())]
            lines += [b"%b: %b" % header for header in self._headers if header[0] != b"upgrade"]
            self._parser = httptools.HttpRequestParser(self)
            try:
                self._parser.feed_data(b"\r\n".join([*lines, b"", b""]))
                self._parser.feed_data(rest)
            except httptools.HttpParserUpgrade as stop:
                rest = rest[stop.args[0] :]
            except httptools.HttpParserError as error:
                self._invalid(error)
        if not self._upgrade or self._input_over:
            return False
        self._unparsed = memoryview(b"".join((rest, self._unparsed)))
        if self.state == HEAD:
            self._hand_over()
            return True
        self._pause_reading()  # the requests before it get their responses first
        return False

    def _hand_over(self) -> None:
        """Let a websocket take the connection over, unless it was closed meanwhile."""
        if self.state >= LINGERING:
            return
        unparsed, self._unparsed = bytes(self._unparsed), b""
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()
        self.state = HEAD  # a refusal is written at once
        self.engine.upgrade(self, self._upgrade_scope, unparsed)
        self._tell_served()

    # Refusals.

    def _invalid(self, error: httptools.HttpParserError) -> None:
        """Refuse the input, in which the parser has found an error."""
        if self._input_over:
            return
        text = str(error)
        if isinstance(error, httptools.HttpParserCallbackError) and error.__context__ is not None:
            raise error.__context__  # a bug in a callback: the loop logs it and closes the connection
        if text in _REASONS:
            self.refuse(*_REASONS[text])
        elif isinstance(error, httptools.HttpParserInvalidMethodError) and "encountered" in text:
            self.refuse(501, "the method is unknown")
        else:
            self.refuse(400, text)

    def _refused(self, status: int, text: str, extra: bytes = b"") -> bytes:
        """Log a refusal, and return its response."""
        self.engine.note_refusal(self, status, text)
        return refusal(status, text, self.engine.defaults, extra)

    def refuse(self, status: int, text: str, extra: bytes = b"") -> bool:
        """Respond with an error, after the responses to earlier requests, and parse nothing more. Return False.

        Args:
            status, text: the status and the body of the response.
            extra: header lines, each beginning with a line end.
        """
        if self._input_over:
            return False
        self._input_over, self._in_head, self._muted = True, False, False
        self._unparsed = b""
        response = self._refused(status, text, extra)
        receiving, self._receiving = self._receiving, None
        if receiving is not None:  # its body is invalid; the app may still respond without it
            receiving.broken, receiving.keep_alive = response, False
            receiving.wake()
            if self.state == DISCARDING:
                self.end()
            return False
        self.engine.ended[status] += 1
        self.engine.outcomes.refused += status >= 500
        if self.state == SERVING:
            self._refusal = response
        else:
            self.transport.write(response)
            self.end()
        return False

    # Requests.

    def _tell_served(self) -> None:
        served, self.served = self.served, None
        if served is not None:
            served(self)

    def response_complete(self, request: HttpRequest) -> None:
        """Go on after a response: with the next request, with reading, or with the end of the connection."""
        engine = self.engine
        engine.ended[request.status] += 1
        if self.pipeline:
            if self.writing_paused is None:
                self._next()
        elif not request.keep_alive:
            self.end()
        elif self._refusal is not None:
            self.transport.write(self._refusal)
            self.end()
        elif self._input_over:
            self.end()
        elif self._upgrade:
            engine.call_soon(self._hand_over)
        elif self._receiving is not None and self._receiving is request:
            self.state = DISCARDING
            self._discarded = 0
            request.body = b""
            if self._reading_paused:
                engine.call_soon(
                    self._read_on
                )  # outside of this request's context, since the next request may have come already
        else:
            self.used = engine.clock
            self.state = HEAD if self._in_head else IDLE
            if self._reading_paused:
                engine.call_soon(self._read_on)
            elif self.state == IDLE and engine.freed is not None:
                engine.freed(self)

    def _next(self) -> None:
        """Begin with the next request of the pipeline, unless the one before has ended the connection."""
        assert self.pipeline is not None
        assert self.request is not None
        if not self.request.keep_alive:
            self.end()
            return
        self.request = request = self.pipeline.popleft()
        engine = self.engine
        if engine.ending and not self.pipeline and engine.must_close(self):
            request.keep_alive = False
        engine.begin_later(request)
        self._read_on()

    # The end.

    def end(self) -> None:
        """End our side when all is written, and linger if the client may still send something."""
        if self.state >= LINGERING:
            return
        in_body = self._receiving is not None
        complete = not in_body and self.request is not None and self.request.asked_for_end
        self._input_over = True
        self._receiving = None
        self._unparsed = b""
        self._disown()
        # A client that has ended its side or asked for the end sends nothing more, and TLS has no half-closed connections.
        if self._eof or complete or self.secure or not self.transport.can_write_eof():
            self._close()
            return
        self.state = LINGERING
        self._discarded = 0
        self._linger_bytes = sys.maxsize if in_body else MAX_LINGER_BYTES
        self._linger_until = self.loop.time() + LINGER_TOTAL_S
        self._lingering = self.loop.call_later(LINGER_S, self._lingered)
        with contextlib.suppress(OSError):
            self.transport.write_eof()
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()

    def _lingered(self) -> None:
        """Close, unless the client has sent something in the last second, and its total time isn't over."""
        if not self._discarded or self.loop.time() > self._linger_until:
            self._close()
            return
        self._linger_bytes -= self._discarded
        self._discarded = 0
        self._lingering = self.loop.call_later(LINGER_S, self._lingered)

    def _close(self) -> None:
        """Close the connection when all is written."""
        self.state = CLOSED
        self._input_over = True
        self.transport.close()

    def abort(self, *, abruptly: bool) -> None:
        """End the connection before the response is complete.

        Args:
            abruptly: end it by a reset, since the end of the connection would be the end of the body.
        """
        self._disown()
        if abruptly:
            self._reset()
        else:
            self._close()

    def _reset(self) -> None:
        self.state = CLOSED
        self._input_over = True
        reset(self.transport)

    def _disown(self) -> None:
        """Report a disconnect to all requests: messages of their apps are dropped from now on."""
        if self.request is not None:
            self.request.disconnect()
        for request in self.pipeline or ():
            request.disconnect()
        self.pipeline = None

    # For the worker; see `engines.base`.

    def idle(self) -> bool:
        """Return whether it waits for a request of which no byte has come."""
        return self.state == IDLE and not self._unparsed

    def may_move(self) -> bool:
        """Return whether another process could go on with it now."""
        transport = self.transport
        return (
            self.state == IDLE
            and not self.secure
            and not self._input_over
            and not self._unparsed
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
        )

    def kept_alive(self) -> bool:
        """Return whether it has brought a request already."""
        return self.request is not None

    def idle_since(self) -> float:
        """Return the time of the last use. If that isn't known, the first call of this counts as a use."""
        if not self.used:
            self.used = self.engine.clock
        return self.used

    def descriptor_and_family(self) -> tuple[int, int]:
        """Return its descriptor and its address family."""
        sock = self.transport.get_extra_info("socket")
        return sock.fileno(), sock.family

    def release(self) -> None:
        """Close our copy of the socket, since another process has it."""
        self.state = CLOSED
        self._input_over = True
        self.transport.abort()  # close(2) without shutdown(2), which would end the connection for the other process as well

    def abandon(self, step: str) -> None:
        """Log the exception that is being handled, and reset the connection."""
        abandon(self.transport, step)

    def waits(self) -> Wait | None:
        """Return what it waits for from its client; see `client_timeouts`."""
        transport = self.transport
        if size := transport.get_write_buffer_size():
            return Wait(WaitingFor.TAKING, progress_mark(transport, size))
        if transport.is_closing() or self.state >= LINGERING:
            return None
        if self.state == IDLE:
            return Wait(WaitingFor.REQUEST, self.idle_since())
        if self.state == HEAD:
            return Wait(WaitingFor.HEAD, Same(self._headers))
        request = self.request
        assert request is not None
        if self.state == DISCARDING:
            return Wait(WaitingFor.HEAD, Same(request))
        if request.waits_for_body() and self._receiving is request:
            return Wait(WaitingFor.BODY, (Same(request), request.received))
        return None

    def give_up(self, what: WaitingFor) -> None:
        """End the connection, since the client took too long; see `client_timeouts`."""
        if what is WaitingFor.TAKING:
            self._disown()
            self._reset()  # after a close the kernel would keep the bytes that the client doesn't take
            return
        if what is WaitingFor.HEAD and self.state == DISCARDING:
            self.end()
        elif what in (WaitingFor.HEAD, WaitingFor.BODY):
            request = self.request if what is WaitingFor.BODY else None
            response = self._refused(408, "Request Timeout")
            if request is not None:
                request.give_up(response)
                return
            self.engine.ended[408] += 1
            self.transport.write(response)
            self.end()
        else:
            self._close()

    def peer_name(self) -> str:
        """Return the peer's address for a log."""
        return "a Unix socket's peer" if self.client is None else str(self.client[0])

    def end_politely(self) -> bool:
        """Have the last request's response announce the end of the connection. Return whether it will."""
        request = self._last() if self.state == SERVING else None
        if request is None or request.phase >= SENDING or not request.keep_alive:
            return False
        request.keep_alive = False
        return True

    def close_idle(self) -> None:
        """Close the connection, which has no request under way."""
        self._close()

    def described(self) -> str:
        """Return the peer, and the path of the last head, for a log."""
        target = getattr(self, "_target", b"")
        return f"{self.peer_name()} {readable(target)}" if target else self.peer_name()
