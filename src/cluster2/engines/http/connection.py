"""A connection of HTTP/1.1 (RFC 9112), on the public API of httptools.

A connection is in one of these states. What it waits for, and whether it may move to another process, follows from the state.

| state | meaning | leaves it when |
|---|---|---|
| `IDLE` | between two requests: the last response is complete, no byte of the next request has come | a byte comes: `HEAD` |
| `HEAD` | a head is coming, and no request is served | the head is complete: `SERVING`, `UPGRADED` |
| `SERVING` | a request is served; more may wait behind it | the response is complete: any of the others |
| `DISCARDING` | the response is complete; the rest of the request's body is dropped | the body is complete: `IDLE` |
| `LINGERING` | our side has ended; what comes is dropped | the client ends its side, or its time is over: `CLOSED` |
| `UPGRADED` | a websocket has taken the transport over | never |
| `CLOSED` | closed, reset, lost or handed over | never |

`IDLE` is the only state in which a connection may move. `LINGERING` is there because closing a connection whose client has sent
something that wasn't read is a reset, by which the client may lose the response (RFC 9112, 9.6).

*Input.* Callbacks of the parser only note what has come: no app runs inside the parser. Requests begin when the parser has used
up a slice. What a client sends wrong counts in its order: requests before it are answered first (`_refusal`), and a request whose
body is wrong is `broken` (see `request`). `_input_over` means that nothing more is parsed: the client has ended its side, has
asked for the end, or has sent what can't be understood.

*The end of the client's side* (`eof_received`) isn't the end of its interest: requests that have come are answered. Whether the
client is still there can't be seen before something is sent to it. So the kernel sends probes, the connection sends interim
responses as long as the response hasn't begun, and the engine looks for a reset once a second.

*Upgrade.* httptools stops at the end of a head that asks for one, and takes the request's body for the bytes of another
protocol. A client that isn't upgraded goes on in HTTP, so its body would be parsed as the next request. So unless the request
becomes a websocket, a new parser is fed the same head without its `Upgrade` field, and what follows it.

*Cost.* What can be derived when it is asked for isn't noted: there is no timer, no set of tasks with callbacks, no event object
for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING, Any, cast

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
from .request import COMPLETE, SENDING, HttpRequest
from .response import CONTINUE_RESPONSE, refusal

if TYPE_CHECKING:
    from ..base import Served
    from .http_engine import HttpEngine


class ConnectionState(IntEnum):
    """See the module."""

    IDLE = 0
    HEAD = 1
    SERVING = 2
    DISCARDING = 3
    LINGERING = 4
    UPGRADED = 5
    CLOSED = 6


IDLE, HEAD, SERVING, DISCARDING, LINGERING, UPGRADED, CLOSED = 0, 1, 2, 3, 4, 5, 6  # the same, without the lookup

_VERSION_1_1 = b" HTTP/1.1\r\n"

_BAD_REQUEST = "Bad Request"
_REASONS = {"Invalid HTTP version": (505, "only versions 1.0 and 1.1 are spoken here")}


class _Dropped(list[Any]):
    """Stays empty: trailers could pose as headers (RFC 9110, 6.5.1)."""

    def append(self, _: Any) -> None: ...


_DROPPED: list[Header] = _Dropped()


class _InputOver(Exception):
    """Nothing more is to be parsed."""


class HttpConnection(asyncio.Protocol):
    """A connection. `state` tells where it stands; see the module.

    Attributes:
        engine: that serves it.
        transport: of the loop, or a one-shot transport of the acceptor's.
        state: see the module.
        request: the one that is served, or was last; None before the first.
        pipeline: requests that wait behind it.
        environ: what the requests of a WSGI app have in common here; None: none has come yet.
        writing_paused: those that wait until the client has taken what was sent; None: nobody has to wait.
        used: when it was last used, on the engine's clock; 0: not known.
        secure: over TLS. Such a connection can't move.
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

    def __init__(self, engine: HttpEngine, first: bytes | None = None, served: Served | None = None) -> None:
        """Nothing has come yet.

        Args:
            first: what was read before the transport existed.
            served: called when the first request has begun, or never will.
        """
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
        self._fresh: HttpRequest | None = None
        self._receiving: HttpRequest | None = None
        self._in_head = False
        self._head_read = 0
        self._bodyless = 0
        self._discarded = 0
        self._unparsed: bytes | memoryview = b""
        self._data = b""
        self._feeding = False
        self._reading_paused = False
        self._eof = False
        self._input_over = False
        self._refusal: bytes | None = None
        self._muted = False
        self._upgrade = False

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport, and read what came before it existed."""
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
        """Parse what has come, and begin with the request that it completes."""
        if self._reading_paused or self._input_over or len(data) > MAX_SLICE_BYTES:
            self._received_much(data)
        else:
            self._parse(data)

    def eof_received(self) -> bool:
        """Answer what has come; the client may still read."""
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

        The FIN of close(2) is the FIN of shutdown(SHUT_WR), and the client's kernel acknowledges keep-alive probes of a closed socket
        until `tcp_fin_timeout` (60 s) is over. But it answers data with RST. A client that still reads has to take any
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
        """Tell the requests, and whoever waits."""
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
        # Without these three it would refer to itself, and wait for the garbage collector: a fifth of what a connection costs.
        self._parser = self._receiving = self.request = None

    def pause_writing(self) -> None:
        """The client takes less than it is sent: whoever sends has to wait."""
        if self.writing_paused is None:
            self.writing_paused = []

    def resume_writing(self) -> None:
        """Let those go on that have waited; and the request that has, if any."""
        waiters, self.writing_paused = self.writing_paused, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)
        request = self.request
        if self.pipeline and self.state == SERVING and request is not None and request.phase == COMPLETE:
            self._next()

    async def writable(self) -> None:
        """Wait until the client has taken what was sent, or has left."""
        while self.writing_paused is not None:
            waiter = self.loop.create_future()
            self.writing_paused.append(waiter)
            await waiter

    # Input.

    def _parse(self, data: bytes | memoryview) -> None:
        """Have a slice parsed, and begin with the request that it completes."""
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
        """Bound what is parsed without effect.

        Args:
            size: of a slice that hasn't brought a request to be served.
        """
        if self._in_head:
            self._check_unfinished_head(size)
            return
        self._bodyless += size
        if self._bodyless > MAX_BODYLESS_BYTES:
            if self._receiving is not None:
                self.refuse(400, "the body's chunks bring nothing")
            elif self.state == IDLE:
                self.refuse(431, "too many empty lines before a request")

    def _received_much(self, data: bytes) -> None:
        """Take data that isn't parsed at once."""
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
        """Parse what waits, slice by slice, until requests or bodies are too many; then read on."""
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
        """Read on if nothing stands against it any more."""
        if not self._reading_paused or self.state >= LINGERING or self._upgrade:
            return
        receiving = self._receiving
        if receiving is not None and not receiving.has_room():
            return
        if self.pipeline is not None and len(self.pipeline) > MAX_PIPELINED:
            return
        self._reading_paused = False
        idle = self.state == IDLE
        self._go_on_parsing()
        if not self._reading_paused and not self._eof:
            self.transport.resume_reading()
        if idle:
            self._freed()

    def body_taken(self) -> None:
        """The app has received what there was of its body."""
        if self._reading_paused:
            self._read_on()

    def _input_ended(self) -> None:
        """The client has ended its side, and all of its bytes are parsed."""
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
        """Return the request after which nothing comes."""
        request = self.pipeline[-1] if self.pipeline else self.request
        assert request is not None
        return request

    # What the parser says. No app runs in here.

    def on_message_begin(self) -> None:
        """The first byte of a request."""
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
        """A part of the target, usually all of it."""
        self._target = self._target + target if self._target else target

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is dropped."""
        name, value = name.lower(), value.rstrip()  # llhttp leaves whitespace at the end
        special = SPECIAL_HEADERS.get(name)
        if special is not None:
            self._seen += special
            if special == HOST_HEADER and value not in VALID_HOSTS_CACHE and not is_valid_host(value):
                self._seen += HOST_HEADER  # counts like a second one
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Make a request of the head, if it is one."""
        parser = self._parser
        engine = self.engine
        self._in_head = False
        target = self._target
        method = parser.get_method()
        # Formatting the version takes longer than to see that it is the usual one. Where the head isn't at the beginning of what
        # was read (in a pipeline, or in parts), the comparison fails, and the parser is asked.
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
        if authority is not None:  # it counts, whatever Host says (RFC 9112, 3.2.2)
            self._headers[:] = [each for each in self._headers if each[0] != b"host"] + [(b"host", authority)]
        return parts

    def _queue(self, request: HttpRequest) -> None:
        if self.pipeline is None:
            self.pipeline = deque()
        self.pipeline.append(request)
        if len(self.pipeline) > MAX_PIPELINED:
            self._pause_reading()

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        request = self._receiving
        if request is None:
            return
        self._bodyless = -len(data)  # the slice that brought it is added behind the parser's step
        if request.phase == COMPLETE:
            self._discarded += len(data)
            if self._discarded > MAX_DISCARDED_BYTES:
                self.end()
        elif not request.body_came(data):
            self._pause_reading()

    def on_chunk_header(self) -> None:
        """What follows the last chunk are trailers."""
        self._headers = _DROPPED

    def on_message_complete(self) -> None:
        """The end of a request."""
        request = self._receiving
        if request is None:
            return
        self._receiving = None
        request.ended, request.expects = True, False
        if self._headers is _DROPPED and not self._parser.should_keep_alive():
            request.keep_alive = False  # a trailer has said so, and the parser ends here
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

    # What isn't usual in a head.

    def _examine(self, method: bytes, version: str) -> bool:
        """Check a head that has something special. Returns whether a request is to be made of it."""
        seen = self._seen
        hosts, codings, upgrades = seen & 0xFFF, seen >> 12 & 0xFFF, seen >> 36 & 0xFFF
        if version not in ("1.1", "1.0"):
            return self.refuse(505, "only versions 1.0 and 1.1 are spoken here")
        if hosts > 1 or (not hosts and version == "1.1"):
            return self.refuse(400, "a request must have one Host header, and a valid one")
        if codings and not self._can_decode(version):
            return False
        if self._head_read >= 0 and self._head_size() > MAX_HEAD_BYTES:
            return self.refuse(431, "the head is too long")
        if seen >> 24 & 0xFFF and version == "1.1":
            wanted = [value.strip().lower() for name, value in self._headers if name == b"expect"]
            if wanted != [b"100-continue"] * len(wanted):
                return self.refuse(417, "only 100-continue can be expected")
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
        return self.refuse(501 if last == b"chunked" else 400, "the only Transfer-Encoding is chunked")

    def _head_size(self) -> int:
        return len(self._target) + sum(len(name) + len(value) for name, value in self._headers)

    def _check_unfinished_head(self, size: int) -> None:
        """Bound a head that isn't complete. What came with its beginning isn't counted: the end of a body may be before it."""
        self._head_read = size + self._head_read if self._head_read >= 0 else 0
        if len(self._target) > MAX_TARGET_BYTES:
            self.refuse(414, "the target is too long")
        elif self._head_read > MAX_RAW_HEAD_BYTES or (
            self._head_read > MAX_HEAD_BYTES and self._head_size() > MAX_HEAD_BYTES
        ):
            self.refuse(431, "the head is too long")

    # Upgrade.

    def _is_handshake(self, version: str) -> bool:
        """Return whether a websocket is to take over."""
        if not self.engine.serves_websockets or version != "1.1":
            return False
        return [value.lower() for name, value in self._headers if name == b"upgrade"] == [b"websocket"]

    def _stopped(self, rest: bytes | memoryview) -> bool:
        """Go on behind a head that asks for another protocol, where the parser has stopped.

        Returns:
            Whether a websocket has taken over. Else requests that have come with that head may have to begin.
        """
        while self._muted and not self._input_over:  # in a loop, as many such heads may come in one slice
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
        self._pause_reading()  # requests before it are answered first
        return False

    def _hand_over(self) -> None:
        """Let a websocket go on with the connection, unless it was closed meanwhile."""
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
        """The parser can't go on."""
        if self._input_over:
            return
        text = str(error)
        if isinstance(error, httptools.HttpParserCallbackError) and error.__context__ is not None:
            raise error.__context__  # a fault of ours; the loop logs it and closes the connection
        if text in _REASONS:
            self.refuse(*_REASONS[text])
        elif isinstance(error, httptools.HttpParserInvalidMethodError) and "encountered" in text:
            self.refuse(501, "no such method is known")
        else:
            self.refuse(400, text)

    def _refused(self, status: int, text: str, extra: bytes = b"") -> bytes:
        """Note a refusal, and return its response."""
        self.engine.note_refusal(self, status, text)
        return refusal(status, text, self.engine.defaults, extra)

    def refuse(self, status: int, text: str, extra: bytes = b"") -> bool:
        """Answer with an error when it is its turn, and parse nothing more. Returns False.

        Args:
            extra: header lines, each beginning with a line end.
        """
        if self._input_over:
            return False
        self._input_over, self._in_head, self._muted = True, False, False
        self._unparsed = b""
        response = self._refused(status, text, extra)
        receiving, self._receiving = self._receiving, None
        if receiving is not None:  # its body is wrong
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
        """Go on after a response: with the next request, with reading, or not at all."""
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
                )  # not in the context of this request: the next one may have come already
        else:
            self.used = engine.clock
            self.state = HEAD if self._in_head else IDLE
            if self._reading_paused:
                engine.call_soon(self._read_on)
            elif self.state == IDLE and engine.freed is not None:
                engine.freed(self)

    def _next(self) -> None:
        """Begin with the next request of the pipeline, unless the last one has ended the connection."""
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
        """End our side: what was written is delivered. Close when the client has seen it, if it may still send something."""
        if self.state >= LINGERING:
            return
        in_body = self._receiving is not None
        complete = not in_body and self.request is not None and self.request.asked_for_end
        self._input_over = True
        self._receiving = None
        self._unparsed = b""
        self._disown()
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
        """Close, unless the client has sent something meanwhile, and hasn't done so for too long."""
        if not self._discarded or self.loop.time() > self._linger_until:
            self._close()
            return
        self._linger_bytes -= self._discarded
        self._discarded = 0
        self._lingering = self.loop.call_later(LINGER_S, self._lingered)

    def _close(self) -> None:
        """Close when all is written."""
        self.state = CLOSED
        self._input_over = True
        self.transport.close()

    def abort(self, *, abruptly: bool) -> None:
        """End before the response is whole.

        Args:
            abruptly: by a reset, since the end of the connection would be the end of the body.
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
        """What the app still sends goes nowhere."""
        if self.request is not None:
            self.request.disconnect()
        for request in self.pipeline or ():
            request.disconnect()
        self.pipeline = None

    # For the worker; see `engines.base`.

    def idle(self) -> bool:
        """Whether it waits for a request, of which not a byte has come."""
        return self.state == IDLE and not self._unparsed

    def may_move(self) -> bool:
        """Whether another process could go on with it now."""
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
        """Whether it has brought a request already."""
        return self.request is not None

    def idle_since(self) -> float:
        """When it was last used. It counts as used when somebody first asks, if nobody knows."""
        if not self.used:
            self.used = self.engine.clock
        return self.used

    def descriptor_and_family(self) -> tuple[int, int]:
        """Its descriptor and address family."""
        sock = self.transport.get_extra_info("socket")
        return sock.fileno(), sock.family

    def release(self) -> None:
        """Another process has it: close our copy. abort() is close(2) without shutdown(2)."""
        self.state = CLOSED
        self._input_over = True
        self.transport.abort()

    def abandon(self, step: str) -> None:
        """Log the exception that is being handled, and reset the connection."""
        abandon(self.transport, step)

    def waits(self) -> Wait | None:
        """What it waits for from its client; see `patience`."""
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
        """The client took too long; see `patience`."""
        if what is WaitingFor.TAKING:
            self._disown()
            self._reset()  # else the kernel would keep what the client doesn't take
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
        """Let the last response that hasn't begun announce the end. Returns whether there is one."""
        request = self._last() if self.state == SERVING else None
        if request is None or request.phase >= SENDING or not request.keep_alive:
            return False
        request.keep_alive = False
        return True

    def close_idle(self) -> None:
        """Close it, which has no request under way."""
        self._close()

    def described(self) -> str:
        """Return peer and path of what has come last, for a log."""
        target = getattr(self, "_target", b"")
        return f"{self.peer_name()} {readable(target)}" if target else self.peer_name()
