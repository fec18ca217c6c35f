"""The worker's tick: heartbeats, counts, and all periodic checks.

The tick runs on the loop, so that the heartbeat of a blocked loop is late. Its interval is 10 ms while there is work, 100 ms when
connections are open but nothing happens, and a second when the worker is idle. The first request after an idle time wakes it. So
an idle worker costs nothing, and no request pays for a clock, a counter or a timer of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence

from ...core.health import PROMISED_HEARTBEAT_S
from ...core.lifecycle import WorkerState
from ...engines.base import Engine, ThreadHold, is_protocol_engine, owns_accept
from ...engines.outcomes import STATUS_CLASSES, Outcomes, add
from ...errors import ClusterError
from ...linux import processes
from ...linux.cells import UNKNOWN_VALUE
from ...linux.scoreboard import Row, Scoreboard
from ...runtime.step_guard import StepGuard
from .connections.acceptor import Acceptor
from .connections.connection_budget import ConnectionBudget
from .connections.handoff import HandoffPolicy
from .messaging import api
from .output import WorkerOutput
from .sampling.accept_mode import LONG_STEP_S, AcceptMode, AcceptModeSelector
from .sampling.latency import LatencyWindow
from .sampling.steps import StepSampler
from .sampling.thread_holds import ThreadHoldEstimator

logger = logging.getLogger("cluster2.worker")

FAST_TICK_S = 0.01
SLOW_TICK_S = 0.1
IDLE_TICK_S = PROMISED_HEARTBEAT_S / 2
_LATE_TICK_S = 0.004
"""Seconds by which a fast tick must be late before a long step is suspected."""
_OUT_OF_CAPACITY = "no more connections can be taken"
"""The warning when the limit of descriptors is reached."""
BALANCE_AT_ONCE_CONNECTIONS = 8
"""Connections that must have come since the last tick to check the balance at once."""


class HeartbeatLoop:
    """Updates the worker's row of the scoreboard, and runs the periodic checks of the other parts.

    Attributes:
        slow: the next tick is a slow one; `wake` makes it a fast one.
        draining: the worker drains: ticks only update the row and pass the time to the engines.
    """

    def __init__(
        self,
        board: Scoreboard,
        row: Row,
        engines: Sequence[Engine],
        acceptor: Acceptor,
        handoff: HandoffPolicy,
        mode_selector: AcceptModeSelector,
        step_sampler: StepSampler,
        latency: LatencyWindow,
        handoff_idle_after: float,
        request_timeout: float,
        output: WorkerOutput,
        budget: ConnectionBudget,
    ) -> None:
        """Prepare; `start` begins to tick."""
        self._board = board
        self._row = row
        self._engines = engines
        # An engine that accepts by itself doesn't say how many connections it has accepted.
        self._uncounted = any(map(owns_accept, engines))
        self._acceptor = acceptor
        self._handoff = handoff
        self._mode_selector = mode_selector
        self._step_sampler = step_sampler
        self._latency = latency
        self._handoff_idle_after = handoff_idle_after
        self._request_timeout = request_timeout
        self._output = output
        self._budget = budget
        self._hold_estimator = ThreadHoldEstimator()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._wait = IDLE_TICK_S
        self._due = 0.0
        self._last_work = -1
        self._connections = 0
        self._slow_at = 0.0
        self._second_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._guard = StepGuard(_report)
        self.slow = True
        self.draining = False

    def begin(self) -> AcceptMode:
        """Return the mode in which the acceptor must start."""
        if self._budget.is_scarce(self._budget.remaining(0)):
            self._row.mode = self._mode_selector.hold_back(time.monotonic())
        return self._mode_selector.mode

    def start(self) -> None:
        """Tick from now on."""
        self._due = time.monotonic()  # else the first tick would seem to be late by the machine's uptime
        self._tick()

    def drain(self) -> None:
        """Stop selecting modes and moving connections."""
        self.draining = True

    def stop(self) -> None:
        """Stop ticking."""
        self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def wake(self) -> None:
        """Tick fast, since a connection or request has come."""
        if self.slow:
            self.slow = False
            self._cancel_timer()
            self._schedule_tick(time.monotonic(), FAST_TICK_S)

    def long_step(self, step: float, now: float) -> None:
        """Count a handler's step that held the loop for long, and change the mode if it must change."""
        row = self._row
        before = self._mode_selector.mode
        if self._mode_selector.is_proof(step):
            row.long_at = now
        elsewhere = [when for when in self._proofs_elsewhere() if when]
        mode = self._mode_selector.step(step, now, elsewhere)
        row.longest_step = self._mode_selector.longest
        if mode is before or self.draining:
            return
        row.mode = mode
        if before is AcceptMode.BATCH:
            self._acceptor.hold_back(mode)  # at once: the server of the loop may be in the middle of a burst
        if mode is AcceptMode.HANDOFF:
            self._handoff.start_handoff_after_response(now)

    def publish(self) -> None:
        """Update the row."""
        row = self._row
        stats = [engine.stats() for engine in self._engines]
        row.timed_out = sum(each.timed_out for each in stats)
        row.stalled = sum(each.stalled for each in stats)
        row.in_flight = sum(each.in_flight for each in stats)
        row.requests = _sum(each.requests for each in stats)
        row.connections = _sum(each.connections for each in stats)
        errors = self._publish_outcomes([each.outcomes for each in stats], known=row.requests >= 0)
        errors += sum(each.failed for each in stats)
        row.accepted = -1 if self._uncounted else self._acceptor.accepted
        row.moved_in, row.lost = self._acceptor.returned, self._acceptor.lost
        row.moved_out, row.parked = self._handoff.moved, self._handoff.parked
        counters = api.counters
        row.errors = errors + counters.errors
        row.transactions, row.duration = counters.transactions, counters.duration
        row.cpu = time.process_time()
        # The deadline of the next heartbeat: the master compares it with its clock, and needs no message.
        row.heartbeat = time.monotonic() + PROMISED_HEARTBEAT_S

    def _publish_outcomes(self, outcomes: Sequence[Outcomes | None], *, known: bool) -> int:
        """Write the outcomes of requests into the row. Return how many were errors.

        Args:
            known: all engines count their requests.
        """
        row = self._row
        counts: Sequence[int] = [0] * STATUS_CLASSES
        for each in outcomes:
            if each is not None:
                counts = add(counts, each.by_class())
        known = known and None not in outcomes
        for name, count in zip(Row.STATUS_CLASSES.values(), counts, strict=True):
            setattr(row, name, count if known else UNKNOWN_VALUE)
        row.disconnects = _sum(None if each is None or not known else each.disconnects for each in outcomes)
        return sum(each.errors() for each in outcomes if each is not None)

    def _tick(self) -> None:
        """Run the checks that are due, and schedule the next tick.

        The next tick is scheduled whatever fails: the master would kill a worker that stopped ticking as hung.
        """
        now = time.monotonic()
        wait = SLOW_TICK_S  # if the check fails
        try:
            with self._guard("a worker's tick"):
                wait = self._check_engines(now)
            if now - self._slow_at >= 0.95 * SLOW_TICK_S:  # timers may fire a little early
                self._slow_at = now
                self._on_slow(now)
            if now - self._second_at >= 0.95 * IDLE_TICK_S:
                self._second_at = now
                self._on_second(now)
        finally:  # the guards contain each step; this covers the code between them
            self._schedule_tick(now, wait)

    def _check_engines(self, now: float) -> float:
        """Check the engines. Return the seconds until the next tick."""
        guard = self._guard
        for engine in self._engines:
            with guard(f"the tick of {engine.name}"):
                engine.tick(now)
        with guard("the access log"):
            self._output.tick()
        late = now - self._due
        if self._wait == FAST_TICK_S and late > _LATE_TICK_S and not self.draining:
            self._step_sampler.on_late_tick(now)
        holds = self._check_threads(now, late)
        work, connections = self._acceptor.accepted + self._acceptor.returned, 0
        for stats in [engine.stats() for engine in self._engines]:
            work += stats.requests or 0
            connections += stats.connections or 0
        busy = work != self._last_work
        self._last_work = work
        if busy and not self.draining:
            self._step_sampler.tick(now, pooled=bool(holds))
        busy = busy or any(hold.full for hold in holds)
        added = connections - self._connections
        self._connections = connections
        with guard("the budget of connections"):
            self._check_budget(now, connections)
        if added >= BALANCE_AT_ONCE_CONNECTIONS and now - self._slow_at < 0.95 * SLOW_TICK_S and not self.draining:
            # Siblings compare with this count, which `publish` would update only with the next slow tick.
            self._row.connections = connections
            with guard("moving connections"):
                self._handoff.handoff_surplus(now, self._counts(), connections)
        if busy:
            return FAST_TICK_S
        if connections or self._mode_selector.mode is not AcceptMode.BATCH:
            return SLOW_TICK_S
        return IDLE_TICK_S

    def _check_budget(self, now: float, connections: int) -> None:
        """Let the acceptor take only as many connections as there are descriptors for."""
        remaining = self._budget.remaining(connections)
        if self._budget.is_scarce(remaining) and not self.draining:
            before = self._mode_selector.mode
            mode = self._mode_selector.hold_back(now)
            if before is AcceptMode.BATCH:
                self._row.mode = mode
                self._acceptor.hold_back(mode)
        if remaining > 0:
            self._guard.worked(_OUT_OF_CAPACITY)
        else:
            limit = ClusterError(f"RLIMIT_NOFILE is {self._budget.limit}")
            self._guard.failed(
                _OUT_OF_CAPACITY, limit, "new connections wait, or go to another worker; raise the limit"
            )
        self._acceptor.set_capacity(remaining)

    def _on_slow(self, now: float) -> None:
        """Run the checks that are due ten times a second at most."""
        if self._budget.is_scarce(self._budget.remaining(self._connections)):
            with self._guard("the budget of connections"):
                self._budget.measure(self._connections)
        with self._guard("the log files"):
            self._output.reopen_if_moved()
        with self._guard("the counts of this worker"):
            self.publish()
        # Once more, in case `publish` has failed: the loop turns, and the master must not kill the worker.
        self._row.heartbeat = now + PROMISED_HEARTBEAT_S
        with self._guard("moving connections"):
            self._update_mode_and_handoff(now)

    def _on_second(self, now: float) -> None:
        """Run the checks that are due once a second at most."""
        with self._guard("the latency of requests"):
            self._latency.on_second(now)
        with self._guard("the budget of connections"):
            self._budget.measure(self._connections)
        with self._guard("the memory of this worker"):
            self._row.memory = processes.resident_memory()
        for engine in self._engines:
            with self._guard(f"the time limits of {engine.name}"):
                engine.on_second()

    def _check_threads(self, now: float, late: float) -> list[ThreadHold]:
        """Return the holds of engines with threads. Count one that is long as a long step."""
        found = (
            engine.longest_hold(now, self._mode_selector.handoff_slow_above or _LATE_TICK_S)
            for engine in self._engines
            if is_protocol_engine(engine)
        )
        holds = [hold for hold in found if hold is not None]
        for hold in holds:
            step = self._hold_estimator.tick(hold, late)
            if step > LONG_STEP_S and not self.draining:
                self.long_step(step, now)
        return holds

    def _schedule_tick(self, now: float, wait: float) -> None:
        self.slow = wait != FAST_TICK_S
        self._wait = wait
        self._due = now + wait
        self._timer = self._loop.call_later(wait, self._tick)
        if self.slow and not self.draining:  # last: the next tick is scheduled whatever this does
            self._step_sampler.on_idle()

    def _update_mode_and_handoff(self, now: float) -> None:
        """Select the mode, hand over connections, and publish the deadline of the oldest request. Do nothing while it drains."""
        if self.draining:
            return
        before = self._mode_selector.mode
        mode = self._mode_selector.relax(now)
        self._row.longest_step = self._mode_selector.longest
        if mode is not before:
            self._row.mode = mode
            if before is AcceptMode.HANDOFF:
                self._handoff.stop_handoff_after_response()
            # A task, since to open the loop's own server takes turns of the loop; referenced, since the loop doesn't keep tasks.
            task = self._loop.create_task(self._acceptor.set_mode(mode))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if mode is AcceptMode.HANDOFF:
            self._handoff.handoff_late(now)
        else:
            self._handoff.handoff_idle(now, self._handoff_idle_after)
        if self._request_timeout:
            begun = [when for engine in self._engines if (when := engine.oldest_request(now)) is not None]
            self._row.request_deadline = min(begun) + self._request_timeout if begun else 0.0
        if self._row.connections > 1:
            self._handoff.handoff_surplus(now, self._counts(), self._row.connections)

    def _proofs_elsewhere(self) -> list[float]:
        """Return when each other worker last saw a step that is proof of long handlers."""
        own = self._row.long_at
        found = self._board.column("long_at")
        if own in found:
            found.remove(own)  # only one of them, since a sibling may have the same time
        return found

    def _counts(self) -> list[int]:
        """Return the number of connections of each worker that serves."""
        states, counts = self._board.column("state"), self._board.column("connections")
        return [count for state, count in zip(states, counts, strict=True) if state == WorkerState.READY]


def _sum(counts: Iterable[int | None]) -> int:
    """Return a sum, or `UNKNOWN_VALUE` if one of the counts isn't known."""
    found = list(counts)
    known = [count for count in found if count is not None]
    return sum(known) if len(known) == len(found) else UNKNOWN_VALUE


def _report(text: str, detail: str) -> None:
    logger.warning("%s", text)
    if detail:
        logger.error("%s", detail)
