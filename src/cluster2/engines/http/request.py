"""One request: the messages that its app receives, and the response that is made of those that it sends.

A request is served in four phases, which only ever advance:

| phase | what has happened |
|---|---|
| `BEGUN` | the app runs; nothing of the response is known |
| `STARTED` | the app has given a head. It is held: head and body leave in one write, and if the app fails the client gets a 500 |
| `SENDING` | the head was written |
| `COMPLETE` | all of the response was given to the transport |

The file is long because receiving and sending share these phases: what an app may receive depends on what it has sent.

A request whose client has left is `disconnected`, in any phase: the messages of its app are dropped. A request whose body can't
be parsed is `broken`. If the app responds without receiving the rest, the client gets the app's response. If the app receives,
the client gets the error response. So the response doesn't depend on how the client's bytes are split.

The framing of the body (RFC 9112, 6.3) is the first of these that applies:

1. The length that the app declares.
2. The length of the body, if all of it comes with the first message.
3. Chunks.
4. For HTTP/1.0, which has no chunks, the end of the connection.

If a body is shorter or longer than declared, or the app doesn't end it, the connection ends before the promised end of the
response, so that the client notices.

A stream must not hold the loop. As long as the kernel takes the bytes, or the client has gone, `send` would never suspend. So it
yields to the loop once in `MESSAGES_PER_TURN` messages, also for a client that has gone, so that an app which waits for
`http.disconnect` receives it. In a drain the engine cancels an app that doesn't (`HttpEngine.close_idle`). `stream` decides when
parts are written.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ..aborting import readable
from ..outcomes import CLIENT_CLOSED_STATUS
from ..wsgi.client_side import ClientLeft, Failed
from .limits import (
    DISCONNECTED_SEND_PAUSE_S,
    MAX_JOINED_BODY_BYTES,
    MAX_UNREAD_BODY_BYTES,
    MESSAGES_AFTER_DISCONNECT,
    MESSAGES_PER_TURN,
)
from .response import (
    CHUNKED_LINE,
    CLOSE_LINE,
    CLOSE_LINE_AND_END,
    CONTINUE_RESPONSE,
    HEAD_END,
    KEEP_ALIVE_LINE,
    Head,
    InvalidResponse,
    refusal,
)
from .stream import CHUNKED_BODY, LENGTH_BODY, NO_BODY, UNTIL_CLOSE_BODY, BodyStream

if TYPE_CHECKING:
    from ..access_log import AccessLog
    from ..outcomes import Outcomes
    from ..wsgi.pep3333 import Response
    from .response import Defaults

Message = dict[str, Any]

logger = logging.getLogger("cluster2.http")

_SERVER_ERROR = "Internal Server Error"
_BODILESS = frozenset({204, 304})
"""Statuses of responses without a body (RFC 9110, 6.4.1)."""
_ASGI_VERSION = "3.0"
_SPEC_VERSION = "2.3"


_BEGUN, STARTED, SENDING, COMPLETE = 0, 1, 2, 3
"""The phases. Numbers, since a member of an enum costs one lookup more, and phases are compared by `<`."""


class RequestHost(Protocol):
    """The part of the engine that a request needs; see `HttpEngine` for the attributes."""

    access: AccessLog | None
    defaults: Defaults
    ended: defaultdict[int, int]
    outcomes: Outcomes
    root_path: str
    running: set[HttpRequest]
    state: dict[str, Any]


class RequestConnection(Protocol):
    """The part of the connection that a request needs; see `HttpConnection`."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    client: tuple[Any, Any] | None
    server: tuple[Any, Any] | None
    environ: dict[str, Any] | None
    writing_paused: list[asyncio.Future[None]] | None

    @property
    def engine(self) -> RequestHost:
        """The engine."""

    async def writable(self) -> None:
        """Wait until the client has taken what was sent, or has left."""

    def body_taken(self) -> None:
        """Read on, since the app has received all that has come of its body."""

    def response_complete(self, request: HttpRequest) -> None:
        """Go on after a response."""

    def end(self) -> None:
        """End our side when all is written."""

    def abort(self, *, abruptly: bool) -> None:
        """End the connection before the response is complete."""

    def peer_name(self) -> str:
        """Return the peer's address for a log."""


class HttpRequest:
    """A request, from the end of its head on.

    Attributes:
        connection: the connection that brought it.
        transport: the connection's transport.
        method, version, path, raw_path, query, headers: the parts of the head. `path` is decoded, `version` is "1.1" or "1.0".
        scheme, client: those of the connection, or those that trusted proxies name.
        keep_alive: the connection may go on after the response.
        asked_for_end: the client wants the connection to end after the response.
        expects: the client waits for `100 Continue`.
        body: the part of the body that has come, and that the app hasn't received.
        received: the number of bytes of the body that have come.
        ended: all of the body has come.
        broken: the error response, if the rest of the body can't be parsed or won't come.
        phase: see the module's docstring.
        disconnected: the client has left, or the server has given it up.
        waiters: futures of the calls of `receive` that wait for a message.
        task: the task in which the app runs, if it runs in one.
        began: the time by `time.perf_counter`; 0 if requests aren't logged.
        status: the status of the response.
        size: the bytes of the response's body.
        unfinished: the number of messages that weren't the end of the response, or were for a client that has gone.
    """

    __slots__ = (
        "_delivered",
        "_head",
        "_scope",
        "_stream",
        "asked_for_end",
        "began",
        "body",
        "broken",
        "client",
        "connection",
        "disconnected",
        "ended",
        "expects",
        "headers",
        "keep_alive",
        "method",
        "path",
        "phase",
        "query",
        "raw_path",
        "received",
        "scheme",
        "size",
        "status",
        "task",
        "transport",
        "unfinished",
        "version",
        "waiters",
    )

    def __init__(
        self,
        connection: RequestConnection,
        method: str,
        version: str,
        path: str,
        raw_path: bytes,
        query: bytes,
        headers: list[tuple[bytes, bytes]],
        scheme: str,
        client: Any,
        keep_alive: bool,
        expects: bool,
    ) -> None:
        """Begin with the head; see the class for the arguments."""
        self.connection = connection
        self.transport = connection.transport
        self.method = method
        self.version = version
        self.path = path
        self.raw_path = raw_path
        self.query = query
        self.headers = headers
        self.scheme = scheme
        self.client = client
        self.keep_alive = keep_alive
        self.asked_for_end = not keep_alive
        self.expects = expects
        self.body = b""
        self.received = 0
        self.ended = False
        self.broken: bytes | None = None
        self.phase = _BEGUN
        self.disconnected = False
        self.task: asyncio.Task[None] | None = None
        self.began = 0.0
        self.status = 0
        self.size = 0
        self.unfinished = 0
        self._scope: Message | None = None
        self._delivered = False
        self._head: Head | None = None
        self._stream: BodyStream | None = None
        self.waiters: list[asyncio.Future[None]] | None = None

    # The app's side.

    @property
    def scope(self) -> Message:
        """The ASGI scope, made when it is first read. The app may have changed it."""
        scope = self._scope
        if scope is None:
            connection = self.connection
            engine = connection.engine
            self._scope = scope = {
                "type": "http",
                "asgi": {"version": _ASGI_VERSION, "spec_version": _SPEC_VERSION},
                "http_version": self.version,
                "server": connection.server,
                "client": self.client,
                "scheme": self.scheme,
                "method": self.method,
                "root_path": engine.root_path,
                "path": self.path,
                "raw_path": self.raw_path,
                "query_string": self.query,
                "headers": self.headers,
                "state": engine.state.copy(),
            }
        return scope

    async def receive(self) -> Message:
        """Return the next message of the client."""
        while True:
            # After the response ASGI promises `http.disconnect` as well, though the connection may go on.
            if self.disconnected or self.phase == COMPLETE:
                await self._take_turns()
                return {"type": "http.disconnect"}
            if self.ended:
                if not self._delivered:
                    self._delivered = True
                    body, self.body = self.body, b""
                    return {"type": "http.request", "body": body, "more_body": False}
            elif self.body:
                body, self.body = self.body, b""
                self.connection.body_taken()
                return {"type": "http.request", "body": body, "more_body": True}
            elif self.broken is not None:
                self.give_up(self.broken)
                continue
            elif self.expects:
                self.expects = False
                if self.phase < SENDING:  # an interim response within the final one would break it
                    self.transport.write(CONTINUE_RESPONSE)
            waiter = self.connection.loop.create_future()
            if self.waiters is None:
                self.waiters = [waiter]
            else:
                self.waiters.append(waiter)
            await waiter

    async def send(self, message: Message) -> None:
        """Take a message of the app. Raises InvalidResponse."""
        connection = self.connection
        if connection.writing_paused is not None:
            await connection.writable()
        if self.disconnected:
            await self._take_turns()
            return
        kind = message["type"]
        if kind == "http.response.body":
            more = message.get("more_body", False)
            body = message.get("body", b"")
            stream = self._stream
            if stream is None:
                self._send_first(body, more)
            else:
                if stream.framing != NO_BODY:
                    self.size += len(body)
                stream.send(body, more)
                if not more:
                    self._stream = None
                    self._complete()
            if more:
                self.unfinished += 1
                if not self.unfinished % MESSAGES_PER_TURN:
                    await asyncio.sleep(0)
        elif kind != "http.response.start":
            raise InvalidResponse(f"the app sent {kind!r}; expected is http.response.start or http.response.body")
        elif self.phase != _BEGUN:
            raise InvalidResponse("the app sent http.response.start twice")
        else:
            self.status = status = message["status"]
            self._head = Head(connection.engine.defaults, status, message.get("headers", ()))
            self.phase = STARTED

    async def _take_turns(self) -> None:
        """Yield to the loop, and slow down an app that goes on though nothing can be sent or received any more.

        This doesn't yield at each message. If a cancellation comes while `send` waits, the app's generator is left to the garbage
        collector. If it comes while the generator itself waits, the generator is closed at once.
        """
        self.unfinished += 1
        if not self.unfinished % MESSAGES_PER_TURN:
            await asyncio.sleep(0 if self.unfinished < MESSAGES_AFTER_DISCONNECT else DISCONNECTED_SEND_PAUSE_S)

    def answer(self, response: Response, body: bytes) -> bool:
        """Send a WSGI app's whole response in one step. Return whether that was possible; if not, nothing has happened.

        Args:
            response: the checked response, with the length of its body.
            body: empty for a response that has none.
        """
        connection = self.connection
        if self.disconnected or self.phase != _BEGUN or connection.writing_paused is not None or not self.ended:
            return False
        defaults = connection.engine.defaults
        status = self.status = response.status
        head = (
            defaults.without(status, response.own)
            if response.own
            else defaults.beginnings.get(status) or defaults.beginning(status)
        )
        if response.close:
            self.keep_alive = False
        end = (
            CLOSE_LINE_AND_END
            if not self.keep_alive
            else HEAD_END
            if self.version == "1.1"
            else KEEP_ALIVE_LINE + HEAD_END
        )
        self.size = len(body)
        if len(body) <= MAX_JOINED_BODY_BYTES:
            self.transport.write(b"".join((head, response.lines, end, body)))
        else:
            self.transport.writelines((head + response.lines + end, body))
        self._complete()
        return True

    # Sending.

    def _send_first(self, body: bytes, more: bool) -> None:
        """Decide the framing, and send the head with the first part of the body."""
        head = self._head
        if head is None:  # no head was given, or the response is complete
            raise InvalidResponse(
                "the app sent http.response.body after the end of its response"
                if self.phase == COMPLETE
                else "the app sent http.response.body before http.response.start"
            )
        length, end, left = head.length, HEAD_END, 0
        if head.close or self.expects or self.broken is not None:
            # A client that got no `100 Continue` may send the body or not (RFC 9110, 10.1.1), so its next bytes are ambiguous.
            self.keep_alive = False
        if self.method == "HEAD" or self.status in _BODILESS:
            framing, body = NO_BODY, b""
        elif length is not None:
            framing, left = LENGTH_BODY, length - len(body)
            if left < 0 or (left and not more):
                raise InvalidResponse(
                    f"the app's body is {'longer' if left < 0 else 'shorter'} than its Content-Length"
                )
        elif not more:  # all of the body is here, so its length is known
            framing, end = LENGTH_BODY, b"\r\ncontent-length: %d%b" % (len(body), HEAD_END)
        elif self.version == "1.0":
            framing, self.keep_alive = UNTIL_CLOSE_BODY, False
        else:
            framing, end = CHUNKED_BODY, CHUNKED_LINE + HEAD_END
        if not self.keep_alive:
            end = CLOSE_LINE + end
        elif self.version == "1.0":
            end = KEEP_ALIVE_LINE + end
        self._head = None  # so that a body after the end of the response is noticed
        self.size = len(body)
        begin = head.data + end
        if framing == CHUNKED_BODY and body:
            begin += b"%x\r\n" % len(body)
            parts: tuple[bytes, ...] = begin, body, b"\r\n"
        else:
            parts = begin, body
        if len(body) <= MAX_JOINED_BODY_BYTES:
            self.transport.write(b"".join(parts))
        else:
            self.transport.writelines(parts)
        if more:
            self.phase = SENDING
            self._stream = BodyStream(self.transport, self.connection.loop, framing, left)
        else:
            self._complete()

    def _complete(self) -> None:
        self.phase = COMPLETE
        if self.waiters is not None:
            self.wake()
        if self.began:
            self.log()
        self.connection.response_complete(self)

    # The end of the request.

    async def run(self, app: Callable[..., Any]) -> None:
        """Call the app, and end the request when the app has ended."""
        try:
            returned = await app(self.scope, self.receive, self.send)
        except BaseException as error:
            self.failed(error)
        else:
            if self.phase != COMPLETE and not self.disconnected:
                self._unfinished()
            elif returned is not None:
                logger.error(
                    "%s: the app returned %r; an ASGI app must return None", self.named(), type(returned).__name__
                )
        self.connection.engine.running.discard(self)

    def wake(self) -> None:
        """Wake the calls of `receive` that wait for a message."""
        waiters = self.waiters
        if waiters is not None:
            self.waiters = None
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def waits_for_body(self) -> bool:
        """Return whether the app waits for more of the body."""
        return bool(self.waiters) and not self.ended and any(not waiter.done() for waiter in self.waiters or ())

    def disconnect(self) -> None:
        """Report to the app that the client has left. Messages that the app sends from now on are dropped."""
        if self.phase != COMPLETE and not self.disconnected:
            outcomes = self.connection.engine.outcomes
            outcomes.disconnects += 1  # type: ignore[operator]  # not None: this engine sees its clients
            self._drop(self.status if self.phase == SENDING else CLIENT_CLOSED_STATUS)
        self.wake()

    def _drop(self, status: int) -> None:
        """End a request whose response won't be complete. Messages that the app sends from now on are dropped."""
        self.disconnected = True
        self.connection.engine.ended[status] += 1
        if self._stream is not None:
            self._stream.discard()
        if self.began:
            self.log()
        self.wake()

    def body_came(self, data: bytes) -> bool:
        """Take a part of the body. Return whether more may be read."""
        self.received += len(data)
        if self.disconnected:
            return True
        self.expects = False
        self.body = self.body + data if self.body else data
        if self.waiters is not None:
            self.wake()
        return len(self.body) <= MAX_UNREAD_BODY_BYTES

    def take_body(self) -> bytes:
        """Return all of the body, which has come. It counts as received by the app."""
        self._delivered = True
        body, self.body = self.body, b""
        return body

    def left_of_body(self) -> int:
        """Return how many bytes of the body are to come; 0: not known."""
        length = next((value for name, value in self.headers if name == b"content-length"), b"0")
        return int(length) - self.received

    def takes_more_body(self) -> bool:
        """Return whether more of the body may be read."""
        return len(self.body) <= MAX_UNREAD_BODY_BYTES or self.disconnected or self.phase == COMPLETE

    def failed(self, error: BaseException) -> None:
        """End a request whose app has raised an exception."""
        gone = self.disconnected
        if not isinstance(error, Failed | asyncio.CancelledError):
            logger.error("%s: the app raised %s", self.named(), type(error).__name__, exc_info=error)
        if not gone or not isinstance(error, asyncio.CancelledError | ClientLeft):
            self._count_failure()
        if not gone:
            self._end_early()

    def _count_failure(self) -> None:
        """Count that the app has failed, unless the status is 5xx or will be."""
        settled = self.phase >= SENDING  # the status was sent; else `_end_early` sends 500, which counts by itself
        if (settled or self.disconnected) and not (settled and self.status >= 500):
            self.connection.engine.outcomes.failed += 1

    def _unfinished(self) -> None:
        self._count_failure()
        what = "without a response" if self.phase == _BEGUN else "before its response was complete"
        logger.error("%s: the app returned %s", self.named(), what)
        self._end_early()

    def _end_early(self) -> None:
        """Respond with 500 if no head was written, else end the connection before the promised end of the response."""
        if self.phase == COMPLETE:
            return
        connection = self.connection
        if self.phase == SENDING:
            self._cut()
            return
        self._head = None
        self.status, self.size = 500, len(_SERVER_ERROR)
        self.keep_alive = False
        data = refusal(500, _SERVER_ERROR, connection.engine.defaults)
        if self.method == "HEAD":  # the same head, without the body (RFC 9110, 9.3.2)
            data, self.size = data[: -len(_SERVER_ERROR)], 0
        self.transport.write(data)
        self._complete()

    def give_up(self, response: bytes) -> None:
        """Respond for an app that waits for the rest of a body which won't come, and end the connection."""
        if self.phase == SENDING:
            self._cut(by_client=True)
            return
        self.transport.write(response)
        self.status, self.size = int(response[9:12]), len(response.partition(HEAD_END)[2])  # "HTTP/1.1 408 …"
        self._drop(self.status)
        self.connection.end()

    def _cut(self, *, by_client: bool = False) -> None:
        """End the connection before the promised end of a response that is being sent.

        Args:
            by_client: the client is the cause, not the app.
        """
        stream = self._stream
        assert stream is not None
        stream.flush()  # parts that the app has sent before it failed
        if by_client:
            self.disconnect()
        else:
            self._drop(self.status)
        self.connection.abort(abruptly=stream.framing == UNTIL_CLOSE_BODY)

    def log(self) -> None:
        """Write the request's line in the access log, once."""
        access = self.connection.engine.access
        began, self.began = self.began, 0.0
        if access is not None:
            access.add(self.scope, self.status, self.size, time.perf_counter() - began)

    def named(self) -> str:
        """Return peer, method and path for a log."""
        return f"{self.connection.peer_name()} {self.method} {readable(self.raw_path)}"
