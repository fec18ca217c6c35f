"""When a connection leaves this worker for the keeper, and why. How it does is told in `kernel.handover`.

- *Retire*: the worker leaves; everything that may move goes, the rest as soon as it may.
- *Park*: handlers hold the loop for long; each connection goes after its response, and all idle ones at once when that is
  first noticed.
- *Share*: the worker has more connections than its siblings; some of the idle ones go, and come back to whoever is free.
- *Rest*: a connection was idle for some seconds; it is safe at the keeper even from a `kill -9` of its worker.

Otherwise it stays: a busy connection with short handlers never leaves its worker. The last two are a matter of choice, so
their rate is bounded: the time to rest grows with the keeper's load. Connections that can't move (TLS, for one) are balanced by
ending some politely, with the next response, at a bounded rate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from ....engines.base import Engine, Movable
from ....linux.handover import HandedConnection, QueueWriter
from ....linux.scoreboard import Header

UNSTRETCHED_WAKE_RATE = 1000.0
"""Connections a second that may wake at the keeper before the time to rest grows with their number."""
FAIR_SHARE_SLACK = 1.02
"""Share of the mean that a worker may have before it gives away; and it must have more than one too many."""
SURPLUS_DIVISOR = 4
"""Of those too many, one in so many is ended at a time where they can't move."""


class HandoffPolicy:
    """The ways out of a worker.

    Attributes:
        moved: connections handed over, for any reason.
        parked: those of them that were parked.
    """

    def __init__(self, outlet: QueueWriter | None, engines: Sequence[Engine], header: Header) -> None:
        """Without an outlet nothing moves; connections are balanced by ending some."""
        self._outlet = outlet
        self._engines = engines
        self._header = header
        self._loop = asyncio.get_running_loop()
        self.moved = 0
        self.parked = 0

    @property
    def possible(self) -> bool:
        """Whether there is a keeper that connections could go to."""
        return self._outlet is not None

    def start_handoff_after_response(self, now: float) -> None:
        """Handlers hold the loop for long."""
        if self._outlet is None:
            return
        for site, engine in enumerate(self._engines):
            engine.report_freed(lambda connection, site=site: self._park(site, connection))  # type: ignore[misc]
        self.parked += self._send_idle(now)

    def stop_handoff_after_response(self) -> None:
        """They don't any more."""
        for engine in self._engines:
            engine.report_freed(None)

    def handoff_late(self, now: float) -> None:
        """Park those that couldn't go when their response was complete (it wasn't written yet, or the queue was full)."""
        self.parked += self._send_idle(now)

    def handoff_idle(self, now: float, after: float) -> None:
        """Send what has been idle for `after` seconds, or longer if the keeper is busy."""
        if self._outlet is not None and after:
            patience = after * max(1.0, self._header.keeper_rate / UNSTRETCHED_WAKE_RATE)
            self._send_idle(now, patience)

    def handoff_surplus(self, now: float, counts: Sequence[int], mine: int) -> None:
        """Give some away if this worker has more than its share.

        Args:
            counts: connections of each worker that serves, this one included.
            mine: of this one.
        """
        # A sibling's engine may not know (-1).
        mean = sum(max(0, count) for count in counts) / max(1, len(counts))
        if mine <= mean + 1 or mine <= mean * FAIR_SHARE_SLACK:
            return
        surplus = int(mine - mean)
        # Those that brought no request yet don't count: where each request has a connection of its own, all would be moved.
        sent = self._send_idle(now, most=surplus, kept=True)
        if sent < surplus:
            for engine in self._engines:
                engine.close_some(max(1, (surplus - sent) // SURPLUS_DIVISOR), fixed=self.possible)

    def retire(self, now: float) -> None:
        """Send everything that may go now; and each of the others as soon as it may."""
        if self._outlet is None:
            return
        for site, engine in enumerate(self._engines):
            engine.report_freed(lambda connection, site=site: self._park(site, connection))  # type: ignore[misc]
        self._send_idle(now)

    def _park(self, site: int, connection: Movable, again: bool = True) -> None:
        assert self._outlet is not None
        try:
            if not connection.may_move():
                if again:  # uvloop writes at the end of this turn
                    self._loop.call_soon(self._park, site, connection, False)
                return
            descriptor, family = connection.descriptor_and_family()
        except Exception:
            connection.abandon("handing over")
            return
        if self._outlet.send(descriptor, site, family, 0.0):
            connection.release()
            self.moved += 1
            self.parked += 1

    def _send_idle(self, now: float, patience: float = 0.0, most: int | None = None, kept: bool = False) -> int:
        """Send what may move and has been idle for `patience` seconds; returns how many went.

        Args:
            most: how many at most.
            kept: only those that have brought a request already.
        """
        if self._outlet is None:
            return 0
        parcels: list[HandedConnection] = []
        leaving: list[Movable] = []
        for site, connection in self._movable():
            if len(leaving) == most:
                break
            try:
                since = connection.idle_since()
                wanted = connection.kept_alive() if kept else not patience or now - since >= patience
                if not wanted or not connection.may_move():
                    continue
                descriptor, family = connection.descriptor_and_family()
            except Exception:
                connection.abandon("handing over")
                continue
            parcels.append(HandedConnection(descriptor, site, family, max(0.0, now - since)))
            leaving.append(connection)
        sent = self._outlet.send_all(parcels)
        for connection in leaving[:sent]:
            connection.release()
        self.moved += sent
        return sent

    def _movable(self) -> Iterable[tuple[int, Movable]]:
        return ((site, connection) for site, engine in enumerate(self._engines) for connection in engine.movable())
