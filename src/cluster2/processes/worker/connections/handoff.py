"""The reasons and moments for which a connection leaves this worker for the keeper. `linux.handover` has the mechanism.

- *Retire*: the worker leaves. Every connection that may move goes, and the rest as soon as it may.
- *After the response*: handlers hold the loop for long (mode `handoff`). Each connection goes after its response, and all idle
  ones go at once when that begins.
- *Surplus*: the worker has more connections than its siblings. Some of the idle ones go, and come back to any worker that is
  free.
- *Idle*: a connection was idle for some seconds. At the keeper it survives even a `kill -9` of its worker.

Otherwise it stays: a busy connection with short handlers never leaves its worker. The last two reasons are optional, so their
rate is bounded: the idle time grows with the keeper's load. Connections that can't move (TLS, for one) are balanced by closing
some politely, with the next response, at a bounded rate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial

from ....core.planning import FAIR_SHARE
from ....engines.base import Engine, Movable
from ....linux.handover import HandedConnection, QueueWriter
from ....linux.scoreboard import Header

UNSTRETCHED_WAKE_RATE = 1000.0
"""Connections a second that may wake at the keeper before the idle time grows with their number."""
SURPLUS_DIVISOR = 4
"""Divisor of the surplus: where connections can't move, one in so many is closed at a time."""


class HandoffPolicy:
    """Hands connections over to the keeper.

    Attributes:
        moved: connections handed over, for any reason.
        parked: those of them that were handed over after their response, in mode `handoff`.
    """

    def __init__(self, idle_queue: QueueWriter | None, engines: Sequence[Engine], header: Header) -> None:
        """Prepare. Without an idle queue no connection moves, and connections are balanced by closing some."""
        self._idle_queue = idle_queue
        self._engines = engines
        self._header = header
        self._loop = asyncio.get_running_loop()
        self.moved = 0
        self.parked = 0

    @property
    def possible(self) -> bool:
        """True if there is a keeper to which connections can go."""
        return self._idle_queue is not None

    def start_handoff_after_response(self, now: float) -> None:
        """Hand each connection over after its response from now on, and all idle ones at once."""
        if self._idle_queue is None:
            return
        self._report_freed(parked=True)
        self.parked += self._send_idle(now)

    def stop_handoff_after_response(self) -> None:
        """Let connections stay after their response from now on."""
        for engine in self._engines:
            engine.report_freed(None)

    def handoff_late(self, now: float) -> None:
        """Hand over the connections that stayed after their response (it wasn't written yet, or the queue was full)."""
        self.parked += self._send_idle(now)

    def handoff_idle(self, now: float, after: float) -> None:
        """Hand over the connections that were idle for `after` seconds, or longer if the keeper is busy."""
        if self._idle_queue is not None and after:
            idle_s = after * max(1.0, self._header.keeper_rate / UNSTRETCHED_WAKE_RATE)
            self._send_idle(now, idle_s)

    def handoff_surplus(self, now: float, counts: Sequence[int], mine: int) -> None:
        """Hand over some connections if this worker has more than its share.

        Args:
            counts: the connections of each worker that serves, this one included.
            mine: those of this one.
        """
        # -1: a sibling's engine doesn't count its connections.
        mean = sum(max(0, count) for count in counts) / max(1, len(counts))
        # Both bounds hold: with few connections one too many is nothing, and with many 2 % is within the noise.
        if mine <= mean + 1 or mine <= mean * FAIR_SHARE:
            return
        surplus = int(mine - mean)
        # Only connections that have brought a request: else all would move where each request has a connection of its own.
        sent = self._send_idle(now, most=surplus, kept=True)
        if sent < surplus:
            for engine in self._engines:
                engine.close_some(max(1, (surplus - sent) // SURPLUS_DIVISOR), fixed=self.possible)

    def retire(self, now: float) -> None:
        """Hand over all connections that may move now, and each of the others as soon as it may."""
        if self._idle_queue is None:
            return
        self._report_freed(parked=False)
        self._send_idle(now)

    def _report_freed(self, *, parked: bool) -> None:
        """Have the engines report each connection whose response is complete, and hand it over.

        Args:
            parked: count these hand-offs as parked.
        """
        for app_index, engine in enumerate(self._engines):
            engine.report_freed(partial(self._hand_over, app_index, parked))

    def _hand_over(self, app_index: int, parked: bool, connection: Movable, again: bool = True) -> None:
        """Hand over a connection whose response is complete. If the queue is full it stays, until `handoff_late` or `retire`."""
        assert self._idle_queue is not None
        try:
            if not connection.may_move():
                if again:  # uvloop writes at the end of this turn, so the response may not be written yet
                    self._loop.call_soon(self._hand_over, app_index, parked, connection, False)
                return
            descriptor, family = connection.descriptor_and_family()
        except Exception:
            connection.abandon("handing over")
            return
        if self._idle_queue.send(descriptor, app_index, family, 0.0):
            connection.release()  # the queue holds a reference to the socket: only this process's descriptor is closed
            self.moved += 1
            self.parked += parked

    def _send_idle(self, now: float, idle_s: float = 0.0, most: int | None = None, kept: bool = False) -> int:
        """Hand over the connections that may move and were idle for `idle_s` seconds. Return how many.

        Args:
            most: the number at most.
            kept: only those that have brought a request already.
        """
        if self._idle_queue is None:
            return 0
        handed: list[HandedConnection] = []
        chosen: list[Movable] = []
        for app_index, connection in self._movable():
            if len(chosen) == most:
                break
            try:
                since = connection.idle_since()
                wanted = connection.kept_alive() if kept else not idle_s or now - since >= idle_s
                if not wanted or not connection.may_move():
                    continue
                descriptor, family = connection.descriptor_and_family()
            except Exception:
                connection.abandon("handing over")
                continue
            handed.append(HandedConnection(descriptor, app_index, family, max(0.0, now - since)))
            chosen.append(connection)
        sent = self._idle_queue.send_all(handed)
        for connection in chosen[:sent]:  # the queue may have taken only some
            connection.release()
        self.moved += sent
        return sent

    def _movable(self) -> Iterable[tuple[int, Movable]]:
        return (
            (app_index, connection) for app_index, engine in enumerate(self._engines) for connection in engine.movable()
        )
