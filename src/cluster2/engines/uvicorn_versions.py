"""HTTP/1.1 and HTTP/2 on one port, where the option `http2` is on.

A connection begins as one of HTTP/1.1 (`EitherConnection`) and changes over if TLS has agreed on `h2` (ALPN), or if its first
bytes are HTTP/2's preface (prior knowledge). So HTTP/1.1 keeps all that `uvicorn_http` gives it: plain connections of it move.
`Upgrade: h2c` isn't answered (RFC 9113 has dropped it): such a request is served by HTTP/1.1.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import ClassVar

from uvicorn.protocols.http.zttp_h2_impl import RequestResponseCycle
from uvicorn.server import ServerState

from .ending import abandon
from .patience import Patient
from .uvicorn_http import Clock, HttpConnection, TakenConnection
from .uvicorn_http2 import Http2Connection

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client of HTTP/2 begins with (RFC 9113, 3.4)."""
QUIET = 0.1
"""Seconds without a stream after which a connection may be ended for balance."""


class EitherConnection(HttpConnection):
    """One of HTTP/1.1 that becomes one of HTTP/2 if its client wants that.

    Attributes:
        http2: the class that it becomes.
        early: its first bytes, as long as they may be the beginning of a preface; None: they aren't.
    """

    http2: ClassVar[type[Http2Connection]] = Http2Connection
    early: bytes | None = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """TLS knows at once."""
        super().connection_made(transport)
        if self.scheme == "https":
            self.early = None
            tls = transport.get_extra_info("ssl_object")
            if tls is not None and tls.selected_alpn_protocol() == "h2":
                self._change_over(b"")

    def data_received(self, data: bytes) -> None:
        """The first bytes of a plain connection tell."""
        if self.early is None:
            HttpConnection.data_received(self, data)
            return
        early = self.early + data
        if early.startswith(PREFACE):
            self._change_over(early)
        elif PREFACE.startswith(early):
            self.early = early
        else:
            self.early = None
            HttpConnection.data_received(self, early)

    def between(self) -> bool:
        """As for any, and no part of a preface has come."""
        return not self.early and super().between()

    def _change_over(self, first: bytes) -> None:
        self.connections.discard(self)
        successor = self.http2(self.config, self.server_state, self.app_state, self.loop)
        self.transport.set_protocol(successor)
        successor.connection_made(self.transport)
        if first:
            successor.data_received(first)
        if successor.cycles and isinstance(self, TakenConnection):
            self.served(self)


class Http2:
    """What an engine does about its connections of HTTP/2.

    Attributes:
        either: the class that connections begin as.
    """

    def __init__(self, state: ServerState, clock: Clock, grace: float, keep_alive: bool) -> None:
        """Nothing is open yet.

        Args:
            state: has the engine's connections, of all kinds.
            grace: seconds for which a connection that is to end may wait for a moment without a stream.
            keep_alive: connections live on after that moment.
        """
        self._state = state
        self._clock = clock
        self._grace = grace
        self._kind: type[Http2Connection] = type(
            "Http2Connection", (Http2Connection,), {"clock": clock, "leaving": not keep_alive}
        )
        self.either: type[EitherConnection] = type("EitherConnection", (EitherConnection,), {"http2": self._kind})

    def has(self, connection: object) -> bool:
        """Whether it is one of HTTP/2."""
        return isinstance(connection, self._kind)

    def cycles(self) -> list[RequestResponseCycle]:
        """Requests under way."""
        return [cycle for connection in self._all() for cycle in connection.cycles.values()]

    def patients(self) -> list[Patient]:
        """Connections, and the streams that are under way."""
        connections = self._all()
        return [*connections, *(cycle.flow for each in connections for cycle in each.cycles.values())]  # type: ignore[list-item]

    def shed(self, count: int) -> int:
        """End up to so many, for balance; returns how many.

        Only those that have been without a stream for a moment: a busy client would have a request on the way that is refused
        then, and not all clients repeat it.
        """
        now = self._clock.now
        chosen = [
            each for each in self._all() if not each.leaving and not each.busy() and now - each.idle_since() >= QUIET
        ]
        chosen = chosen[:count]
        for connection in chosen:
            connection.leave()
        return len(chosen)

    def drain(self) -> None:
        """All end politely, those that are still to come as well."""
        self._clock.now = time.monotonic()
        for connection in self._all():
            if not connection.leaving:
                _alone(connection, connection.leave)
        self._kind.leaving = True

    def press(self, now: float) -> None:
        """Called now and then: go on with connections that are to end, and whose grace is over."""
        for connection in self._all():
            if connection.leaving and now - connection.asked_at >= self._grace:
                _alone(connection, connection.hurry)

    def _all(self) -> list[Http2Connection]:
        return [each for each in self._state.connections if isinstance(each, self._kind)]


def _alone(connection: Http2Connection, step: Callable[[], None]) -> None:
    """Take a step of a connection's end; if it fails only that connection is lost."""
    try:
        step()
    except Exception:
        abandon(connection.transport, "GOAWAY")
