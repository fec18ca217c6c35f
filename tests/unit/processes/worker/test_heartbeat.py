"""The worker's tick: the row of the scoreboard, the modes, who is told what, and that an idle worker is left alone."""

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


class Home:
    """An engine that does what it is told to have done."""

    name = "home"

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


class Taker:
    """An acceptor that notes its modes."""

    def __init__(self) -> None:
        self.accepted = 0
        self.returned = 0
        self.lost = 0
        self.room = 0
        self.modes: list[str] = []

    def set_capacity(self, room: int) -> None:
        self.room = room

    def hold_back(self, mode: AcceptMode) -> None:
        self.modes.append(f"hold {mode.name}")

    async def set_mode(self, mode: AcceptMode) -> None:
        self.modes.append(f"change {mode.name}")


class Room(ConnectionBudget):
    """Room as if there were so many descriptors."""

    def __init__(self, total: int = 100_000) -> None:
        self.total = total
        self.measured = 0
        super().__init__(1, 100)

    def measure(self, connections: int) -> None:
        self.measured += 1
        self.limit, self._others = self.total, 0


class Ways:
    """Moves that note why."""

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
    """A pulse with parts that only note what they are told."""

    def __init__(self, board: Scoreboard, *, request_timeout: float = 0.0, handoff_slow_above: float = ABOVE) -> None:
        self.board = board
        self.row: Row = board.row(board.claim())
        self.row.state = WorkerState.READY
        self.homes = [Home(), Home()]
        self.taker = Taker()
        self.ways = Ways()
        self.pace = AcceptModeSelector(handoff_slow_above)
        self.room = Room()
        self.watch = StepSampler(lambda step, now: self.pulse.long_step(step, now), 2 * ABOVE)
        self.pulse = HeartbeatLoop(
            board,
            self.row,
            cast(list[Engine], self.homes),
            cast(Acceptor, self.taker),
            cast(HandoffPolicy, self.ways),
            self.pace,
            self.watch,
            LatencyWindow(self.row),
            handoff_idle_after=2.0,
            request_timeout=request_timeout,
            output=WorkerOutput(Settings(), "", 0),
            budget=self.room,
        )

    def works(self, requests: int = 1) -> None:
        home = self.homes[0]
        home.now = home.now._replace(requests=(home.now.requests or 0) + requests)

    async def busy(self, predicate: Callable[[], Any], why: str = "") -> None:
        """Let the loop run with a request every few milliseconds until it is true."""

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
    """The row holds the sums over all engines, what was taken and moved, and a deadline for the next heartbeat."""
    worker = Worker(board)
    worker.homes[0].now, worker.homes[1].now = EngineStats(10, 3, 1), EngineStats(5, 2, 2)
    worker.taker.accepted, worker.taker.returned, worker.taker.lost = 7, 4, 3
    worker.ways.moved, worker.ways.parked = 6, 5
    before = time.monotonic()
    worker.pulse.publish()
    row = worker.row
    assert (row.requests, row.connections, row.in_flight) == (15, 5, 3)
    assert (row.accepted, row.moved_in, row.lost, row.moved_out, row.parked) == (7, 4, 3, 6, 5)
    assert before + 2 * IDLE_TICK_S <= row.heartbeat <= time.monotonic() + 2 * IDLE_TICK_S


@pytest.mark.parametrize("unknown", [0, 1])
async def test_publish_what_nobody_knows(board: Scoreboard, unknown: int) -> None:
    """One engine that can't know makes the sum unknown, whichever it is; what is in flight is known."""
    worker = Worker(board)
    worker.homes[unknown].now, worker.homes[1 - unknown].now = EngineStats(None, None, 2), EngineStats(5, 2, 2)
    worker.pulse.publish()
    assert (worker.row.requests, worker.row.connections, worker.row.in_flight) == (-1, -1, 4)


# The tick's pace


async def test_a_worker_at_rest(board: Scoreboard) -> None:
    """Without connections and without work it ticks once a second only; all first requests will be measured."""
    worker = Worker(board)
    worker.pulse.start()
    await until(lambda: worker.pulse._wait == IDLE_TICK_S)
    assert worker.pulse.slow
    assert worker.watch.due == REQUESTS_PER_BURST
    worker.pulse.stop()


async def test_quick_while_there_is_work(board: Scoreboard) -> None:
    """While requests come it ticks quickly; when none comes and connections are open it does slowly."""
    worker = Worker(board)
    worker.homes[0].now = EngineStats(0, 1, 0)
    worker.pulse.start()
    await worker.busy(lambda: worker.homes[0].ticks > 5)
    assert worker.pulse._wait == FAST_TICK_S
    assert not worker.pulse.slow
    await until(lambda: worker.pulse._wait == SLOW_TICK_S)
    assert worker.pulse.slow
    worker.pulse.stop()


async def test_wake(board: Scoreboard) -> None:
    """The first request after a rest brings the next tick near; the others cost nothing."""
    worker = Worker(board)
    worker.pulse.start()
    await until(lambda: worker.pulse._wait == IDLE_TICK_S)
    worker.pulse.wake()
    assert not worker.pulse.slow
    assert worker.pulse._wait == FAST_TICK_S
    timer = worker.pulse._timer
    worker.pulse.wake()
    assert worker.pulse._timer is timer
    worker.pulse.stop()


async def test_a_mode_keeps_it_awake(board: Scoreboard) -> None:
    """While it isn't eager it goes on ticking, or it would never become so again."""
    worker = Worker(board)
    worker.pulse.start()
    for _ in range(MIN_CLEARLY_LONG_STEPS):
        worker.pulse.long_step(2 * CLEARLY_LONG_STEP_S, time.monotonic())
    worker.pulse.wake()
    await until(lambda: worker.pulse._wait == SLOW_TICK_S)
    worker.pulse.stop()


async def test_stop(board: Scoreboard) -> None:
    """Stopped, it ticks no more."""
    worker = Worker(board)
    worker.pulse.start()
    worker.pulse.wake()
    worker.pulse.stop()
    ticks = worker.homes[0].ticks
    for _ in range(20):
        await asyncio.sleep(FAST_TICK_S / 5)
    assert worker.homes[0].ticks == ticks


# Modes


async def test_a_long_step(board: Scoreboard) -> None:
    """Enough long steps hold the acceptor at once, and the longest stands in the row; more change nothing."""
    worker = Worker(board)
    now = time.monotonic()
    for number in range(MIN_CLEARLY_LONG_STEPS + 2):
        longest = (1.1 + number / 10) * CLEARLY_LONG_STEP_S
        worker.pulse.long_step(longest, now)
        assert worker.taker.modes == (["hold ONE_BY_ONE"] if number + 1 >= MIN_CLEARLY_LONG_STEPS else [])
    assert (worker.row.mode, worker.row.longest_step) == (AcceptMode.ONE_BY_ONE, longest)
    assert worker.row.long_at == 0.0, "it is no proof"
    assert worker.ways.done == []


async def test_proof_parks(board: Scoreboard) -> None:
    """The third proof parks; the row tells the others when the last one was."""
    worker = Worker(board)
    now = time.monotonic()
    for number in range(MIN_SLOW_STEPS):
        assert worker.ways.done == []
        worker.pulse.long_step(2 * ABOVE, now + number / 100)
    assert worker.ways.done == ["park"]
    assert worker.row.mode == AcceptMode.HANDOFF
    assert worker.row.long_at == now + 0.02


async def test_proof_of_siblings_parks(board: Scoreboard) -> None:
    """Two siblings with proof and one of its own are three; its own row doesn't count twice, an empty one not at all."""
    siblings = [board.row(board.claim()) for _ in range(4)]
    worker = Worker(board)
    now = time.monotonic()
    siblings[0].long_at = now - 0.1
    worker.pulse.long_step(2 * ABOVE, now)
    assert worker.ways.done == []
    siblings[1].long_at = now - 0.1
    worker.row.long_at = 0.0
    worker.pulse.long_step(2 * ABOVE, now + 0.1)
    assert worker.ways.done == ["park"]


async def test_threads_held_from_the_first_tick_on(board: Scoreboard) -> None:
    """A worker whose threads are all held at its first tick notices: that tick is not late."""
    worker = Worker(board)
    worker.homes[0].hold = ThreadHold(wall=20.0, used=0.0, full=True)
    worker.pulse.start()
    assert worker.row.longest_step > 1.0
    await until(lambda: "park" in worker.ways.done)
    worker.pulse.stop()


async def test_modes_end(board: Scoreboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is calm parking ends, then holding; the acceptor and the ways out are told, and the row."""
    monkeypatch.setattr("cluster2.processes.worker.sampling.accept_mode.CALM_AFTER_S", 0.2)
    worker = Worker(board)
    worker.pulse.start()
    for _ in range(MIN_SLOW_STEPS):
        worker.pulse.long_step(2 * ABOVE, time.monotonic())
    worker.pulse.wake()
    await until(lambda: worker.row.mode == AcceptMode.BATCH)
    await until(lambda: worker.taker.modes[-1] == "change BATCH")
    assert worker.taker.modes[0].startswith("hold ")
    assert [each for each in worker.ways.done if each in ("park", "park no more")] == ["park", "park no more"]
    assert worker.row.longest_step == 0.0
    worker.pulse.stop()


async def test_a_worker_that_drains(board: Scoreboard) -> None:
    """It only tells the time from then on: no mode is begun, nothing is moved; heartbeats go on."""
    worker = Worker(board)
    worker.pulse.start()
    await until(lambda: worker.pulse._wait == IDLE_TICK_S)
    worker.pulse.drain()
    worker.ways.done.clear()
    for _ in range(MIN_SLOW_STEPS):
        worker.pulse.long_step(2 * ABOVE, time.monotonic())
    worker.row.heartbeat = 0.0
    worker.pulse.wake()
    await worker.busy(lambda: worker.row.heartbeat)
    assert worker.taker.modes == []
    assert worker.ways.done == []
    worker.pulse.stop()


# Now and then


async def test_what_is_done_now_and_then(board: Scoreboard) -> None:
    """Engines hear each tick, once a second the second; what is idle rests; while it parks the late ones go instead."""
    worker = Worker(board)
    worker.homes[0].now = EngineStats(0, 1, 0)
    worker.pulse.start()
    await worker.busy(lambda: worker.homes[1].ticks > 20)
    assert worker.homes[1].seconds < worker.homes[1].ticks
    assert set(worker.ways.done) == {"rest 2"}
    for _ in range(MIN_SLOW_STEPS):
        worker.pulse.long_step(2 * ABOVE, time.monotonic())
    worker.ways.done.clear()
    await worker.busy(lambda: worker.ways.done)
    assert set(worker.ways.done) == {"park late"}
    worker.pulse.stop()


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("a fault of ours")])
@pytest.mark.parametrize(
    "step",
    [
        "engine.tick", "engine.on_second", "engine.stats", "engine.longest_hold", "engine.oldest_request", "paper.tick", "paper.reopen_if_moved",
        "ways.handoff_idle", "ways.handoff_surplus", "memory",
    ],
)  # fmt: skip
async def test_a_step_that_fails(
    board: Scoreboard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    """A step that fails is reported once; the worker ticks on, the other steps are done, and that one is tried again."""
    worker = Worker(board, request_timeout=5.0)
    worker.homes[0].now = EngineStats(0, 5, 0)
    parts = {"engine": worker.homes[0], "paper": worker.pulse._output, "ways": worker.ways, "memory": processes}
    part, _, method = step.partition(".")
    failures = []

    def fail(*_: object, **__: object) -> None:
        failures.append(step)
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(parts[part], method or "resident_memory", fail)
        worker.pulse.start()
        try:
            for _ in range(3):
                tried, promised = len(failures), worker.row.heartbeat
                worker.pulse._second_at = worker.pulse._slow_at = 0.0
                await until(lambda: len(failures) > tried and worker.row.heartbeat > promised, "it ticks on")  # noqa: B023
            assert worker.homes[1].ticks
            warned = [each.getMessage() for each in caplog.records if "it is tried again" in each.getMessage()]
            assert warned
            assert len(warned) == len({each.partition(":")[0] for each in warned})
            broken.undo()
            worker.row.memory, seconds = 0, worker.homes[0].seconds
            worker.pulse._second_at = 0.0
            await until(lambda: worker.row.memory and worker.homes[0].seconds > seconds, "all steps are done again")
        finally:
            worker.pulse.stop()


async def test_share_by_the_counts_of_those_that_serve(board: Scoreboard) -> None:
    """A worker compares itself with those that serve; those that boot or drain, and free rows, don't count."""
    for state, connections in ((WorkerState.READY, 3), (WorkerState.DRAINING, 50), (WorkerState.BOOTING, 0)):
        row = board.row(board.claim())
        row.state, row.connections = state, connections
    board.claim()
    worker = Worker(board)
    worker.homes[0].now = EngineStats(0, 9, 0)
    worker.pulse.start()
    await until(lambda: worker.ways.shared)
    assert worker.ways.shared[0] == ([3, 9], 9)
    worker.pulse.stop()


async def test_a_crowd_is_looked_at_at_once(board: Scoreboard) -> None:
    """Many new connections since the last tick are shared with that tick, not with the next slow one."""
    worker = Worker(board)
    worker.homes[0].now = EngineStats(0, 2, 0)
    worker.pulse.start()
    await worker.busy(lambda: worker.ways.shared)
    looks = []
    for _ in range(5):
        worker.homes[0].now = worker.homes[0].now._replace(
            connections=(worker.homes[0].now.connections or 0) + BALANCE_AT_ONCE_CONNECTIONS
        )
        count = len(worker.ways.shared)
        began = worker.homes[0].ticks
        await worker.busy(lambda count=count: len(worker.ways.shared) > count)
        looks.append(worker.homes[0].ticks - began)
    assert max(looks) <= 2, "each crowd was looked at with the next tick or the one after it"
    worker.pulse.stop()


async def test_the_oldest_request(board: Scoreboard) -> None:
    """With a time limit for requests the row has the deadline of the oldest one of all engines; 0 when there is none."""
    worker = Worker(board, request_timeout=10.0)
    worker.homes[0].now = EngineStats(0, 1, 1)
    worker.homes[0].begun, worker.homes[1].begun = 500.0, 400.0
    worker.pulse.start()
    await worker.busy(lambda: worker.row.request_deadline == 410.0)
    worker.homes[0].begun = worker.homes[1].begun = None
    await worker.busy(lambda: worker.row.request_deadline == 0.0)
    worker.pulse.stop()


async def test_threads_that_are_held(board: Scoreboard) -> None:
    """Requests that hold threads for long are evidence like steps that hold the loop, and keep the tick quick."""
    worker = Worker(board)
    worker.pulse.start()
    worker.homes[0].hold = ThreadHold(wall=4 * ABOVE, used=4 * ABOVE, full=True)
    await until(lambda: worker.pace.mode is AcceptMode.HANDOFF)
    assert worker.row.long_at > 0
    assert not worker.pulse.slow, "it would miss what threads do"
    worker.homes[0].hold = ThreadHold(wall=0.0, used=0.0, full=False)
    await until(lambda: worker.pulse.slow)
    worker.pulse.stop()


async def test_descriptors_are_scarce(board: Scoreboard, caplog: pytest.LogCaptureFixture) -> None:
    """Near the limit connections are taken one at a time, at the limit none, which is said once."""
    worker = Worker(board)
    worker.pulse.start()
    home, room = worker.homes[0], worker.room
    assert worker.taker.room == room.total - MAX_RESERVED_DESCRIPTORS
    home.now = EngineStats(0, room.total - MAX_RESERVED_DESCRIPTORS - room.burst, 0)
    await worker.busy(lambda: worker.taker.room == room.burst)
    assert worker.pace.mode is AcceptMode.BATCH
    home.now = home.now._replace(connections=room.total - MAX_RESERVED_DESCRIPTORS - room.burst + 1)
    await worker.busy(lambda: worker.pace.mode is AcceptMode.ONE_BY_ONE)
    assert worker.taker.modes == ["hold ONE_BY_ONE"]
    assert worker.row.mode == AcceptMode.ONE_BY_ONE
    home.now = home.now._replace(connections=room.total - MAX_RESERVED_DESCRIPTORS)
    await worker.busy(lambda: worker.taker.room == 0)
    room.total -= 1000  # a script lowers the limit
    await worker.busy(lambda: worker.taker.room == -1000, "it is measured again")
    home.now = home.now._replace(connections=1)
    await worker.busy(lambda: worker.taker.room > room.burst)
    worker.pulse.stop()
    told = [record.getMessage() for record in caplog.records if "no more connections" in record.getMessage()]
    assert len(told) == 2, "once for each limit"
    assert told[0].endswith("RLIMIT_NOFILE is 100000; new connections wait, or go to another worker; raise the limit")


async def test_a_start_with_few_descriptors(board: Scoreboard) -> None:
    """A worker that has few from the start never accepts eagerly."""
    worker = Worker(board)
    assert worker.pulse.begin() is AcceptMode.BATCH
    worker.room.total = worker.room.burst
    worker.room.measure(0)
    assert worker.pulse.begin() is AcceptMode.ONE_BY_ONE
    assert worker.row.mode == AcceptMode.ONE_BY_ONE
