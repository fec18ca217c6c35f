"""One request: what its app receives, and what becomes of what it sends.

A request is served in four phases, which only ever advance:

| phase | what has happened |
|---|---|
| `BEGUN` | the app runs; nothing is known of the response |
| `STARTED` | the app has given a head. It is kept: head and body leave in one write, and an app that fails gets a clean 500 |
| `SENDING` | the head is out |
| `COMPLETE` | all of the response was given to the transport |

A request whose client has left is `disconnected`, in whatever phase: what the app sends goes nowhere. One whose body can't be
parsed is `broken`: the app's answer counts if it gives one without asking for the rest; if it asks, the client gets the error
response. So what a client sees doesn't depend on how its bytes are split.

Framing of the body (RFC 9112, 6.3): as long as the app declares; else as long as it is, if all of it comes with the first
message; else in chunks; for HTTP/1.0, which knows no chunks, to the end of the connection. A body that is shorter or longer than
declared, or that the app doesn't end, ends the connection before its promised end, so that the client can see it.

A stream must not hold the loop. As long as the kernel takes what is written, and when the client has gone, `send` would never
suspend. So one of `TURN_MESSAGES` lets the loop turn, also when the client has gone: an app that listens for
`http.disconnect` hears it. The engine cancels one that doesn't listen in a drain (`HttpEngine.close_idle`). What is written when is
told in `stream`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any

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
    from ..wsgi.pep3333 import Response
    from .connection import HttpConnection

Message = dict[str, Any]

logger = logging.getLogger("cluster2.http")

_SERVER_ERROR = "Internal Server Error"
_ASGI_VERSION = "3.0"
_SPEC_VERSION = "2.3"


class RequestPhase(IntEnum):
    """How far the response has come."""

    BEGUN = 0
    STARTED = 1
    SENDING = 2
    COMPLETE = 3


BEGUN, STARTED, SENDING, COMPLETE = 0, 1, 2, 3  # the same; an enumeration's members cost a lookup more


class HttpRequest:
    """A request, from the end of its head on.

    Attributes:
        connection: that brought it.
        transport: of the connection.
        method, version, path, raw_path, query, headers: what the head says; `path` is decoded, the version "1.1" or "1.0".
        scheme, client: by its connection, or by proxies that are believed.
        keep_alive: the connection may go on afterwards.
        asked_for_end: the client doesn't want it to.
        expects: the client waits for `100 Continue`.
        body: what has come of the body, and the app hasn't received.
        received: bytes that have come of the body.
        ended: all of the body has come.
        broken: the error response if the rest of the body can't be parsed, or won't come.
        phase: see above.
        disconnected: the client has left, or the server has given it up.
        waiters: futures of those that wait for a message.
        task: in which the app runs, if it is one.
        began: on the clock of `time.perf_counter`; only known if requests are logged.
        status: of the response.
        size: bytes of the response's body.
        unfinished: messages that weren't the end of the response, or were for a client that has gone.
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
        connection: HttpConnection,
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
        """Nothing has come but the head."""
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
        self.phase = BEGUN
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

    # What the app is called with.

    @property
    def scope(self) -> Message:
        """ASGI's. The app may have put something into it."""
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
        """Return the next message of the client's."""
        while True:
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
                if self.phase < SENDING:  # else it would come within the response
                    self.transport.write(CONTINUE_RESPONSE)
            waiter = self.connection.loop.create_future()
            if self.waiters is None:
                self.waiters = [waiter]
            else:
                self.waiters.append(waiter)
            await waiter

    async def send(self, message: Message) -> None:
        """Take a message of the app's. Raises InvalidResponse."""
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
        elif self.phase != BEGUN:
            raise InvalidResponse("the app sent http.response.start twice")
        else:
            self.status = status = message["status"]
            self._head = Head(connection.engine.defaults, status, message.get("headers", ()))
            self.phase = STARTED

    async def _take_turns(self) -> None:
        """Let others have their turn, and slow down an app that goes on though nothing is to be sent or received any more.

        Not at each message: a cancellation that comes while `send` waits leaves a generator to the garbage collector, one that
        comes while the generator waits by itself closes it at once.
        """
        self.unfinished += 1
        if not self.unfinished % MESSAGES_PER_TURN:
            await asyncio.sleep(0 if self.unfinished < MESSAGES_AFTER_DISCONNECT else DISCONNECTED_SEND_PAUSE_S)

    def answer(self, response: Response, body: bytes) -> bool:
        """Send a WSGI app's whole response in one step. Returns whether that was possible; if not, nothing has happened.

        Args:
            response: checked, with the length of its body.
            body: empty for a response that has none.
        """
        connection = self.connection
        if self.disconnected or self.phase != BEGUN or connection.writing_paused is not None or not self.ended:
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
        """Send the head with the first part of the body. Here the framing is decided."""
        head = self._head
        if head is None:
            raise InvalidResponse(
                "the app sent http.response.body after the end of its response"
                if self.phase == COMPLETE
                else "the app sent http.response.body before http.response.start"
            )
        length, end, left = head.length, HEAD_END, 0
        if head.close or self.expects or self.broken is not None:
            # A client that wasn't told to continue may send the body or not: its next bytes can't be understood.
            self.keep_alive = False
        if self.method == "HEAD" or self.status in _BODILESS:
            framing, body = NO_BODY, b""
        elif length is not None:
            framing, left = LENGTH_BODY, length - len(body)
            if left < 0 or (left and not more):
                raise InvalidResponse(
                    f"the app's body is {'longer' if left < 0 else 'shorter'} than its Content-Length"
                )
        elif not more:
            framing, end = LENGTH_BODY, b"\r\ncontent-length: %d%b" % (len(body), HEAD_END)
        elif self.version == "1.0":
            framing, self.keep_alive = UNTIL_CLOSE_BODY, False
        else:
            framing, end = CHUNKED_BODY, CHUNKED_LINE + HEAD_END
        if not self.keep_alive:
            end = CLOSE_LINE + end
        elif self.version == "1.0":
            end = KEEP_ALIVE_LINE + end
        self._head = None
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

    # What becomes of it.

    async def run(self, app: Callable[..., Any]) -> None:
        """Call the app, and see to it that the request ends with it."""
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
        """Let those go on that wait for a message."""
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
        """Tell the app that the client has left. What it sends from now on goes nowhere."""
        if self.phase != COMPLETE and not self.disconnected:
            outcomes = self.connection.engine.outcomes
            outcomes.disconnects += 1  # type: ignore[operator]  # this engine knows them
            self._drop(self.status if self.phase == SENDING else CLIENT_CLOSED_STATUS)
        self.wake()

    def _drop(self, status: int) -> None:
        """End a request whose response won't be complete: what the app sends from now on goes nowhere."""
        self.disconnected = True
        self.connection.engine.ended[status] += 1
        if self._stream is not None:
            self._stream.discard()
        if self.began:
            self.log()
        self.wake()

    def body_came(self, data: bytes) -> bool:
        """Take a part of the body. Returns whether more may be read."""
        self.received += len(data)
        if self.disconnected:
            return True
        self.expects = False
        self.body = self.body + data if self.body else data
        if self.waiters is not None:
            self.wake()
        return len(self.body) <= MAX_UNREAD_BODY_BYTES

    def take_body(self) -> bytes:
        """Return all of the body, which has come: it counts as received."""
        self._delivered = True
        body, self.body = self.body, b""
        return body

    def left_of_body(self) -> int:
        """Return how many bytes of the body are to come; 0: that isn't known."""
        length = next((value for name, value in self.headers if name == b"content-length"), b"0")
        return int(length) - self.received

    def has_room(self) -> bool:
        """Return whether more of the body may be read."""
        return len(self.body) <= MAX_UNREAD_BODY_BYTES or self.disconnected or self.phase == COMPLETE

    def failed(self, error: BaseException) -> None:
        """End a request whose app has raised."""
        gone = self.disconnected
        if not isinstance(error, Failed | asyncio.CancelledError):
            logger.error("%s: the app raised %s", self.named(), type(error).__name__, exc_info=error)
        if not gone or not isinstance(error, asyncio.CancelledError | ClientLeft):
            self._count_failure()
        if not gone:
            self._end_early()

    def _count_failure(self) -> None:
        """Count that the app has failed, unless the status says so, or will."""
        settled = self.phase >= SENDING
        if (settled or self.disconnected) and not (settled and self.status >= 500):
            self.connection.engine.outcomes.failed += 1

    def _unfinished(self) -> None:
        self._count_failure()
        what = "without a response" if self.phase == BEGUN else "before its response was complete"
        logger.error("%s: the app returned %s", self.named(), what)
        self._end_early()

    def _end_early(self) -> None:
        """Answer 500 if nothing is out; else end the connection before the promised end of the response."""
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
        if self.method == "HEAD":
            data, self.size = data[: -len(_SERVER_ERROR)], 0
        self.transport.write(data)
        self._complete()

    def give_up(self, response: bytes) -> None:
        """Answer for the app, which waits for the rest of a body that can't be had, and end the connection."""
        if self.phase == SENDING:
            self._cut(by_client=True)
            return
        self.transport.write(response)
        self.status, self.size = int(response[9:12]), len(response.partition(HEAD_END)[2])
        self._drop(self.status)
        self.connection.end()

    def _cut(self, *, by_client: bool = False) -> None:
        """End the connection before the promised end of a response that is being sent.

        Args:
            by_client: the client is the cause, not the app.
        """
        stream = self._stream
        assert stream is not None
        stream.flush()
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


_BODILESS = frozenset({204, 304})
