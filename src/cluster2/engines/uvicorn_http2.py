"""uvicorn's HTTP/2 connection. How a connection becomes one stands in `uvicorn_versions`.

It doesn't move: open streams, header tables and windows are state of this process.

*Leaving.* GOAWAY tells the client which stream was the last that was served: whatever it has sent beyond that was not begun, and
it may send it again elsewhere. It is said at a moment without an open stream, if one comes within the grace; else with streams
open: these are finished, new ones are ignored. Nor is it said before a first request, within the grace: to Python's h2 a last
stream of 0 means that all has failed. Three things were tried and left:

- the two steps that RFC 9113, 6.8 suggests (first with the greatest number possible, then with the true one): clients built on
  Python's h2, httpx among them, take nothing any more after a GOAWAY, and with the first one even fail a request that comes
  later;
- GOAWAY at once, whatever is open: the same clients fail what they have open;
- RST_STREAM (REFUSED_STREAM) for each stream beyond the last: to the same clients that is an error, and GOAWAY has said it all.

With it a PING is sent (before it: Python's h2 takes that for an error as well if it comes later); when it is answered, the client
has read all that there was, and the connection is closed. To close at once might lose the end of a response: the kernel resets a
connection that is closed while something unread arrives.

*Back-pressure.* zttp keeps what a stream's window doesn't let out, without a bound. So a stream's app waits while more than
`HELD_BACK` bytes of that stream are kept; other streams aren't touched. What is kept when the response is complete belongs to
the response: the connection isn't idle before it is out.

Of uvicorn and zttp, these internals are used; `check` looks for them at start, `tests/unit/test_uvicorn_http2.py` pins them:

- the protocol's `conn`, `transport`, `cycles` (by stream, those that are under way), `flow.write_paused`, `flow.drain`, `scheme`,
  `server_state`, and its methods `connection_made`, `connection_lost`, `data_received`, `flush`, `events`, `handle_events`,
  `handle_request`, `handle_rst_stream`, `on_response_complete`, `on_stream_closed`, `resume_reading_if_idle`,
  `_close_connection`;
- that a request makes an entry of `cycles`; that `on_response_complete` is called once for each, when its response is complete
  or its task has ended; that a cycle looks at its `flow` (`write_paused`, `drain`) before it sends; its `stream`, `disconnected`;
- zttp's connection: `close` queues a GOAWAY, and it goes on after that; `has_pending_send`, `next_event`, `receive_data`,
  `data_to_send` (whole frames), and a stream's `reset`, `pending_bytes`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Iterator
from typing import Any, ClassVar

import zttp
from uvicorn.protocols.http.zttp_h2_impl import RequestResponseCycle, ZttpH2Protocol

from ..errors import ConfigError
from .ending import reset
from .patience import For, Wait
from .uvicorn_flow import TURN
from .uvicorn_gone import client_gone
from .uvicorn_http import Clock, Same, taken_of

HELD_BACK = 65536
"""Bytes of a stream that may wait for its window before its app has to wait."""
MOST_RUNNING = 256
"""Handlers of one connection that may run: those of cancelled streams count, or a client could start any number."""
ANSWER_ME = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00cluster2"
"""A PING (RFC 9113, 6.7); zttp can't make one."""

logger = logging.getLogger("uvicorn.error")


class Http2Connection(ZttpH2Protocol):
    """A connection of HTTP/2. Each engine makes a subclass, so that `leaving` may hold for all of its connections.

    Attributes:
        used: when its last stream was done, by the clock; 0: not known yet.
        leaving: it ends as soon as it politely can.
        asked_at: since when it is, by the clock.
        last: the number of the last stream that is served, once GOAWAY has said so.
    """

    clock: ClassVar[Clock] = Clock()
    leaving: bool = False
    used: float = 0.0
    asked_at: float = 0.0
    last: int | None = None
    _highest: int = 0
    _running: int = 0
    _pinged: bool = False
    _answered: bool = False
    _progress: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """uvicorn's; one that comes while all leave has its grace from now on."""
        super().connection_made(transport)
        self.asked_at = self.clock.now

    def connection_lost(self, exc: Exception | None) -> None:
        """uvicorn's; apps that wait for a window needn't any more."""
        for cycle in self.cycles.values():
            if not cycle.response_complete:
                client_gone(cycle)
        super().connection_lost(exc)
        self._went_on()

    def handle_rst_stream(self, event: Any) -> None:
        """uvicorn's; the app that still sends is told by its flow."""
        cycle = self.cycles.get(event.stream_id)
        if cycle is not None and not cycle.response_complete:
            client_gone(cycle)
        super().handle_rst_stream(event)

    def data_received(self, data: bytes) -> None:
        """uvicorn's, without its timer."""
        try:
            self.conn.receive_data(data)
            self.handle_events()
        except zttp.RemoteProtocolError as error:
            logger.warning("Invalid HTTP/2 frame received: %s", error)
            self.flush()
            self.transport.close()
            return
        self.flush()
        self._went_on()
        if not self.cycles:
            self._without_stream()

    def events(self) -> Iterator[Any]:  # type: ignore[override]
        """uvicorn's; notes that our PING was answered."""
        while (event := self.conn.next_event()) is not zttp.NEED_DATA:
            if isinstance(event, zttp.Ping) and event.ack and event.data == ANSWER_ME[-8:]:
                self._answered = True
            yield event

    def handle_request(self, event: Any) -> None:
        """uvicorn's, if the stream is to be served at all."""
        number = event.stream_id
        if self.last is not None:
            return  # GOAWAY has refused it
        if self._running >= MOST_RUNNING:
            self.conn.stream(number).reset(zttp.H2ErrorCode.REFUSED_STREAM)
            return
        self._highest = number
        try:
            super().handle_request(event)
        except UnicodeDecodeError:  # a path or a method that isn't ASCII; its connection isn't to blame
            self.conn.stream(number).reset(zttp.H2ErrorCode.PROTOCOL_ERROR)
            return
        self._running += 1
        cycle: Any = self.cycles[number]
        cycle.flow = Stream(self, cycle)
        if event.end_stream:
            cycle.more_body = False
            cycle.message_event.set()

    def on_response_complete(self, stream_id: int) -> None:
        """uvicorn's, without its timer."""
        self._running -= 1
        self.server_state.total_requests += 1
        self.cycles.pop(stream_id, None)
        self.on_stream_closed()

    def on_stream_closed(self) -> None:
        """uvicorn's, without its timer."""
        if not self.transport.is_closing():
            self.resume_reading_if_idle()
            if not self.cycles:
                self.used = self.clock.now
                self._without_stream()

    def _close_connection(self) -> None:
        """The client has said GOAWAY, and nothing is under way."""
        self.leave()

    def idle_since(self) -> float:
        """When it was last used. It counts as used when somebody first asks, if nobody knows."""
        if not self.used:
            self.used = self.clock.now
        return self.used

    def busy(self) -> bool:
        """Whether a stream is open, or something of a response is still to be written."""
        return bool(self.cycles) or self.conn.has_pending_send()

    def waits(self) -> Wait | None:
        """See `patience`. Only requests count as use: a client that sends nothing but PINGs is idle."""
        transport = self.transport
        if size := transport.get_write_buffer_size():
            return Wait(For.TAKING, taken_of(transport, size))
        if self.cycles or transport.is_closing():
            return None
        if self.conn.has_pending_send():
            return Wait(For.TAKING, taken_of(transport, 0))
        if self.leaving:
            return None  # it has its grace
        return Wait(For.REQUEST, self.idle_since())

    def give_up(self, what: For) -> None:
        """See `patience`."""
        if what is For.TAKING:
            reset(self.transport)  # else the kernel would keep what the client doesn't take
        else:
            self.leave()

    def leave(self) -> None:
        """End as soon as there is a moment without an open stream."""
        self.leaving = True
        self.asked_at = self.clock.now
        self._without_stream()

    def hurry(self) -> None:
        """The grace is over: refuse new streams, or close if nothing is under way."""
        if self.transport.is_closing():
            return
        if self.last is None:
            self._say_goaway()
        elif not self.busy():
            self.transport.close()

    def _without_stream(self) -> None:
        """Go on leaving, if that is wanted and nothing is under way. A client that just came has its grace for a request."""
        if (
            self.leaving
            and (self._highest or self.last is not None)
            and not self.busy()
            and not self.transport.is_closing()
        ):
            if not self._pinged:
                self._pinged = True
                self.transport.write(ANSWER_ME)
                if self.last is None:
                    self._say_goaway()
            elif self._answered:
                self.transport.close()

    def _say_goaway(self) -> None:
        self.last = self._highest
        self.conn.close(zttp.H2ErrorCode.NO_ERROR, self.last)
        self.flush()

    def _went_on(self) -> None:
        if self._progress is not None:
            self._progress.set_result(None)
            self._progress = None

    async def progress(self) -> None:
        """Wait until something comes from the client, or it is gone."""
        if self._progress is None:
            self._progress = self.loop.create_future()
        await asyncio.shield(self._progress)


class Stream:
    """A stream that is under way: its cycle asks it before it sends; and what it waits for is its own (see `patience`).

    Attributes:
        cycle: uvicorn's.
    """

    __slots__ = ("_asked", "_connection", "cycle")

    def __init__(self, connection: Http2Connection, cycle: Any) -> None:
        self._connection = connection
        self._asked = 0
        self.cycle = cycle

    @property
    def write_paused(self) -> bool:
        """Whether the transport, or the stream's window, holds too much back; or the loop is to turn (`uvicorn_flow`)."""
        self._asked += 1
        return not self._asked % TURN or self._connection.flow.write_paused or self._full()

    async def drain(self) -> None:
        """Wait until neither does, and for a turn of the loop."""
        await asyncio.sleep(0)
        while self._full():
            await self._connection.progress()
        await self._connection.flow.drain()

    def waits(self) -> Wait | None:
        """See `patience`."""
        cycle = self.cycle
        if self._full():
            return Wait(For.TAKING, cycle.stream.pending_bytes)
        if cycle.more_body and not cycle.response_started and cycle.message_event._waiters:
            return Wait(For.BODY, (Same(cycle.body), len(cycle.body)))
        return None

    def give_up(self, what: For) -> None:
        """See `patience`; the connection's other streams go on."""
        cycle, stream = self.cycle, self.cycle.stream
        client_gone(cycle)
        if what is For.BODY:
            stream.send_response(408, [(b"content-type", b"text/plain; charset=utf-8")])
            stream.send_data(b"Request Timeout")
            stream.end_message()
        stream.reset(zttp.H2ErrorCode.NO_ERROR if what is For.BODY else zttp.H2ErrorCode.CANCEL)
        self._connection.flush()
        self._connection._went_on()

    def _full(self) -> bool:
        return not self.cycle.disconnected and (self.cycle.stream.pending_bytes or 0) > HELD_BACK


def check() -> None:
    """See that uvicorn's HTTP/2 and zttp are what this file was written for. Raises ConfigError."""
    missing = [name for name in _METHODS if not callable(getattr(ZttpH2Protocol, name, None))]
    said = inspect.getsource(ZttpH2Protocol.__init__) + inspect.getsource(RequestResponseCycle.__init__)
    missing += [name for name in _ATTRIBUTES if f"self.{name}" not in said]
    missing += [f"zttp's {name}" for name in _OF_CONNECTION if not hasattr(zttp.H2Connection, name)]
    missing += [f"zttp's {name}" for name in _OF_STREAM if not hasattr(zttp.Stream, name)]
    if missing:
        raise ConfigError(
            f"http2: uvicorn and zttp that are installed lack what cluster2 builds on: {', '.join(missing)}; "
            "install what cluster2[http2] asks for"
        )


_METHODS = [
    "connection_made",
    "connection_lost",
    "data_received",
    "flush",
    "events",
    "handle_events",
    "handle_request",
    "handle_rst_stream",
    "on_response_complete",
    "on_stream_closed",
    "resume_reading_if_idle",
    "_close_connection",
]
_ATTRIBUTES = [
    "conn",
    "transport",
    "flow",
    "scheme",
    "server_state",
    "cycles",
    "stream",
    "disconnected",
    "more_body",
    "message_event",
    "on_response",
]
_OF_CONNECTION = ["close", "has_pending_send", "next_event", "receive_data", "data_to_send", "stream"]
_OF_STREAM = ["reset", "pending_bytes"]
