"""How long granian's clients may take. The connections are Rust's: all we have are their descriptors, and what the kernel counts.

A few times within `timeout` each is looked at (`kernel.established`). Who has something to take and takes nothing is reset; who
has nothing to take, brings nothing, and has no request under way, gets its connection ended. It makes no difference whether
that is one of HTTP/1.1 or HTTP/2, or whether its handshake is over. Whose request is under way, and whether it waits for the rest
of a body, is seen by the tasks that run (`Under.clients`), so that a request pays for nothing; of threads one knows the client's
host only.

What nobody tells is whether a head that comes byte by byte will ever end. Over HTTP/1.1 hyper has a timer of its own for that,
which is set to strike later than we do: its connections are closed, but not counted.

hyper's own means for idle HTTP/2 (a PING now and then, whose answer it waits for) takes a client for dead that reads a long body
slowly, with the PING behind megabytes.
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

POLLS_PER_TIMEOUT = 4
"""How often within `timeout` clients are looked at."""
CLIENTS_PER_TURN = 50
"""Connections that are looked at in one turn of the loop: about a millisecond."""
_BEHIND = 1.5
"""So many times as long as `timeout`, and two looks, hyper's own timer waits: then a look of ours has come first."""
_SECOND = 1.0
"""What `look` is called each."""
_NEVER = 86_400_000
"""hyper's timer of 0 would close at once; None is none at all, which granian can't say: a day, in ms, is as good."""


def head_patience(timeout: float, *, seen: bool) -> int:
    """Milliseconds that hyper waits for a head of HTTP/1.1, from the last response on.

    Args:
        seen: the connections can be looked at.
    """
    behind = timeout * _BEHIND + 2 * _SECOND if seen else timeout
    return round(behind * 1000) if timeout else _NEVER


@dataclass(slots=True, eq=False)
class _Client:
    """A connection, as it is asked by `Patience`: the same as before if its socket is.

    Attributes:
        busy: a request of its is under way, and doesn't wait for its client.
        owes: of all that are under way it owes the rest of a body.
        plain: it speaks HTTP/1.1, where each request is answered before the next: who spoke last is in the middle of one.
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
        """For what, as far as one can see."""
        seen = self.seen
        if seen.untaken:
            return Wait(WaitingFor.TAKING, seen.taken)
        if self.busy:
            return None
        if self.owes:
            return Wait(WaitingFor.BODY, (seen.taken, seen.brought))
        return Wait(WaitingFor.HEAD if self.plain and seen.asks else WaitingFor.STREAM, (seen.taken, seen.brought))

    def give_up(self, what: WaitingFor) -> None:
        """Granian finds it broken, or at its end."""
        descriptor = self.seen.descriptor
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.fstat(descriptor).st_ino == self.seen.inode:
                (reset if what in (WaitingFor.TAKING, WaitingFor.BODY) else shut_down)(descriptor)


class Clients:
    """All clients of an engine, and how long they have been silent.

    Attributes:
        patience: its counts.
    """

    def __init__(self, settings: Settings, under: InFlight, listeners: Sequence[socket.socket]) -> None:
        """Args: listeners: looked at whenever clients are."""
        self._timeout = settings.timeout
        self._plain = not settings.http2
        self._under = under
        self._listeners = listeners
        self._looked_at: float | None = None
        self._clock = 0.0
        self._looking: asyncio.Future[None] | None = None
        self.patience = ClientTimeouts(settings.timeout)

    def on_second(self, now: float) -> None:
        """Look at them, if a look is due, and give up who was silent for too long."""
        if not self._timeout:
            return
        if self._looked_at is None:
            self._looked_at = now
        elapsed = now - self._looked_at
        if elapsed < self._timeout / POLLS_PER_TIMEOUT:
            return
        self._looked_at = now
        # A loop that was held has seen nothing of what came meanwhile: at most as much time has passed as none is given up for.
        self._clock += min(elapsed, self._timeout)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._check_clients())

    async def _check_clients(self) -> None:
        whose = self._under.clients()  # first: who asks from now on is seen to have brought something
        found: list[EstablishedConnection] = []
        for listener in list(self._listeners):
            for each in with_progress(listener):
                found.append(each)
                if len(found) % CLIENTS_PER_TURN == 0:
                    await asyncio.sleep(0)
        known = {(each.host, port) for each in found for port in (each.port, None)}
        if whose is not None and not whose.keys() <= known:
            whose = None  # whose connection is gone, or whose name the app has replaced, as middleware for proxies does
        self.patience.check([self._client(each, whose) for each in found], self._clock)

    def _client(self, seen: EstablishedConnection, whose: Mapping[tuple[str, int | None], bool] | None) -> _Client:
        if whose is None:
            return _Client(seen, True, False, self._plain)
        owes = [whose[peer] for peer in ((seen.host, seen.port), (seen.host, None)) if peer in whose]
        return _Client(seen, not all(owes), bool(owes) and all(owes), self._plain)
