"""uvicorn's HTTP/1.1 connection, made fit to outlive its worker.

Three things differ from uvicorn's own: there is no keep-alive timer for each request (the worker's tick sweeps), somebody who
asks can derive whether the connection is between two requests, and one that was taken by our acceptor tells when its request
has begun. Nothing is noted on the way of a request that isn't needed there.

A new connection costs less than uvicorn's. Its attributes are copied from a template, a connection that uvicorn's own constructor
made, in one step (3.0 µs, not 4.9); and its two addresses are asked of the transport, which knows them already, not of a
socket object made for the question (five system calls and three objects less).

uvicorn has several parsers. Measured with an empty handler, CPU time a request of one worker, interleaved: httptools 1, zttp
0.0.35 1.04 (a connection per request: 0.96), h11 3.2. httptools is the one with a history, so it is the one that is used.

Of uvicorn, these internals are used; `check` looks for them at start, `tests/unit/test_uvicorn_internals.py` pins them:

- that two protocols made with the same arguments differ in `parser` and `pipeline` only, all else being shared or unchanging;
- the protocol's `connections`, `server`, `client`, `parser`, `transport`, `flow` (`read_paused`, `write_paused`),
  `scope`, `cycle`, `pipeline`, `scheme`, `server_state`, `loop`, `tasks`, and its methods `_start_asgi_task`,
  `on_headers_complete`, `on_message_complete`, `on_response_complete`, `connection_made`, `connection_lost`,
  `data_received`, `send_400_response`, `_should_upgrade`, `handle_websocket_upgrade`, `_unsupported_upgrade_warning`,
  `_unset_keepalive_if_required`;
- a cycle's `scope`, `response_started`, `response_complete`, `body`, `more_body`, `message_event`, `keep_alive`, `disconnected`,
  `waiting_for_100_continue`, `chunked_encoding`, `expected_content_length`; that an app that wants more of a body waits for
  `message_event` (see its `_waiters`), and gets `body`, which another one then replaces; that a message's
  beginning puts a new `scope` on the protocol, that the end of its head puts a new `cycle`, and that
  `cycle.scope` is the message's;
- `on_response_complete` and `_start_asgi_task` are looked up on the protocol for each request; the parser's callbacks when
  the protocol is made.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

import httptools
import uvicorn
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from ..errors import ConfigError
from ..kernel.progress import transferred, untaken
from .base import Served
from .ending import abandon, reset
from .patience import For, Wait
from .uvicorn_flow import Flow
from .uvicorn_gone import client_gone
from .uvicorn_old import OldCycle

TESTED = ((0, 54), (0, 55))
"""From the first version of uvicorn, up to and without the second."""

_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 15\r\nconnection: close\r\n\r\nRequest Timeout"
)
LONGEST_HEAD = 1 << 16
"""Bytes of a request's head, beside those of its first read."""
_TOO_LONG = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 20\r\nconnection: close\r\n\r\nThe head is too long"
)

logger = logging.getLogger("uvicorn.error")


class _Dropped(list[Any]):
    """Stays empty."""

    def append(self, _: Any) -> None: ...


_DROPPED = _Dropped()


class Clock:
    """The time, as the worker's tick last saw it: coarse, and free to read."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0


class HttpConnection(HttpToolsProtocol):
    """A connection. Each engine makes a subclass, so that its hooks are its own.

    Attributes:
        context: what a request begins with: the context variables of the worker.
        used: when its last response was complete, by the clock; 0: not known yet.
        left: it was handed over; our copy is closing.
        serving: the request that is served, or was last; None before the first one.
    """

    clock: ClassVar[Clock] = Clock()
    context: ClassVar[contextvars.Context] = contextvars.Context()
    template: ClassVar[Mapping[str, Any]]
    used: float = 0.0
    left: bool = False
    serving: Any = None
    _head: Any = None  # the scope whose head takes more than one read, and how many bytes of it have come since
    _head_size: int = 0

    def __init__(self) -> None:
        """Like the template (see `template_of`), with what belongs to one connection alone."""
        self.__dict__.update(self.template)
        self.pipeline = deque()
        self.parser = parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """uvicorn's, with addresses that the transport knows already."""
        self.connections.add(self)
        self.transport = transport
        self.flow = Flow(transport, self.pipeline)
        info = transport.get_extra_info
        local, peer = info("sockname"), info("peername")
        self.server = (local, None) if isinstance(local, str) else (local[0], local[1]) if local else None
        self.client = (peer[0], peer[1]) if isinstance(peer, tuple) else None  # a Unix socket's peer has no name
        self.scheme = "https" if info("sslcontext") else "http"

    def data_received(self, data: bytes) -> None:
        """uvicorn's, without its timer, and with a bound for heads, which the parser keeps whatever their length."""
        try:
            self.parser.feed_data(data)
            cycle: Any = self.cycle
            if cycle is None or cycle.scope is not self.scope:
                self._read_of_head(len(data))
        except httptools.HttpParserError:
            logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._unsupported_upgrade_warning()

    def _read_of_head(self, size: int) -> None:
        """A head isn't complete yet. What came with its beginning isn't counted: the end of a body may be before it."""
        if self._head is not self.scope:
            self._head, self._head_size = self.scope, 0
            return
        self._head_size += size
        if self._head_size > LONGEST_HEAD:
            logger.warning("A request's head has more than %d bytes.", LONGEST_HEAD)
            self.transport.write(_TOO_LONG)
            self.transport.close()

    def on_chunk_header(self) -> None:
        """What follows the last chunk are trailers: as headers they could pose as others (RFC 9110, 6.5.1)."""
        self.headers = _DROPPED

    def on_message_complete(self) -> None:
        """uvicorn's; but a body that ends after its response has ended, too, so that the connection can move again."""
        if not (self.parser.should_upgrade() and self._should_upgrade()):
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """uvicorn's, but for an option of its that isn't used; and a client of HTTP/1.0 is answered as one.

        What is served is noted: `cycle` is the newest request, which may have to wait for others.
        """
        self.serving = cycle
        if not cycle.keep_alive and cycle.scope["http_version"] == "1.0":
            cycle.__class__ = OldCycle
        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def on_response_complete(self) -> None:
        """uvicorn's, without its timer; and no further request is begun for a client that doesn't take its response."""
        self.used = self.clock.now
        self.server_state.total_requests += 1
        flow: Any = self.flow
        if (flow.read_paused or self.pipeline) and not (flow.full and self.pipeline):
            self._go_on()

    def resume_writing(self) -> None:
        """uvicorn's; and a request that had to wait until the response before it was taken begins."""
        super().resume_writing()
        if self.pipeline and self.serving.response_complete:
            self._go_on()

    def _go_on(self) -> None:
        """Read on, and begin with the next request of the pipeline."""
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            # Who has sent the last of the response has its own context variables: the next request must not begin with them.
            self.context.copy().run(self._start_asgi_task, *self.pipeline.pop())

    def connection_lost(self, exc: Exception | None) -> None:
        """uvicorn's; but it is the request that is served now that has to know."""
        self.disown()
        super().connection_lost(exc)

    def disown(self) -> None:
        """What the app still says is for nobody; if it waits for its client it is told so."""
        serving = self.serving
        if serving is not None and not serving.response_complete:
            client_gone(serving)

    def idle(self) -> bool:
        """Whether it waits for its client: no request has begun, or the last one was answered."""
        cycle: Any = self.cycle  # None before the first request, whatever its annotation says
        if cycle is None:
            return self.scope is None
        return bool(cycle.response_complete and cycle.scope is self.scope and not self.pipeline)

    def between(self) -> bool:
        """Whether it is idle, and nothing of the last request is still to be read."""
        cycle: Any = self.cycle
        return self.idle() and (cycle is None or not cycle.more_body)

    def may_move(self) -> bool:
        """Whether another process could go on with it."""
        transport = self.transport
        return (
            self.between()
            and not self.left
            and self.scheme == "http"
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
        )

    def kept_alive(self) -> bool:
        """Whether it has brought a request already."""
        cycle: Any = self.cycle
        return cycle is not None

    def idle_since(self) -> float:
        """When it was last used. It counts as used when somebody first asks, if nobody knows."""
        if not self.used:
            self.used = self.clock.now
        return self.used

    def waits(self) -> Wait | None:
        """See `patience`. Whether the app waits for a body is seen by its waiting for the event that tells of one."""
        transport = self.transport
        if size := transport.get_write_buffer_size():
            return Wait(For.TAKING, taken_of(transport, size))
        if transport.is_closing():
            return None
        cycle: Any = self.cycle
        if self.idle():
            return Wait(For.REQUEST, self.idle_since())
        if cycle is None or (cycle.response_complete and not self.pipeline):
            return Wait(For.HEAD, Same(self.scope))
        if cycle.more_body and not cycle.response_started and not cycle.waiting_for_100_continue and not self.pipeline:
            # Bytes that come make this body longer; an app that takes them puts another in its place.
            return Wait(For.BODY, (Same(cycle.body), len(cycle.body))) if cycle.message_event._waiters else None
        return None

    def give_up(self, what: For) -> None:
        """See `patience`."""
        if what is For.TAKING:
            # Disowned at once: when its writes are given up the transport lets the app go on before it says that it is closed.
            self.disown()
            reset(self.transport)  # else the kernel would keep what the client doesn't take
            return
        if what is not For.REQUEST:
            if what is For.BODY:
                self.disown()
            self.transport.write(_TOO_SLOW)
        self.transport.close()

    def place(self) -> tuple[int, int]:
        """Its descriptor and address family."""
        sock = self.transport.get_extra_info("socket")
        return sock.fileno(), sock.family

    def let_go(self) -> None:
        """Another process has it: close our copy. With uvloop, abort() is close(2) without shutdown(2)."""
        self.left = True
        self._unset_keepalive_if_required()
        self.transport.abort()

    def abandon(self, step: str) -> None:
        """Log the exception that is being handled, and reset the connection."""
        abandon(self.transport, step)


def template_of(config: Config, state: ServerState, app_state: dict[str, Any]) -> dict[str, Any]:
    """What all connections of an engine have in common, from two that uvicorn's own constructor made.

    Raises:
        ConfigError: they differ in more than this file knows of.
    """
    loop = asyncio.get_running_loop()
    one, two = (vars(HttpToolsProtocol(config, state, app_state, loop)) for _ in range(2))
    own = {name for name, value in one.items() if value is not two[name]}
    if own != _OWN:
        raise ConfigError(f"uvicorn {uvicorn.__version__} keeps other things for each connection: {sorted(own ^ _OWN)}")
    return {name: value for name, value in one.items() if name not in own}


def taken_of(transport: asyncio.Transport, size: int) -> int:
    """A number that changes as soon as the client takes something of what was sent to it, `size` bytes of it by the transport."""
    sock = transport.get_extra_info("socket")
    descriptor = -1 if sock is None else sock.fileno()
    counts = transferred(descriptor)
    return size + untaken(descriptor) if counts is None else counts[0]


class Same:
    """Equal to another of the same object only; it keeps that alive, so that no other can have its place."""

    __slots__ = ("what",)

    def __init__(self, what: object) -> None:
        self.what = what

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.what is self.what

    __hash__ = None  # type: ignore[assignment]


class TakenConnection(HttpConnection):
    """One that our acceptor took: it may bring its first bytes with it, and tells when its request has begun."""

    served: Served
    first: bytes | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Read at once what came before the transport existed."""
        super().connection_made(transport)
        first, self.first = self.first, None
        if first is not None:
            self.data_received(first)

    def on_headers_complete(self) -> None:
        """The handler's task exists; its first step is due."""
        super().on_headers_complete()
        self.served(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It won't ask any more."""
        super().connection_lost(exc)
        self.served(self)


def check() -> None:
    """See that uvicorn is what this file was written for. Raises ConfigError."""
    version = tuple(int(part) for part in uvicorn.__version__.split(".")[:2])
    least, above = TESTED
    if not least <= version < above:
        tested = f">={least[0]}.{least[1]},<{above[0]}.{above[1]}"
        raise ConfigError(f"uvicorn {uvicorn.__version__} is installed, cluster2 is tested with {tested}; install that")
    missing = [name for name in _METHODS if not callable(getattr(HttpToolsProtocol, name, None))]
    said = inspect.getsource(HttpToolsProtocol.__init__) + inspect.getsource(RequestResponseCycle.__init__)
    missing += [name for name in _ATTRIBUTES if f"self.{name}" not in said]
    if missing:
        raise ConfigError(f"uvicorn {uvicorn.__version__} lacks what cluster2 builds on: {', '.join(missing)}")


_OWN = {"parser", "pipeline"}
_METHODS = [
    "_start_asgi_task",
    "on_headers_complete",
    "on_message_complete",
    "on_response_complete",
    "connection_made",
    "connection_lost",
    "data_received",
    "send_400_response",
    "_should_upgrade",
    "handle_websocket_upgrade",
    "_unsupported_upgrade_warning",
    "_unset_keepalive_if_required",
]
_ATTRIBUTES = [
    "connections",
    "server",
    "client",
    "parser",
    "transport",
    "flow",
    "scope",
    "cycle",
    "pipeline",
    "scheme",
    "server_state",
    "response_started",
    "response_complete",
    "body",
    "more_body",
    "message_event",
    "disconnected",
    "waiting_for_100_continue",
    "keep_alive",
    "on_response",
    "loop",
    "tasks",
    "chunked_encoding",
    "expected_content_length",
]
