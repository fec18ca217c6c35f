"""The worker's tick: the row of the scoreboard, the modes, the calls of the other parts, and the cost of an idle worker."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from cluster2.config.settings import Settings
from cluster2.core.lifecycle import WorkerState
from cluster2.engines.base import Engine, EngineStats, ThreadHold
from cluster2.linux import processes
from cluster2.linux.scoreboard import Row, Scoreboard
from cluster2.processes.worker.connections.acceptor import Acceptor
from cluster2.processes.worker.connections.connection_budget import MAX_RESERVED_DESCRIPTORS, ConnectionBudget
from cluster2.processes.worker.connections.handoff import HandoffPolicy
from cluster2.processes.worker.heartbeat import (
    BALANCE_AT_ONCE_CONNECTIONS,
    FAST_TICK_S,
    IDLE_TICK_S,
    SLOW_TICK_S,
    HeartbeatLoop,
)
from cluster2.processes.worker.output import WorkerOutput
from cluster2.processes.worker.sampling.accept_mode import (
    CLEARLY_LONG_STEP_S,
    MIN_CLEARLY_LONG_STEPS,
    MIN_SLOW_STEPS,
    AcceptMode,
    AcceptModeSelector,
)
from cluster2.processes.worker.sampling.latency import LatencyWindow
from cluster2.processes.worker.sampling.steps import REQUESTS_PER_BURST, StepSampler
from tests.unit.waiting import until

pytestmark = pytest.mark.anyio
ABOVE = 0.005


class FakeEngine:
    """An engine whose figures the test sets."""

    name = "engine"

    def __init__(self) -> None:
        self.now = EngineStats(0, 0, 0)
        self.ticks = 0
        self.seconds = 0
        self.begun: float | None = None
        self.hold: ThreadHold | None = None

    def longest_hold(self, now: float, above: float) -> ThreadHold | None:
        return self.hold

    def stats(self) -> EngineStats:
        return self.now

    def tick(self, now: float) -> None:
        self.ticks += 1

    def on_second(self) -> None:
        self.seconds += 1

    def oldest_request(self, now: float) -> float | None:
        return self.begun


class FakeAcceptor:
    """An acceptor that records its modes."""

    def __init__(self) -> None:
        self.accepted = 0
        self.returned = 0
        self.lost = 0
        self.budget = 0
        self.modes: list[str] = []

    def set_capacity(self, budget: int) -> None:
        self.budget = budget

    def hold_back(self, mode: AcceptMode) -> None:
        self.modes.append(f"hold {mode.name}")

    async def set_mode(self, mode: AcceptMode) -> None:
        self.modes.append(f"change {mode.name}")


class FakeBudget(ConnectionBudget):
    """A budget of connections for a number of descriptors that the test sets."""

    def __init__(self, total: int = 100_000) -> None:
        self.total = total
        self.measured = 0
        super().__init__(1, 100)

    def measure(self, connections: int) -> None:
        self.measured += 1
        self.limit, self._others = self.total, 0


class FakeHandoff:
    """A hand-off policy that records its calls."""

    def __init__(self) -> None:
        self.moved = 0
        self.parked = 0
        self.done: list[str] = []
        self.shared: list[tuple[list[int], int]] = []

    def start_handoff_after_response(self, now: float) -> None:
        self.done.append("park")

    def stop_handoff_after_response(self) -> None:
        self.done.append("park no more")

    def handoff_late(self, now: float) -> None:
        self.done.append("park late")

    def handoff_idle(self, now: float, after: float) -> None:
        self.done.append(f"rest {after:g}")

    def handoff_surplus(self, now: float, counts: list[int], mine: int) -> None:
        self.shared.append((counts, mine))


class Worker:
    """A heartbeat loop whose other parts only record their calls."""

    def __init__(self, board: Scoreboard, *, request_timeout: float = 0.0, handoff_slow_above: float = ABOVE) -> None:
        self.board = board
        self.row: Row = board.row(board.claim())
        self.row.state = WorkerState.READY
        self.engines = [FakeEngine(), FakeEngine()]
        self.acceptor = FakeAcceptor()
        self.handoff = FakeHandoff()
        self.pace = AcceptModeSelector(handoff_slow_above)
        self.budget = FakeBudget()
        self.watch = StepSampler(lambda step, now: self.heartbeat.long_step(step, now), 2 * ABOVE)
        self.heartbeat = HeartbeatLoop(
            board,
            self.row,
            cast(list[Engine], self.engines),
            cast(Acceptor, self.acceptor),
            cast(HandoffPolicy, self.handoff),
            self.pace,
            self.watch,
            LatencyWindow(self.row),
            handoff_idle_after=2.0,
            request_timeout=request_timeout,
            output=WorkerOutput(Settings(), "", 0),
            budget=self.budget,
        )

    def works(self, requests: int = 1) -> None:
        engine = self.engines[0]
        engine.now = engine.now._replace(requests=(engine.now.requests or 0) + requests)

    async def busy(self, predicate: Callable[[], Any], why: str = "") -> None:
        """Let the loop run with a request every few milliseconds until the condition is true."""

        def working() -> Any:
            self.works()
            return predicate()

        await until(working, why)


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = Scoreboard.create()
    yield board
    board.close()


async def test_publish(board: Scoreboard) -> None:
    """Write into the row the sums over all engines, the connections taken and moved, and a deadline for the next heartbeat."""
    worker = Worker(board)
    worker.engines[0].now, worker.engines[1].now = EngineStats(10, 3, 1), EngineStats(5, 2, 2)
    worker.acceptor.accepted, worker.acceptor.returned, worker.acceptor.lost = 7, 4, 3
    worker.handoff.moved, worker.handoff.parked = 6, 5
    before = time.monotonic()
    worker.heartbeat.publish()
    row = worker.row
    assert (row.requests, row.connections, row.in_flight) == (15, 5, 3)
    assert (row.accepted, row.moved_in, row.lost, row.moved_out, row.parked) == (7, 4, 3, 6, 5)
    assert before + 2 * IDLE_TICK_S <= row.heartbeat <= time.monotonic() + 2 * IDLE_TICK_S


@pytest.mark.parametrize("unknown", [0, 1])
async def test_publish_what_nobody_knows(board: Scoreboard, unknown: int) -> None:
    """Make a sum unknown if any engine doesn't know its count; requests in flight are always known."""
    worker = Worker(board)
    worker.engines[unknown].now, worker.engines[1 - unknown].now = EngineStats(None, None, 2), EngineStats(5, 2, 2)
    worker.heartbeat.publish()
    assert (worker.row.requests, worker.row.connections, worker.row.in_flight) == (-1, -1, 4)


# The tick's pace


async def test_a_worker_at_rest(board: Scoreboard) -> None:
    """Tick only once a second without connections and work, and measure the first requests after that."""
    worker = Worker(board)
    worker.heartbeat.start()
    await until(lambda: worker.heartbeat._wait == IDLE_TICK_S)
    assert worker.heartbeat.slow
    assert worker.watch.due == REQUESTS_PER_BURST
    worker.heartbeat.stop()


async def test_quick_while_there_is_work(board: Scoreboard) -> None:
    """Tick fast while requests come, and slowly when none comes and connections are open."""
    worker = Worker(board)
    worker.engines[0].now = EngineStats(0, 1, 0)
    worker.heartbeat.start()
    await worker.busy(lambda: worker.engines[0].ticks > 5)
    assert worker.heartbeat._wait == FAST_TICK_S
    assert not worker.heartbeat.slow
    await until(lambda: worker.heartbeat._wait == SLOW_TICK_S)
    assert worker.heartbeat.slow
    worker.heartbeat.stop()


async def test_wake(board: Scoreboard) -> None:
    """Bring the next tick forward with the first request after an idle time; the others cost nothing."""
    worker = Worker(board)
    worker.heartbeat.start()
    await until(lambda: worker.heartbeat._wait == IDLE_TICK_S)
    worker.heartbeat.wake()
    assert not worker.heartbeat.slow
    assert worker.heartbeat._wait == FAST_TICK_S
    timer = worker.heartbeat._timer
    worker.heartbeat.wake()
    assert worker.heartbeat._timer is timer
    worker.heartbeat.stop()


async def test_a_mode_keeps_it_awake(board: Scoreboard) -> None:
    """Go on ticking in each mode but batch, so that the mode can end."""
    worker = Worker(board)
    worker.heartbeat.start()
    for _ in range(MIN_CLEARLY_LONG_STEPS):
        worker.heartbeat.long_step(2 * CLEARLY_LONG_STEP_S, time.monotonic())
    worker.heartbeat.wake()
    await until(lambda: worker.heartbeat._wait == SLOW_TICK_S)
    worker.heartbeat.stop()


async def test_stop(board: Scoreboard) -> None:
    """Stop ticking when the loop is stopped."""
    worker = Worker(board)
    worker.heartbeat.start()
    worker.heartbeat.wake()
    worker.heartbeat.stop()
    ticks = worker.engines[0].ticks
    for _ in range(20):
        await asyncio.sleep(FAST_TICK_S / 5)
    assert worker.engines[0].ticks == ticks


# Modes


async def test_a_long_step(board: Scoreboard) -> None:
    """Leave mode batch at once after enough long steps, with the longest in the row; more steps change nothing."""
    worker = Worker(board)
    now = time.monotonic()
    for number in range(MIN_CLEARLY_LONG_STEPS + 2):
        longest = (1.1 + number / 10) * CLEARLY_LONG_STEP_S
        worker.heartbeat.long_step(longest, now)
        assert worker.acceptor.modes == (["hold ONE_BY_ONE"] if number + 1 >= MIN_CLEARLY_LONG_STEPS else [])
    assert (worker.row.mode, worker.row.longest_step) == (AcceptMode.ONE_BY_ONE, longest)
    assert worker.row.long_at == 0.0, "it is no proof"
    assert worker.handoff.done == []


async def test_proof_parks(board: Scoreboard) -> None:
    """Begin mode handoff with the third proof, and publish in the row when the last one was."""
    worker = Worker(board)
    now = time.monotonic()
    for number in range(MIN_SLOW_STEPS):
        assert worker.handoff.done == []
        worker.heartbeat.long_step(2 * ABOVE, now + number / 100)
    assert worker.handoff.done == ["park"]
    assert worker.row.mode == AcceptMode.HANDOFF
    assert worker.row.long_at == now + 0.02


async def test_proof_of_siblings_parks(board: Scoreboard) -> None:
    """Count two siblings with proof and one of its own as three; its own row doesn't count twice, and an empty one not at all."""
    siblings = [board.row(board.claim()) for _ in range(4)]
    worker = Worker(board)
    now = time.monotonic()
    siblings[0].long_at = now - 0.1
    worker.heartbeat.long_step(2 * ABOVE, now)
    assert worker.handoff.done == []
    siblings[1].long_at = now - 0.1
    worker.row.long_at = 0.0
    worker.heartbeat.long_step(2 * ABOVE, now + 0.1)
    assert worker.handoff.done == ["park"]


async def test_threads_held_from_the_first_tick_on(board: Scoreboard) -> None:
    """Detect at the first tick that all threads are held: that tick is not late."""
    worker = Worker(board)
    worker.engines[0].hold = ThreadHold(wall=20.0, used=0.0, full=True)
    worker.heartbeat.start()
    assert worker.row.longest_step > 1.0
    await until(lambda: "park" in worker.handoff.done)
    worker.heartbeat.stop()


async def test_modes_end(board: Scoreboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """End mode handoff, then one_by_one, when it is calm; the acceptor, the hand-off policy and the row follow."""
    monkeypatch.setattr("cluster2.processes.worker.sampling.accept_mode.CALM_AFTER_S", 0.2)
    worker = Worker(board)
    worker.heartbeat.start()
    for _ in range(MIN_SLOW_STEPS):
        worker.heartbeat.long_step(2 * ABOVE, time.monotonic())
    worker.heartbeat.wake()
    await until(lambda: worker.row.mode == AcceptMode.BATCH)
    await until(lambda: worker.acceptor.modes[-1] == "change BATCH")
    assert worker.acceptor.modes[0].startswith("hold ")
    assert [each for each in worker.handoff.done if each in ("park", "park no more")] == ["park", "park no more"]
    assert worker.row.longest_step == 0.0
    worker.heartbeat.stop()


async def test_a_worker_that_drains(board: Scoreboard) -> None:
    """Only pass the time while draining: no mode begins and nothing is moved, but heartbeats go on."""
    worker = Worker(board)
    worker.heartbeat.start()
    await until(lambda: worker.heartbeat._wait == IDLE_TICK_S)
    worker.heartbeat.drain()
    worker.handoff.done.clear()
    for _ in range(MIN_SLOW_STEPS):
        worker.heartbeat.long_step(2 * ABOVE, time.monotonic())
    worker.row.heartbeat = 0.0
    worker.heartbeat.wake()
    await worker.busy(lambda: worker.row.heartbeat)
    assert worker.acceptor.modes == []
    assert worker.handoff.done == []
    worker.heartbeat.stop()


# Now and then


async def test_what_is_done_now_and_then(board: Scoreboard) -> None:
    """Call the engines at each tick and each second. Hand over idle connections, or in mode handoff the late ones."""
    worker = Worker(board)
    worker.engines[0].now = EngineStats(0, 1, 0)
    worker.heartbeat.start()
    await worker.busy(lambda: worker.engines[1].ticks > 20)
    assert worker.engines[1].seconds < worker.engines[1].ticks
    assert set(worker.handoff.done) == {"rest 2"}
    for _ in range(MIN_SLOW_STEPS):
        worker.heartbeat.long_step(2 * ABOVE, time.monotonic())
    worker.handoff.done.clear()
    await worker.busy(lambda: worker.handoff.done)
    assert set(worker.handoff.done) == {"park late"}
    worker.heartbeat.stop()


async def test_a_fault_outside_the_guards(board: Scoreboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tick on after a step that no guard contains has raised."""
    worker = Worker(board)
    raised: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context["exception"]))

    def fail() -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(worker.watch, "on_idle", fail)
    worker.heartbeat.start()
    try:
        await until(lambda: len(raised) > 1 and worker.engines[0].ticks > 2, "it ticks on")
    finally:
        worker.heartbeat.stop()


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("a fault of ours")])
@pytest.mark.parametrize(
    "step",
    [
        "engine.tick", "engine.on_second", "engine.stats", "engine.longest_hold", "engine.oldest_request",
        "output.tick", "output.reopen_if_moved",
        "handoff.handoff_idle", "handoff.handoff_surplus", "memory", "latency.on_second",
    ],
)  # fmt: skip
async def test_a_step_that_fails(
    board: Scoreboard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    """Report a failing step once, go on ticking, run the other steps, and retry the one that failed."""
    worker = Worker(board, request_timeout=5.0)
    worker.engines[0].now = EngineStats(0, 5, 0)
    parts = {
        "engine": worker.engines[0],
        "output": worker.heartbeat._output,
        "handoff": worker.handoff,
        "memory": processes,
        "latency": worker.heartbeat._latency,
    }
    part, _, method = step.partition(".")
    failures = []

    def fail(*_: object, **__: object) -> None:
        failures.append(step)
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(parts[part], method or "resident_memory", fail)
        worker.heartbeat.start()
        try:
            for _ in range(3):
                tried, promised = len(failures), worker.row.heartbeat
                worker.heartbeat._second_at = worker.heartbeat._slow_at = 0.0
                await until(lambda: len(failures) > tried and worker.row.heartbeat > promised, "it ticks on")  # noqa: B023
            assert worker.engines[1].ticks
            warned = [each.getMessage() for each in caplog.records if "it is tried again" in each.getMessage()]
            assert warned
            assert len(warned) == len({each.partition(":")[0] for each in warned})
            broken.undo()
            worker.row.memory, seconds = 0, worker.engines[0].seconds
            worker.heartbeat._second_at = 0.0
            await until(lambda: worker.row.memory and worker.engines[0].seconds > seconds, "all steps are done again")
        finally:
            worker.heartbeat.stop()


async def test_share_by_the_counts_of_those_that_serve(board: Scoreboard) -> None:
    """Compare the worker with those that serve; those that boot or drain, and free rows, don't count."""
    for state, connections in ((WorkerState.READY, 3), (WorkerState.DRAINING, 50), (WorkerState.BOOTING, 0)):
        row = board.row(board.claim())
        row.state, row.connections = state, connections
    board.claim()
    worker = Worker(board)
    worker.engines[0].now = EngineStats(0, 9, 0)
    worker.heartbeat.start()
    await until(lambda: worker.handoff.shared)
    assert worker.handoff.shared[0] == ([3, 9], 9)
    worker.heartbeat.stop()


async def test_a_crowd_is_looked_at_at_once(board: Scoreboard) -> None:
    """Share many new connections with the tick after they came, not with the next slow one."""
    worker = Worker(board)
    worker.engines[0].now = EngineStats(0, 2, 0)
    worker.heartbeat.start()
    await worker.busy(lambda: worker.handoff.shared)
    looks = []
    for _ in range(5):
        worker.engines[0].now = worker.engines[0].now._replace(
            connections=(worker.engines[0].now.connections or 0) + BALANCE_AT_ONCE_CONNECTIONS
        )
        count = len(worker.handoff.shared)
        began = worker.engines[0].ticks
        await worker.busy(lambda count=count: len(worker.handoff.shared) > count)
        looks.append(worker.engines[0].ticks - began)
    assert max(looks) <= 2, "each crowd was looked at with the next tick or the one after it"
    worker.heartbeat.stop()


async def test_the_oldest_request(board: Scoreboard) -> None:
    """Publish the deadline of the oldest request of all engines if requests have a time limit; 0 when there is none."""
    worker = Worker(board, request_timeout=10.0)
    worker.engines[0].now = EngineStats(0, 1, 1)
    worker.engines[0].begun, worker.engines[1].begun = 500.0, 400.0
    worker.heartbeat.start()
    await worker.busy(lambda: worker.row.request_deadline == 410.0)
    worker.engines[0].begun = worker.engines[1].begun = None
    await worker.busy(lambda: worker.row.request_deadline == 0.0)
    worker.heartbeat.stop()


async def test_threads_that_are_held(board: Scoreboard) -> None:
    """Count requests that hold threads for long like steps that hold the loop, and keep ticking fast."""
    worker = Worker(board)
    worker.heartbeat.start()
    worker.engines[0].hold = ThreadHold(wall=4 * ABOVE, used=4 * ABOVE, full=True)
    await until(lambda: worker.pace.mode is AcceptMode.HANDOFF)
    assert worker.row.long_at > 0
    assert not worker.heartbeat.slow, "it would miss what threads do"
    worker.engines[0].hold = ThreadHold(wall=0.0, used=0.0, full=False)
    await until(lambda: worker.heartbeat.slow)
    worker.heartbeat.stop()


async def test_descriptors_are_scarce(board: Scoreboard, caplog: pytest.LogCaptureFixture) -> None:
    """Take connections one at a time near the limit and none at the limit, and warn once."""
    worker = Worker(board)
    worker.heartbeat.start()
    engine, budget = worker.engines[0], worker.budget
    assert worker.acceptor.budget == budget.total - MAX_RESERVED_DESCRIPTORS
    engine.now = EngineStats(0, budget.total - MAX_RESERVED_DESCRIPTORS - budget.burst, 0)
    await worker.busy(lambda: worker.acceptor.budget == budget.burst)
    assert worker.pace.mode is AcceptMode.BATCH
    engine.now = engine.now._replace(connections=budget.total - MAX_RESERVED_DESCRIPTORS - budget.burst + 1)
    await worker.busy(lambda: worker.pace.mode is AcceptMode.ONE_BY_ONE)
    assert worker.acceptor.modes == ["hold ONE_BY_ONE"]
    assert worker.row.mode == AcceptMode.ONE_BY_ONE
    engine.now = engine.now._replace(connections=budget.total - MAX_RESERVED_DESCRIPTORS)
    await worker.busy(lambda: worker.acceptor.budget == 0)
    budget.total -= 1000  # a script lowers the limit
    await worker.busy(lambda: worker.acceptor.budget == -1000, "it is measured again")
    engine.now = engine.now._replace(connections=1)
    await worker.busy(lambda: worker.acceptor.budget > budget.burst)
    worker.heartbeat.stop()
    told = [record.getMessage() for record in caplog.records if "no more connections" in record.getMessage()]
    assert len(told) == 2, "once for each limit"
    assert told[0].endswith("RLIMIT_NOFILE is 100000; new connections wait, or go to another worker; raise the limit")


async def test_a_start_with_few_descriptors(board: Scoreboard) -> None:
    """Never accept in batches if there are few descriptors from the start."""
    worker = Worker(board)
    assert worker.heartbeat.begin() is AcceptMode.BATCH
    worker.budget.total = worker.budget.burst
    worker.budget.measure(0)
    assert worker.heartbeat.begin() is AcceptMode.ONE_BY_ONE
    assert worker.row.mode == AcceptMode.ONE_BY_ONE
