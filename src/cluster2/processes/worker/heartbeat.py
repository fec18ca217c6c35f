"""The worker's tick: heartbeats, counts, and everything that is done now and then.

It runs on the loop, so that a blocked loop looks late. It is quick (10 ms) while there is work, slower when connections are
open but nothing happens, and once a second at rest; the first request after a rest wakes it. So an idle worker costs nothing,
and no request pays for a clock, a counter or a timer of its own.
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
LATE_TICK_S = 0.004
"""Seconds by which a quick tick must be late before a long step is suspected."""
_NO_ROOM = "no more connections can be taken"
"""What is reported when the limit of descriptors is reached."""
BALANCE_AT_ONCE_CONNECTIONS = 8
"""Connections more than at the last tick with which the balance is looked at at once."""


class HeartbeatLoop:
    """Keeps the row of the scoreboard up to date, and tells the other parts the time."""

    def __init__(
        self,
        board: Scoreboard,
        row: Row,
        engines: Sequence[Engine],
        acceptor: Acceptor,
        moves: HandoffPolicy,
        pace: AcceptModeSelector,
        watch: StepSampler,
        measured: LatencyWindow,
        handoff_idle_after: float,
        request_timeout: float,
        paper: WorkerOutput,
        room: ConnectionBudget,
    ) -> None:
        """Nothing ticks yet."""
        self._board = board
        self._row = row
        self._engines = engines
        self._uncounted = any(map(owns_accept, engines))
        self._acceptor = acceptor
        self._moves = moves
        self._pace = pace
        self._watch = watch
        self._measured = measured
        self._handoff_idle_after = handoff_idle_after
        self._request_timeout = request_timeout
        self._paper = paper
        self._room = room
        self._holds = ThreadHoldEstimator()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._wait = IDLE_TICK_S
        self._due = 0.0
        self._work = -1
        self._connections = 0
        self._slow_at = 0.0
        self._second_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._guard = StepGuard(_report)
        self.slow = True
        self.draining = False

    def begin(self) -> AcceptMode:
        """Return the mode in which the acceptor is to start."""
        if self._room.is_scarce(self._room.remaining(0)):
            self._row.mode = self._pace.hold_back(time.monotonic())
        return self._pace.mode

    def start(self) -> None:
        """Tick from now on."""
        self._due = time.monotonic()  # else the first tick would seem to be late by the machine's uptime
        self._tick()

    def drain(self) -> None:
        """Only tell the time from now on."""
        self.draining = True

    def stop(self) -> None:
        """Tick no more."""
        self._rest()

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def wake(self) -> None:
        """Something has begun: the worker isn't at rest."""
        if self.slow:
            self.slow = False
            self._rest()
            self._schedule_tick(time.monotonic(), FAST_TICK_S)

    def long_step(self, step: float, now: float) -> None:
        """A handler held the loop for long."""
        row = self._row
        before = self._pace.mode
        if self._pace.is_proof(step):
            row.long_at = now
        elsewhere = [when for when in self._others_long_at() if when]
        mode = self._pace.step(step, now, elsewhere)
        row.longest_step = self._pace.longest
        if mode is before or self.draining:
            return
        row.mode = mode
        if before is AcceptMode.BATCH:
            self._acceptor.hold_back(mode)
        if mode is AcceptMode.HANDOFF:
            self._moves.start_handoff_after_response(now)

    def publish(self) -> None:
        """Bring the row up to date."""
        row = self._row
        censuses = [engine.stats() for engine in self._engines]
        row.timed_out = sum(census.timed_out for census in censuses)
        row.stalled = sum(census.stalled for census in censuses)
        row.in_flight = sum(census.in_flight for census in censuses)
        row.requests = _sum(census.requests for census in censuses)
        row.connections = _sum(census.connections for census in censuses)
        errors = self._publish_outcomes([census.outcomes for census in censuses], known=row.requests >= 0)
        errors += sum(census.failed for census in censuses)
        row.accepted = -1 if self._uncounted else self._acceptor.accepted
        row.moved_in, row.lost = self._acceptor.returned, self._acceptor.lost
        row.moved_out, row.parked = self._moves.moved, self._moves.parked
        counters = api.counters
        row.errors = errors + counters.errors
        row.transactions, row.duration = counters.transactions, counters.duration
        row.cpu = time.process_time()
        row.heartbeat = time.monotonic() + PROMISED_HEARTBEAT_S

    def _publish_outcomes(self, outcomes: Sequence[Outcomes | None], *, known: bool) -> int:
        """Tell how requests have ended; return how many were errors.

        Args:
            known: all engines know their requests.
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
        """Do what is due, and tick again, whatever fails: a worker that stopped ticking would be killed as hung."""
        now = time.monotonic()
        wait = SLOW_TICK_S
        with self._guard("a worker's tick"):
            wait = self._check_engines(now)
        if now - self._slow_at >= 0.95 * SLOW_TICK_S:
            self._slow_at = now
            self._on_slow(now)
        if now - self._second_at >= 0.95 * IDLE_TICK_S:
            self._second_at = now
            self._on_second(now)
        self._schedule_tick(now, wait)

    def _check_engines(self, now: float) -> float:
        """Look at what the engines do; return the seconds until the next tick."""
        guard = self._guard
        for engine in self._engines:
            with guard(f"the tick of {engine.name}"):
                engine.tick(now)
        with guard("the access log"):
            self._paper.tick()
        late = now - self._due
        if self._wait == FAST_TICK_S and late > LATE_TICK_S and not self.draining:
            self._watch.on_late_tick(now)
        holds = self._look_at_threads(now, late)
        work, connections = self._acceptor.accepted + self._acceptor.returned, 0
        for engine in self._engines:
            census = engine.stats()
            work += census.requests or 0
            connections += census.connections or 0
        busy = work != self._work
        self._work = work
        if busy and not self.draining:
            self._watch.tick(now, pooled=bool(holds))
        busy = busy or any(hold.full for hold in holds)
        crowd = connections - self._connections
        self._connections = connections
        with guard("the room for connections"):
            self._look_at_room(now, connections)
        if crowd >= BALANCE_AT_ONCE_CONNECTIONS and now - self._slow_at < 0.95 * SLOW_TICK_S and not self.draining:
            self._row.connections = connections
            with guard("moving connections"):
                self._moves.handoff_surplus(now, self._counts(), connections)
        return FAST_TICK_S if busy else SLOW_TICK_S if connections or self._pace.mode else IDLE_TICK_S

    def _look_at_room(self, now: float, connections: int) -> None:
        """Have no more connections taken than there are descriptors for."""
        room = self._room.remaining(connections)
        if self._room.is_scarce(room) and not self.draining:
            before = self._pace.mode
            mode = self._pace.hold_back(now)
            if before is AcceptMode.BATCH:
                self._row.mode = mode
                self._acceptor.hold_back(mode)
        if room > 0:
            self._guard.worked(_NO_ROOM)
        else:
            limit = ClusterError(f"RLIMIT_NOFILE is {self._room.limit}")
            self._guard.failed(_NO_ROOM, limit, "newcomers wait, or go to another worker; raise the limit")
        self._acceptor.set_capacity(room)

    def _on_slow(self, now: float) -> None:
        """Do what is done ten times a second at most."""
        if self._room.is_scarce(self._room.remaining(self._connections)):
            with self._guard("the room for connections"):
                self._room.measure(self._connections)
        with self._guard("the log files"):
            self._paper.reopen_if_moved()
        with self._guard("the counts of this worker"):
            self.publish()
        # The loop turns, whatever else fails.
        self._row.heartbeat = now + PROMISED_HEARTBEAT_S
        with self._guard("moving connections"):
            self._slow(now)

    def _on_second(self, now: float) -> None:
        """Do what is done once a second at most."""
        self._measured.on_second(now)
        with self._guard("the room for connections"):
            self._room.measure(self._connections)
        with self._guard("the memory of this worker"):
            self._row.memory = processes.resident_memory()
        for engine in self._engines:
            with self._guard(f"the time limits of {engine.name}"):
                engine.on_second()

    def _look_at_threads(self, now: float, late: float) -> list[ThreadHold]:
        """What engines with threads say of them; report it if it counts."""
        held = (
            engine.longest_hold(now, self._pace.handoff_slow_above or LATE_TICK_S)
            for engine in self._engines
            if is_protocol_engine(engine)
        )
        holds = [hold for hold in held if hold is not None]
        for hold in holds:
            step = self._holds.tick(hold, late)
            if step > LONG_STEP_S and not self.draining:
                self.long_step(step, now)
        return holds

    def _schedule_tick(self, now: float, wait: float) -> None:
        if wait != FAST_TICK_S and not self.draining:
            self._watch.on_idle()
        self.slow = wait != FAST_TICK_S
        self._wait = wait
        self._due = now + wait
        self._timer = self._loop.call_later(wait, self._tick)

    def _slow(self, now: float) -> None:
        if self.draining:
            return
        before = self._pace.mode
        mode = self._pace.relax(now)
        self._row.longest_step = self._pace.longest
        if mode is not before:
            self._row.mode = mode
            if before is AcceptMode.HANDOFF:
                self._moves.stop_handoff_after_response()
            task = self._loop.create_task(self._acceptor.set_mode(mode))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if mode is AcceptMode.HANDOFF:
            self._moves.handoff_late(now)
        else:
            self._moves.handoff_idle(now, self._handoff_idle_after)
        if self._request_timeout:
            begun = [when for engine in self._engines if (when := engine.oldest_request(now)) is not None]
            self._row.request_deadline = min(begun) + self._request_timeout if begun else 0.0
        if self._row.connections > 1:
            self._moves.handoff_surplus(now, self._counts(), self._row.connections)

    def _others_long_at(self) -> list[float]:
        own = self._row.long_at
        found = self._board.column("long_at")
        if own in found:
            found.remove(own)
        return found

    def _counts(self) -> list[int]:
        """Connections of each worker that serves."""
        states, counts = self._board.column("state"), self._board.column("connections")
        return [count for state, count in zip(states, counts, strict=True) if state == WorkerState.READY]


def _sum(counts: Iterable[int | None]) -> int:
    """Return a sum; UNKNOWN if one of the counts isn't known."""
    found = list(counts)
    known = [count for count in found if count is not None]
    return sum(known) if len(known) == len(found) else UNKNOWN_VALUE


def _report(text: str, detail: str) -> None:
    logger.warning("%s", text)
    if detail:
        logger.error("%s", detail)
