"""The drain of a worker: end every connection, in one of two ways.

*Retire*, while the cluster goes on. The worker accepts nothing new. Every connection goes to the keeper as soon as it may move.
The engines end those that can't move politely.

*The last drain*, when the cluster ends or the master is gone. No connection moves. The worker serves what waits in the accept
queues and what the keeper gives back, and ends each connection politely.

In both cases the worker resets what hasn't ended within `drain_timeout`.

*Listeners that stay open.* If the master can't shut the listeners (`linux.syn_sink`), or there is no master, new connections
still arrive. The worker serves them until it is idle, or until `drain_idle` is over. Then it serves the accept queue a last time,
closes its copy of the listener at once, and finishes what it has. The last process that does so closes the port. Only a
connection that enters the queue between these two steps is lost.

Invariant: no connection, app or engine ends a drain early by an error, since that would lose the requests of all others. Engines
reset a connection that fails (`engines.aborting.abandon`). An error of another step is logged once, and the step is repeated at
the next poll.
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

_DRAIN_POLL_INTERVAL_S = 0.002
"""Seconds between two checks for connections that may leave by now."""
_ARRIVAL_TIMEOUT_S = 1.0
"""Seconds that a connection that was accepted last may need to reach its engine, for example for a TLS handshake."""
_CANCEL_GRACE_S = 1.0
"""Seconds that cancelled tasks have to clean up."""
_MAX_NAMED_REQUESTS = 5
"""Requests whose paths are reported when they are reset."""

logger = logging.getLogger("cluster2.worker")


class WorkerDrain:
    """The drain of one worker. Its attributes may change while it runs.

    Attributes:
        last: this is the last drain: no other worker takes over.
        keeper_gone: the keeper gives back no more connections.
        listeners_open: new connections still arrive at the listeners.
    """

    def __init__(self, settings: Settings, *, keeper_gone: bool) -> None:
        """Prepare a drain; `run` begins it."""
        self._settings = settings
        self.last = False
        self.keeper_gone = keeper_gone
        self.listeners_open = False
        self._reported: set[tuple[str, type[Exception]]] = set()

    async def run(self, engines: Sequence[Engine], acceptor: Acceptor, handoff: HandoffPolicy) -> bool:
        """Let everything under way end. Return whether it did within `drain_timeout`."""
        began = time.monotonic()
        deadline = began + self._settings.drain_timeout
        grace = min(deadline, began + self._settings.drain_idle)
        self._stop_accepting(acceptor, handoff)
        while acceptor.joining() and time.monotonic() < grace:
            await asyncio.sleep(0.001)  # connections that were just accepted reach their engines first
        self._drain_engines(engines, moving=handoff.possible and not self.last)
        last = self.last
        while True:
            if self.last:
                self._attempt("serving the accept queue", acceptor.serve_queue)
                if self.keeper_gone:
                    self._attempt("emptying the ready queues", acceptor.empty_ready_queues)
            idle = self._idle(engines, acceptor, grace)
            if self.last and self.listeners_open and (idle or time.monotonic() >= grace):
                # No await between these two: a connection that enters the queue in between is lost.
                self._attempt("serving the accept queue", acceptor.serve_queue)
                self._attempt("closing the listeners", acceptor.close_listeners)
                self.listeners_open = idle = False
                # The connections accepted just now need time to reach their engines, as above.
                grace = min(deadline, max(grace, time.monotonic() + _ARRIVAL_TIMEOUT_S))
            if idle:
                return True
            if time.monotonic() >= deadline:
                return False
            if (
                self.last and not last
            ):  # the cluster ends while this worker retires: the keeper accepts no more connections
                last = True
                self._attempt("ending the hand-off", handoff.stop_handoff_after_response)
                self._drain_engines(engines, moving=False)
            if not self.last:
                self._attempt("handing over", lambda: handoff.retire(time.monotonic()))
            for engine in engines:
                self._attempt(
                    "closing idle connections",
                    lambda engine=engine: engine.close_idle(self._settings.drain_idle),  # type: ignore[misc]
                )
            await asyncio.sleep(_DRAIN_POLL_INTERVAL_S)

    def _stop_accepting(self, acceptor: Acceptor, handoff: HandoffPolicy) -> None:
        if self.last:
            self._attempt("ending the hand-off", handoff.stop_handoff_after_response)
            self._attempt("closing the listeners", acceptor.stop_listening)
            self._attempt("serving the accept queue", lambda: acceptor.serve_queue(everything=True))
        else:
            self._attempt("closing the acceptor", acceptor.stop)

    def _drain_engines(self, engines: Sequence[Engine], *, moving: bool) -> None:
        for engine in engines:
            self._attempt("draining", lambda engine=engine: engine.drain(moving=moving))  # type: ignore[misc]

    def _attempt(self, step: str, act: Callable[[], object]) -> None:
        """Take a step. Log what it raises, once for each step and type of exception."""
        try:
            act()
        except Exception as error:
            if (step, type(error)) not in self._reported:
                self._reported.add((step, type(error)))
                logger.exception("%s failed while the worker drains; the drain goes on", step)

    def _idle(self, engines: Sequence[Engine], acceptor: Acceptor, grace: float) -> bool:
        """Return whether everything has ended.

        In the last drain that isn't so before the keeper has given back its connections. Connections that are on their way to an
        engine count until `grace` only, since some never arrive: a TLS handshake may never end. Where an engine accepts by
        itself, the worker can't see whether any are on their way.
        """
        in_grace = time.monotonic() < grace
        waiting = self.last and not self.keeper_gone
        arriving = in_grace and (acceptor.open() or (not self.last and any(map(is_self_accepting, engines))))
        return not waiting and not arriving and all(map(self._is_idle, engines))

    def _is_idle(self, engine: Engine) -> bool:
        idle: list[bool] = []  # stays empty if the engine raises, which counts as busy
        self._attempt("looking for work under way", lambda: idle.append(engine.idle()))
        return idle == [True]

    async def abort(self, engines: Sequence[Engine]) -> str:
        """Reset what hasn't ended. Return a line about it for operators."""
        stats = [engine.stats() for engine in engines]
        requests = sum(each.in_flight for each in stats)
        connections = sum(each.connections or 0 for each in stats)
        cut: list[str] = []
        for engine in engines:
            try:
                cut += await engine.abort(_CANCEL_GRACE_S)
            except Exception:
                logger.exception("cutting off what engine %s has under way failed", engine.name)
        more = f" and {len(cut) - _MAX_NAMED_REQUESTS} more" if len(cut) > _MAX_NAMED_REQUESTS else ""
        named = f": {', '.join(cut[:_MAX_NAMED_REQUESTS])}{more}" if cut else ""
        bound = f"drain_timeout ({self._settings.drain_timeout:g} s) is over"
        open_now = counted(connections, "connection")
        return f"{bound}: reset {open_now} with {counted(requests, 'request')} under way{named}"
