"""How a worker ends what it has.

It takes nothing new; every connection goes to the keeper as soon as it may, what can't move ends politely. For the last time (the
cluster ends, or the master is gone) no connection goes anywhere: what waits in the accept queue is served, and what the keeper
gives back, and each connection ends politely. What isn't finished within `drain_timeout` is cut.

If the doors can't be shut (`kernel.syn_sink`), or if there is no master that could, newcomers still arrive. They are served until
the worker is idle, or `drain_idle` is over. Then it serves the queue a last time, closes its copy of the listener at once, and
finishes what it has. The last process that does so closes the port: lost is only a connection that enters the queue in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from ..engines.base import Engine, is_own
from ..settings import Settings
from .acceptor import Acceptor
from .moves import Moves

TICK = 0.002
"""Seconds between two looks for connections that may leave by now."""
ARRIVAL_TIMEOUT_S = 1.0
"""How long a connection that is taken last may take to its engine: a TLS handshake, for one."""
LAST_WORDS = 1.0
"""Seconds for tasks that are cancelled at the end."""
MOST_NAMED = 5
"""Requests whose paths are told when they are cut."""


class Drain:
    """A worker's way out. What is told while it is under way counts from then on.

    Attributes:
        last: nobody comes after us.
        deserted: the keeper gives nothing back any more.
        open_doors: newcomers still arrive at the listeners.
    """

    def __init__(self, settings: Settings, *, deserted: bool) -> None:
        """It hasn't begun."""
        self._settings = settings
        self.last = False
        self.deserted = deserted
        self.open_doors = False

    async def finished(self, engines: Sequence[Engine], acceptor: Acceptor, moves: Moves) -> bool:
        """Let everything under way end. Returns whether it did within `drain_timeout`."""
        began = time.monotonic()
        deadline = began + self._settings.drain_timeout
        grace = min(deadline, began + self._settings.drain_idle)
        if self.last:
            moves.park_no_more()
            acceptor.stop_listening()
            acceptor.serve_queue(everything=True)
        else:
            acceptor.stop()
        while acceptor.joining() and time.monotonic() < grace:
            await asyncio.sleep(0.001)  # those just taken are to reach their engines
        for engine in engines:
            engine.drain(moving=moves.possible and not self.last)
        last = self.last
        while True:
            if self.last:
                acceptor.serve_queue()
                if self.deserted:
                    acceptor.empty_ready_queues()
            idle = self._idle(engines, acceptor, grace)
            if self.last and self.open_doors and (idle or time.monotonic() >= grace):
                acceptor.serve_queue()
                acceptor.close_doors()
                self.open_doors = idle = False
                # What was taken just now is to reach its engine, as above.
                grace = min(deadline, max(grace, time.monotonic() + ARRIVAL_TIMEOUT_S))
            if idle:
                return True
            if time.monotonic() >= deadline:
                return False
            if self.last and not last:  # the cluster ends while this worker retires: the keeper takes no more
                last = True
                moves.park_no_more()
                for engine in engines:
                    engine.drain(moving=False)
            if not self.last:
                moves.retire(time.monotonic())
            for engine in engines:
                engine.sweep(self._settings.drain_idle)
            await asyncio.sleep(TICK)

    def _idle(self, engines: Sequence[Engine], acceptor: Acceptor, grace: float) -> bool:
        """Whether all is done; at the end of the cluster not before the keeper has given back what it had.

        Connections that are on their way to an engine are waited for, those that don't get there (a TLS handshake that never
        ends) until `grace` only. Where an engine takes them itself one can't see whether any are.
        """
        in_grace = time.monotonic() < grace
        waiting = self.last and not self.deserted
        arriving = in_grace and (acceptor.open() or (not self.last and any(map(is_own, engines))))
        return not waiting and not arriving and all(engine.idle() for engine in engines)

    async def cut(self, engines: Sequence[Engine]) -> str:
        """End what isn't finished; returns what an operator should know about it."""
        censuses = [engine.census() for engine in engines]
        requests = sum(census.in_flight for census in censuses)
        connections = sum(census.connections or 0 for census in censuses)
        cut = [path for engine in engines for path in await engine.cut(LAST_WORDS)]
        more = f" and {len(cut) - MOST_NAMED} more" if len(cut) > MOST_NAMED else ""
        named = f": {', '.join(cut[:MOST_NAMED])}{more}" if cut else ""
        bound = f"drain_timeout ({self._settings.drain_timeout:g} s) is over"
        return f"{bound}: {connections} connections with {requests} requests under way were reset{named}"
