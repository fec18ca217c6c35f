"""Close granian's idle and silent connections by what the kernel counts of them.

The connections belong to Rust. All that the worker has are their descriptors and the kernel's counters. A few times within
`timeout` the worker checks each connection (`linux.established_connections`):

- A connection whose client has stopped reading its response is reset.
- A connection whose client has read everything, sends nothing, and has no request under way is closed.

This holds for HTTP/1.1 and HTTP/2 alike, and whether or not the handshake is over. The tasks that run show whose request is
under way, and whether it waits for the rest of a body (`InFlight.clients`), so a request pays nothing for it. For a request in a
thread they show only the client's host.

Nothing shows whether a head that arrives byte by byte will ever be complete. Over HTTP/1.1 hyper has a timer for that. The engine
sets it to expire later than its own check, so such connections are closed, but not counted.

hyper's own means for idle HTTP/2 is a PING now and then, for whose answer it waits. It would close the connection of a client
that reads a long body slowly, since the PING waits behind megabytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...config.settings import Settings
from ...linux.established_connections import EstablishedConnection, reset, shut_down, with_progress
from ..client_timeouts import ClientTimeouts, Wait, WaitingFor
from .in_flight import InFlight

_POLLS_PER_TIMEOUT = 4
"""Number of checks of each client within `timeout`."""
_CLIENTS_PER_TURN = 50
"""Connections that are checked in one turn of the loop, which takes about a millisecond."""
_HEAD_TIMEOUT_FACTOR = 1.5
"""hyper's own timer waits for `timeout` times this, and two intervals more, so that a check of this module comes first."""
_POLL_INTERVAL_S = 1.0
"""Seconds between two calls of `Clients.on_second`."""
_NO_TIMEOUT_MS = 86_400_000
"""Milliseconds in a day. hyper's timer of 0 would expire at once, and granian can't pass None, which means no timer."""


def head_timeout_ms(timeout: float, *, seen: bool) -> int:
    """Return the milliseconds that hyper waits for a head of HTTP/1.1, from the last response on.

    Args:
        timeout: the option, in seconds. 0 means no limit.
        seen: the connections can be checked by their descriptors.
    """
    behind = timeout * _HEAD_TIMEOUT_FACTOR + 2 * _POLL_INTERVAL_S if seen else timeout
    return round(behind * 1000) if timeout else _NO_TIMEOUT_MS


@dataclass(slots=True, eq=False)
class _Client:
    """A connection, as `ClientTimeouts` sees it. It equals the one of an earlier check if its socket is the same.

    Attributes:
        busy: a request of this client is under way, and doesn't wait for the client.
        owes: each request of this client that is under way waits for the rest of its body.
        plain: the connection speaks HTTP/1.1, where each request is answered before the next one. So a client that sent the last
            bytes is in the middle of a request.
    """

    seen: EstablishedConnection
    busy: bool
    owes: bool
    plain: bool

    def __hash__(self) -> int:
        return self.seen.inode

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Client) and other.seen.inode == self.seen.inode

    def waits(self) -> Wait | None:
        """Return what the connection waits for, as far as the kernel's counters show it. None: not for its client."""
        seen = self.seen
        # The order matters: a client that reads nothing is stalled, whatever its request waits for.
        if seen.untaken:
            return Wait(WaitingFor.TAKING, seen.taken)
        if self.busy:
            return None
        if self.owes:
            return Wait(WaitingFor.BODY, (seen.taken, seen.brought))
        # Over HTTP/2 a client may send frames without a request, so only HTTP/1.1 shows an incomplete head.
        return Wait(WaitingFor.HEAD if self.plain and seen.asks else WaitingFor.STREAM, (seen.taken, seen.brought))

    def give_up(self, what: WaitingFor) -> None:
        """Reset the connection in the middle of something, otherwise close it. granian notices by itself."""
        descriptor = self.seen.descriptor
        with contextlib.suppress(OSError):  # closed meanwhile
            # granian may have closed the descriptor meanwhile, and the kernel given its number to another file.
            if os.fstat(descriptor).st_ino == self.seen.inode:
                # hyper sees an error or the end of input. A reset also discards what the client has not read.
                (reset if what in (WaitingFor.TAKING, WaitingFor.BODY) else shut_down)(descriptor)


class Clients:
    """All clients of an engine, and how long they have been silent.

    Attributes:
        timeouts: the time limits, with the counts of connections that exceeded them.
    """

    def __init__(self, settings: Settings, under: InFlight, listeners: Sequence[socket.socket]) -> None:
        """Start without a client.

        Args:
            under: the requests under way.
            listeners: the engine's listeners. Each check reads the list anew.
        """
        self._timeout = settings.timeout
        self._plain = not settings.http2
        self._in_flight = under
        self._listeners = listeners
        self._polled_at: float | None = None
        self._clock = 0.0
        self._poll: asyncio.Future[None] | None = None
        self.timeouts = ClientTimeouts(settings.timeout)

    def on_second(self, now: float) -> None:
        """Start a check of all clients, if one is due."""
        if not self._timeout:
            return
        if self._polled_at is None:
            self._polled_at = now
        elapsed = now - self._polled_at
        if elapsed < self._timeout / _POLLS_PER_TIMEOUT:
            return
        self._polled_at = now
        # While the loop was blocked it has seen no client send anything. So the clock advances by `timeout` at most, which closes
        # no connection by itself.
        self._clock += min(elapsed, self._timeout)
        if (
            self._poll is None or self._poll.done()
        ):  # a check of thousands of connections takes several turns of the loop
            self._poll = asyncio.ensure_future(self._check_clients())

    async def _check_clients(self) -> None:
        whose = self._in_flight.clients()  # before the counters: a request that arrives later shows in those
        found: list[EstablishedConnection] = []
        for listener in list(self._listeners):
            for each in with_progress(listener):
                found.append(each)
                if len(found) % _CLIENTS_PER_TURN == 0:
                    await asyncio.sleep(0)
        known = {(each.host, port) for each in found for port in (each.port, None)}
        if whose is not None and not whose.keys() <= known:
            # A client's connection is gone, or the app has replaced its name, as middleware for proxies does. Without the names
            # a busy client looks like an idle one, so only clients that read nothing are closed.
            whose = None
        self.timeouts.check([self._client(each, whose) for each in found], self._clock)

    def _client(self, seen: EstablishedConnection, whose: Mapping[tuple[str, int | None], bool] | None) -> _Client:
        if whose is None:
            return _Client(seen, True, False, self._plain)
        # A request in a thread is known by host only, which then protects all connections from that host.
        owes = [whose[peer] for peer in ((seen.host, seen.port), (seen.host, None)) if peer in whose]
        return _Client(seen, not all(owes), bool(owes) and all(owes), self._plain)
