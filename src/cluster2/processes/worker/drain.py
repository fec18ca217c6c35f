"""How a worker ends what it has.

It takes nothing new; every connection goes to the keeper as soon as it may, what can't move ends politely. For the last time (the
cluster ends, or the master is gone) no connection goes anywhere: what waits in the accept queue is served, and what the keeper
gives back, and each connection ends politely. What isn't finished within `drain_timeout` is cut.

If the doors can't be shut (`kernel.syn_sink`), or if there is no master that could, newcomers still arrive. They are served until
the worker is idle, or `drain_idle` is over. Then it serves the queue a last time, closes its copy of the listener at once, and
finishes what it has. The last process that does so closes the port: lost is only a connection that enters the queue in between.

Invariant: nothing that one connection, the app or an engine does ends a drain early, since that would lose the requests of all
others. Engines reset a connection that fails (`engines.ending.abandon`); what else a step raises is logged once, and the step is
taken again at the next look.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from ...config.settings import Settings
from ...core.wording import counted
from ...engines.base import Engine, is_self_accepting
from .connections.acceptor import Acceptor
from .connections.handoff import HandoffPolicy

DRAIN_POLL_INTERVAL_S = 0.002
"""Seconds between two looks for connections that may leave by now."""
_ARRIVAL_TIMEOUT_S = 1.0
"""How long a connection that is taken last may take to its engine: a TLS handshake, for one."""
CANCEL_GRACE_S = 1.0
"""Seconds for tasks that are cancelled at the end."""
_MAX_NAMED_REQUESTS = 5
"""Requests whose paths are told when they are cut."""

logger = logging.getLogger("cluster2.worker")


class WorkerDrain:
    """A worker's way out. What is told while it is under way counts from then on.

    Attributes:
        last: nobody comes after us.
        deserted: the keeper gives nothing back any more.
        open_doors: newcomers still arrive at the listeners.
    """

    def __init__(self, settings: Settings, *, keeper_gone: bool) -> None:
        """It hasn't begun."""
        self._settings = settings
        self.last = False
        self.deserted = keeper_gone
        self.listeners_open = False
        self._reported: set[tuple[str, type[Exception]]] = set()

    async def run(self, engines: Sequence[Engine], acceptor: Acceptor, moves: HandoffPolicy) -> bool:
        """Let everything under way end. Returns whether it did within `drain_timeout`."""
        began = time.monotonic()
        deadline = began + self._settings.drain_timeout
        grace = min(deadline, began + self._settings.drain_idle)
        self._stop_taking(acceptor, moves)
        while acceptor.joining() and time.monotonic() < grace:
            await asyncio.sleep(0.001)  # those just taken are to reach their engines
        self._drain(engines, moving=moves.possible and not self.last)
        last = self.last
        while True:
            if self.last:
                self._attempt("serving the accept queue", acceptor.serve_queue)
                if self.deserted:
                    self._attempt("emptying the ready queues", acceptor.empty_ready_queues)
            idle = self._idle(engines, acceptor, grace)
            if self.last and self.listeners_open and (idle or time.monotonic() >= grace):
                self._attempt("serving the accept queue", acceptor.serve_queue)
                self._attempt("closing the listeners", acceptor.close_listeners)
                self.listeners_open = idle = False
                # What was taken just now is to reach its engine, as above.
                grace = min(deadline, max(grace, time.monotonic() + _ARRIVAL_TIMEOUT_S))
            if idle:
                return True
            if time.monotonic() >= deadline:
                return False
            if self.last and not last:  # the cluster ends while this worker retires: the keeper takes no more
                last = True
                self._attempt("parking", moves.stop_handoff_after_response)
                self._drain(engines, moving=False)
            if not self.last:
                self._attempt("handing over", lambda: moves.retire(time.monotonic()))
            for engine in engines:
                self._attempt("sweeping", lambda engine=engine: engine.close_idle(self._settings.drain_idle))  # type: ignore[misc]
            await asyncio.sleep(DRAIN_POLL_INTERVAL_S)

    def _stop_taking(self, acceptor: Acceptor, moves: HandoffPolicy) -> None:
        if self.last:
            self._attempt("parking", moves.stop_handoff_after_response)
            self._attempt("closing the listeners", acceptor.stop_listening)
            self._attempt("serving the accept queue", lambda: acceptor.serve_queue(everything=True))
        else:
            self._attempt("closing the acceptor", acceptor.stop)

    def _drain(self, engines: Sequence[Engine], *, moving: bool) -> None:
        for engine in engines:
            self._attempt("draining", lambda engine=engine: engine.drain(moving=moving))  # type: ignore[misc]

    def _attempt(self, step: str, act: Callable[[], object]) -> None:
        """Take a step. What it raises is logged the first time."""
        try:
            act()
        except Exception as error:
            if (step, type(error)) not in self._reported:
                self._reported.add((step, type(error)))
                logger.exception("%s failed while the worker drains; the drain goes on", step)

    def _idle(self, engines: Sequence[Engine], acceptor: Acceptor, grace: float) -> bool:
        """Whether all is done; at the end of the cluster not before the keeper has given back what it had.

        Connections that are on their way to an engine are waited for, those that don't get there (a TLS handshake that never
        ends) until `grace` only. Where an engine takes them itself one can't see whether any are.
        """
        in_grace = time.monotonic() < grace
        waiting = self.last and not self.deserted
        arriving = in_grace and (acceptor.open() or (not self.last and any(map(is_self_accepting, engines))))
        return not waiting and not arriving and all(map(self._is_idle, engines))

    def _is_idle(self, engine: Engine) -> bool:
        idle: list[bool] = []
        self._attempt("looking for work under way", lambda: idle.append(engine.idle()))
        return idle == [True]

    async def abort(self, engines: Sequence[Engine]) -> str:
        """End what isn't finished; returns what an operator should know about it."""
        censuses = [engine.stats() for engine in engines]
        requests = sum(census.in_flight for census in censuses)
        connections = sum(census.connections or 0 for census in censuses)
        cut: list[str] = []
        for engine in engines:
            try:
                cut += await engine.abort(CANCEL_GRACE_S)
            except Exception:
                logger.exception("cutting off what engine %s has under way failed", engine.name)
        more = f" and {len(cut) - _MAX_NAMED_REQUESTS} more" if len(cut) > _MAX_NAMED_REQUESTS else ""
        named = f": {', '.join(cut[:_MAX_NAMED_REQUESTS])}{more}" if cut else ""
        bound = f"drain_timeout ({self._settings.drain_timeout:g} s) is over"
        open_now = counted(connections, "connection")
        return f"{bound}: reset {open_now} with {counted(requests, 'request')} under way{named}"
