"""A websocket on a transport: what connects a `Session` with the loop and with the app.

The connection takes a transport over when the handshake has come (`start`). One task runs the app.

*Flow control.* Reading pauses while the app has much to receive, and while the client sends without having got its answer to the
handshake. It pauses as well while the client doesn't take what it is sent, since pongs would pile up otherwise; `send` waits for
the same. Data is parsed in slices, so that a read of many small messages doesn't become as many objects before the app is asked.

*Time.* No timer is set for a connection: the engine calls `poll` about once a second. It pings a client that has been silent for
`PING_INTERVAL_S`, and gives up one that has stayed silent `PING_TIMEOUT_S` longer (1011). Anything that comes counts as a sign of
life, and so does anything that the client takes of what was sent: its pong has to wait behind a long message. While reading is
paused because of the app, silence is our own doing and doesn't count. A connection that is to end, and doesn't, is reset after
`CLOSE_TIMEOUT_S`.

*The end.* When all is written our side is shut down, and what still comes is dropped until the client closes as well: closing at
once would reset the connection if the client had sent something, and the client could lose the last frame (RFC 9112, 9.6).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from ...linux.tcp_progress import transferred, untaken
from ..aborting import readable, reset
from ..outcomes import CLIENT_CLOSED_STATUS, Outcomes
from .proxy_headers import websocket_scheme
from .websocket_session import CLOSED, CLOSING, CONNECTING, OPEN, SPEC_VERSION, ClientDisconnected, Message, Session

MAX_MESSAGE_BYTES = 1 << 24
"""Of a message of the client's, as in uvicorn."""
MAX_QUEUED_MESSAGES = 16
_MAX_QUEUED_BYTES = 1 << 16
"""What an app may have to receive before reading pauses."""
MAX_SLICE_BYTES = 1 << 14
"""Bytes parsed in one step."""
PING_INTERVAL_S = 20.0
PING_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 10.0
"""How long a client may take to answer Close, or to take the rest of what was sent."""
LINGER_S = 1.0
"""How long a client may take to close when both sides have sent Close."""
ACCEPTED_STATUS = 101
_CLOSE_SERVICE_RESTART = 1012
"""The close code by which a client learns that it should connect again (IANA registry of RFC 6455)."""

logger = logging.getLogger("cluster2.http")


class WebSocketHost(Protocol):
    """What a websocket needs of its engine.

    Attributes:
        outcomes: how requests have ended. That of a websocket is its handshake.
    """

    outcomes: Outcomes

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run an app's call as a task."""

    def websocket_ended(self, websocket: WebSocketConnection) -> None:
        """The connection is lost, and the app's call has ended."""


class WebSocketConnection(asyncio.Protocol):
    """A connection that has become a websocket.

    Attributes:
        scope: ASGI's, of type websocket.
        session: what is known of the websocket itself; `session.status` is that of the handshake's response.
        transport: of the loop.
        task: that runs the app; None before `start`.
    """

    __slots__ = (
        "_answered",
        "_app",
        "_ending_since",
        "_heard",
        "_heard_at",
        "_host",
        "_lost",
        "_pinged_at",
        "_reading_paused",
        "_receivers",
        "_retiring",
        "_shut",
        "_taken",
        "_unparsed",
        "_writers",
        "_writing_paused",
        "scope",
        "session",
        "task",
        "transport",
    )

    def __init__(
        self,
        app: Callable[..., Any],
        scope: dict[str, Any],
        session: Session,
        transport: asyncio.Transport,
        host: WebSocketHost,
    ) -> None:
        """Take a connection over.

        Args:
            app: an ASGI 3 callable.
            scope: of the request, as for type http. It becomes the websocket's.
            session: of the request's handshake.
            transport: whose protocol this will be; set it before `start`.
        """
        self.scope = scope
        self.session = session
        self.transport = transport
        self.task: asyncio.Task[None] | None = None
        self._app = app
        self._answered = False
        self._host = host
        self._unparsed = b""
        self._reading_paused = False
        self._receivers: list[asyncio.Future[None]] = []
        self._writing_paused = False
        self._writers: list[asyncio.Future[None]] = []
        self._retiring = False
        self._lost = False
        self._shut = False
        self._heard = True
        self._heard_at = 0.0
        self._taken = 0
        self._pinged_at: float | None = None
        self._ending_since: float | None = None
        del scope["method"]
        scope |= {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": SPEC_VERSION},
            "scheme": websocket_scheme(scope["scheme"]),
            "subprotocols": session.subprotocols,
            "extensions": {"websocket.http.response": {}},
        }

    def start(self, early: bytes = b"") -> None:
        """Call the app.

        Args:
            early: what came behind the head. A client should wait for the answer, but not all do.
        """
        self._unparsed = early
        if early:
            self._regulate()
        self.task = self._host.spawn(self.run())

    # The transport's side.

    def data_received(self, data: bytes) -> None:
        """Parse what has come, as far as the app keeps up."""
        self._heard = True
        session = self.session
        if session.phase is CLOSED:
            return
        if self._unparsed or len(data) > MAX_SLICE_BYTES or self._has_enough():
            self._unparsed += data
            self._parse()
            return
        session.receive_data(data)
        if session.output:
            self._flush()
        if self._receivers and session.received:
            self._wake_receivers()
        if self._has_enough():
            self._regulate()

    def eof_received(self) -> None:
        """A websocket has no half-closed state: without the client's Close frame it is lost (RFC 6455, 7.1.5)."""
        self._shut = True  # the transport closes by itself
        self.session.receive_eof()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the app."""
        self._lost = True
        self._unparsed = b""
        self.session.receive_eof()
        self._wake()
        if self.task is None or self.task.done():
            self._host.websocket_ended(self)

    def pause_writing(self) -> None:
        """The client takes less than it is sent."""
        self._writing_paused = True
        self._regulate()

    def resume_writing(self) -> None:
        """The client has taken what it was sent."""
        self._writing_paused = False
        self._release_writers()
        self._parse()

    def _parse(self) -> None:
        """Parse what waits, slice by slice, until the app has enough."""
        session = self.session
        while self._unparsed and not self._has_enough():
            data, self._unparsed = self._unparsed[:MAX_SLICE_BYTES], self._unparsed[MAX_SLICE_BYTES:]
            session.receive_data(data)
            self._flush()
        if session.received and self._receivers:
            self._wake_receivers()
        self._regulate()

    def _has_enough(self) -> bool:
        """Return whether nothing is to be parsed now."""
        session = self.session
        if session.phase is not OPEN:  # what comes after our Close isn't for the app, so only pongs can pile up
            return self._writing_paused or not (session.phase is CLOSING or session.phase is CLOSED)
        full = len(session.received) >= MAX_QUEUED_MESSAGES or session.received_bytes >= _MAX_QUEUED_BYTES
        return full or self._writing_paused

    def _regulate(self) -> None:
        """Read on exactly if what comes could be parsed. A client that waits for its answer is read: it may leave."""
        if self._lost or self.transport.is_closing():
            return
        phase = self.session.phase
        answered = phase is OPEN or phase is CLOSING
        paused = phase is not CLOSED and (answered or bool(self._unparsed)) and self._has_enough()
        if paused and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()
        elif not paused and self._reading_paused:
            self._reading_paused = False
            self._heard = True  # the silence was ours
            self.transport.resume_reading()

    # The app's side.

    async def run(self) -> None:
        """Call the app, and answer for it if it doesn't."""
        session = self.session
        try:
            returned = await self._app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            session.app_failed()
        except (asyncio.CancelledError, GeneratorExit):
            session.app_failed()
            raise
        except BaseException as error:
            logger.error("%s: the app raised %s", self.named(), type(error).__name__, exc_info=error)
            session.app_failed()
            self._count_failure()
        else:
            if not session.app_returned():
                self._count_failure()
                logger.error("%s: the app returned without an answer to the handshake", self.named())
            elif returned is not None:
                logger.error(
                    "%s: the app returned %r; an ASGI app must return None", self.named(), type(returned).__name__
                )
        finally:
            self._count_answer()
            self._unparsed = b"" if session.phase is CLOSED else self._unparsed
            self._flush()
            self._parse()
            if self._lost:
                self._host.websocket_ended(self)

    def _count_answer(self) -> None:
        """Count the handshake, whose answer is known now, or will never come."""
        if self._answered:
            return
        self._answered = True
        outcomes = self._host.outcomes
        outcomes.by_status[self.session.status or CLIENT_CLOSED_STATUS] += 1
        if not self.session.status and outcomes.disconnects is not None:
            outcomes.disconnects += 1

    def _count_failure(self) -> None:
        """Count that the app has failed, unless the answer to the handshake says so."""
        if self.session.status < 500:
            self._host.outcomes.failed += 1

    async def receive(self) -> dict[str, Any]:
        """Return the next message. Raises ClientDisconnected after `websocket.disconnect`."""
        session = self.session
        while not session.received and not session.disconnect_taken:
            waiter = asyncio.get_running_loop().create_future()
            self._receivers.append(waiter)
            await waiter
        message = session.take_message()
        if self._reading_paused or self._unparsed:
            self._parse()
        return message

    async def send(self, message: Message) -> None:
        """Take a message of the app's, when the client has taken those before.

        Raises:
            ClientDisconnected: the client has gone, or is about to.
            RuntimeError: the message doesn't fit here.
        """
        session = self.session
        while self._writing_paused and not (session.phase is CLOSING or session.phase is CLOSED):
            waiter = asyncio.get_running_loop().create_future()
            self._writers.append(waiter)
            await waiter
        connecting = session.phase is CONNECTING
        try:
            session.send(message)
        finally:
            self._flush()
        if connecting:
            if session.status == ACCEPTED_STATUS:
                self._count_answer()
            if self._retiring:
                self._close(_CLOSE_SERVICE_RESTART)
            self._parse()

    def _flush(self) -> None:
        """Write what is to be written, and end our side if that was all."""
        session = self.session
        output = session.take_output()
        if self._lost or self.transport.is_closing():
            return
        if output:
            self.transport.write(output)
        if session.ended and not self._shut:
            self._shut = True
            self._wake()
            if self.transport.can_write_eof():
                self.transport.write_eof()
            else:
                self.transport.close()

    # The engine's side.

    def poll(self, now: float) -> None:
        """Look whether the client is still there; called about once a second.

        Args:
            now: on the monotonic clock.
        """
        session = self.session
        if self._lost:
            return
        if session.phase is CLOSED or session.phase is CLOSING:
            self._poll_end(now)
        elif self._heard or session.phase is not OPEN or self._is_silent_by_us() or self._has_taken():
            self._heard = False
            self._heard_at = now
            self._pinged_at = None
        elif self._pinged_at is None:
            if now - self._heard_at >= PING_INTERVAL_S:
                self._pinged_at = now
                session.ping()
                self._flush()
        elif now - self._pinged_at >= PING_TIMEOUT_S:
            session.give_up("no answer to a ping")
            self._flush()
            self._poll_end(now)

    def _is_silent_by_us(self) -> bool:
        return self._reading_paused and not self._writing_paused

    def _has_taken(self) -> bool:
        """Return whether the client has taken something since the last call, of more that it has to take."""
        size = self.transport.get_write_buffer_size()
        if not size:
            return False
        sock = self.transport.get_extra_info("socket")
        descriptor = -1 if sock is None else sock.fileno()
        counts = transferred(descriptor)
        before, self._taken = self._taken, size + untaken(descriptor) if counts is None else counts[0]
        return before != self._taken

    def _poll_end(self, now: float) -> None:
        """See that an end comes to its end."""
        if self._ending_since is None:
            self._ending_since = now
        waited = now - self._ending_since
        if waited >= CLOSE_TIMEOUT_S:
            self.abort()
        elif waited >= LINGER_S and self._shut and not self.transport.get_write_buffer_size():
            self.transport.close()

    def close_for_retire(self) -> None:
        """Tell the client to connect again (1012); once. A handshake that the app hasn't answered is closed afterwards."""
        if not self._retiring:
            self._retiring = True
            self._close(_CLOSE_SERVICE_RESTART)

    def _close(self, code: int) -> None:
        self.session.close(code)
        self._flush()
        self._wake()
        self._parse()

    def abort(self) -> None:
        """Reset the connection. The app's task is the caller's to cancel."""
        reset(self.transport)
        self.session.receive_eof()
        self._wake()

    def named(self) -> str:
        """Return peer and path for a log."""
        client = self.scope["client"]
        peer = f"{client[0]}:{client[1]}" if client else "unix:"
        return f"{peer} websocket {readable(self.scope['raw_path'])}"

    def _wake(self) -> None:
        """Let all go on that wait: there is something to be told."""
        self._wake_receivers()
        if self.session.phase is CLOSED or self.session.phase is CLOSING:
            self._release_writers()

    def _wake_receivers(self) -> None:
        receivers, self._receivers = self._receivers, []
        for waiter in receivers:
            if not waiter.done():
                waiter.set_result(None)

    def _release_writers(self) -> None:
        writers, self._writers = self._writers, []
        for waiter in writers:
            if not waiter.done():
                waiter.set_result(None)
