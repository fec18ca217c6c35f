"""A websocket on a transport: connect a `WebSocketSession` with the event loop and with the app.

The connection takes a transport over when the handshake has come (`start`). One task runs the app.

*Flow control.* Reading pauses while the app has much to receive, and while a client sends before it has got the response to its
handshake. Reading also pauses while the client doesn't take what it is sent, since pongs would pile up. `send` waits for the
same. Data is parsed in slices, so that one read of many small messages doesn't become as many objects before the app receives.

*Timeouts.* A connection has no timer. The engine calls `poll` about once a second. It pings a client that has been silent for
`PING_INTERVAL_S`, and closes the websocket if the client stays silent for another `PING_TIMEOUT_S` (1011). Any input proves that
the client is there. Any progress in taking output proves it as well, since a pong may have to wait behind a long message. Silence
doesn't count while reading is paused because of the app. A connection that is to end, and doesn't, is reset after
`CLOSE_TIMEOUT_S`.

*The end.* When all is written our side is shut down, and input is dropped until the client closes as well. Closing at once would
reset the connection if the client had sent something, and the client could lose the last frame (RFC 9112, 9.6).
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
from .websocket_session import (
    CLOSED,
    CLOSING,
    CONNECTING,
    OPEN,
    SPEC_VERSION,
    ClientDisconnected,
    Message,
    WebSocketSession,
)

MAX_MESSAGE_BYTES = 1 << 24
"""The longest message that a client may send, as in uvicorn."""
MAX_QUEUED_MESSAGES = 16
"""Messages that the app hasn't received, at which reading pauses."""
_MAX_QUEUED_BYTES = 1 << 16
"""Bytes of messages that the app hasn't received, at which reading pauses."""
MAX_SLICE_BYTES = 1 << 14
"""Bytes that are parsed in one step."""
PING_INTERVAL_S = 20.0
"""Silence of a client after which it is pinged."""
PING_TIMEOUT_S = 20.0
"""Silence after the ping, after which the websocket is closed."""
CLOSE_TIMEOUT_S = 10.0
"""The time that a client may take to answer Close, or to take the rest of what was sent."""
LINGER_S = 1.0
"""The time that a client may take to close the connection when both sides have sent Close."""
_ACCEPTED_STATUS = 101
_CLOSE_SERVICE_RESTART = 1012
"""The close code by which a client learns that it should connect again (IANA registry of RFC 6455)."""

logger = logging.getLogger("cluster2.http")


class _WebSocketHost(Protocol):
    """The part of the engine that a websocket needs.

    Attributes:
        outcomes: how requests have ended. A websocket's request is its handshake.
    """

    outcomes: Outcomes

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run an app's call as a task."""

    def websocket_ended(self, websocket: WebSocketConnection) -> None:
        """Forget a websocket whose connection is lost, and whose app's call has ended."""


class WebSocketConnection(asyncio.Protocol):
    """A connection that has become a websocket.

    Attributes:
        scope: the ASGI scope, of type websocket.
        session: the state of the websocket itself; `session.status` is the status of the handshake's response.
        transport: the loop's transport.
        task: the task that runs the app; None before `start`.
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
        session: WebSocketSession,
        transport: asyncio.Transport,
        host: _WebSocketHost,
    ) -> None:
        """Take a connection over.

        Args:
            app: an ASGI 3 callable.
            scope: the scope of the request, as for type http. It becomes the websocket's.
            session: the session of the request's handshake.
            transport: the caller makes this object its protocol before `start`.
            host: the engine.
        """
        self.scope = scope
        self.session = session
        self.transport = transport
        self.task: asyncio.Task[None] | None = None
        self._app = app
        self._answered = False  # the handshake's outcome was counted
        self._host = host
        self._unparsed = b""
        self._reading_paused = False
        self._receivers: list[asyncio.Future[None]] = []
        self._writing_paused = False
        self._writers: list[asyncio.Future[None]] = []
        self._retiring = False
        self._lost = False  # the transport is closed
        self._shut = False  # our side has ended
        self._heard = True  # something came since the last `poll`
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
            early: bytes that came behind the head. A client should wait for the response, but not all do.
        """
        self._unparsed = early
        if early:
            self._regulate()
        self.task = self._host.spawn(self.run())

    # The transport's side.

    def data_received(self, data: bytes) -> None:
        """Parse the bytes that have come, as far as the app keeps up."""
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
        """Treat the websocket as lost: without a Close frame it has no half-closed state (RFC 6455, 7.1.5)."""
        self._shut = True  # the transport closes by itself
        self.session.receive_eof()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the loss to the app."""
        self._lost = True
        self._unparsed = b""
        self.session.receive_eof()
        self._wake()
        if self.task is None or self.task.done():
            self._host.websocket_ended(self)

    def pause_writing(self) -> None:
        """Make `send` wait, since the client takes less than it is sent."""
        self._writing_paused = True
        self._regulate()

    def resume_writing(self) -> None:
        """Wake the calls of `send` that wait, since the client has taken what it was sent."""
        self._writing_paused = False
        self._release_writers()
        self._parse()

    def _parse(self) -> None:
        """Parse the waiting bytes, slice by slice, until the app has enough to receive."""
        session = self.session
        while self._unparsed and not self._has_enough():
            data, self._unparsed = self._unparsed[:MAX_SLICE_BYTES], self._unparsed[MAX_SLICE_BYTES:]
            session.receive_data(data)
            self._flush()
        if session.received and self._receivers:
            self._wake_receivers()
        self._regulate()

    def _has_enough(self) -> bool:
        """Return whether parsing has to wait."""
        session = self.session
        if session.phase is not OPEN:  # input after our Close isn't for the app, so only pongs can pile up
            return self._writing_paused or not (session.phase is CLOSING or session.phase is CLOSED)
        full = len(session.received) >= MAX_QUEUED_MESSAGES or session.received_bytes >= _MAX_QUEUED_BYTES
        return full or self._writing_paused

    def _regulate(self) -> None:
        """Pause reading if input couldn't be parsed, else resume it.

        While the client waits for the response to its handshake, reading goes on, so that its leaving is noticed.
        """
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
        """Call the app. If it ends without a response to the handshake, or a Close, send one."""
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
                logger.error("%s: the app returned without a response to the handshake", self.named())
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
        """Count the handshake, whose response is known now, or will never come."""
        if self._answered:
            return
        self._answered = True
        outcomes = self._host.outcomes
        outcomes.by_status[self.session.status or CLIENT_CLOSED_STATUS] += 1
        if not self.session.status and outcomes.disconnects is not None:
            outcomes.disconnects += 1

    def _count_failure(self) -> None:
        """Count that the app has failed, unless the status of the handshake's response is 5xx."""
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
        """Take a message of the app, when the client has taken those before.

        Raises:
            ClientDisconnected: the client has gone, or the websocket is closing.
            RuntimeError: the message isn't allowed in this phase.
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
            if session.status == _ACCEPTED_STATUS:
                self._count_answer()
            if self._retiring:
                self._close(_CLOSE_SERVICE_RESTART)
            self._parse()

    def _flush(self) -> None:
        """Write the session's output, and end our side if the session has ended."""
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
        """Check that the client is still there. Called about once a second.

        Args:
            now: the monotonic time.
        """
        session = self.session
        if self._lost:
            return
        if session.phase is CLOSED or session.phase is CLOSING:
            self._poll_end(now)
        elif self._heard or session.phase is not OPEN or self._is_paused_for_app() or self._has_taken():
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

    def _is_paused_for_app(self) -> bool:
        return self._reading_paused and not self._writing_paused

    def _has_taken(self) -> bool:
        """Return whether the client has taken some output since the last call, and has more to take."""
        size = self.transport.get_write_buffer_size()
        if not size:
            return False
        sock = self.transport.get_extra_info("socket")
        descriptor = -1 if sock is None else sock.fileno()
        counts = transferred(descriptor)  # None over a Unix socket: then the bytes that are left show the progress
        before, self._taken = self._taken, size + untaken(descriptor) if counts is None else counts[0]
        return before != self._taken

    def _poll_end(self, now: float) -> None:
        """Close or reset a connection whose websocket has ended, if the client doesn't close it."""
        if self._ending_since is None:
            self._ending_since = now
        waited = now - self._ending_since
        if waited >= CLOSE_TIMEOUT_S:
            self.abort()
        elif waited >= LINGER_S and self._shut and not self.transport.get_write_buffer_size():
            self.transport.close()

    def close_for_retire(self) -> None:
        """Ask the client once to connect again (close code 1012). If the app hasn't accepted yet, `send` does it afterwards."""
        if not self._retiring:
            self._retiring = True
            self._close(_CLOSE_SERVICE_RESTART)

    def _close(self, code: int) -> None:
        self.session.close(code)
        self._flush()
        self._wake()
        self._parse()

    def abort(self) -> None:
        """Reset the connection. The caller cancels the app's task."""
        reset(self.transport)
        self.session.receive_eof()
        self._wake()

    def named(self) -> str:
        """Return peer and path for a log."""
        client = self.scope["client"]
        peer = f"{client[0]}:{client[1]}" if client else "unix:"
        return f"{peer} websocket {readable(self.scope['raw_path'])}"

    def _wake(self) -> None:
        """Wake the calls that wait, since the session's phase may have changed."""
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
