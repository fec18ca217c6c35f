"""A worker may write anything into its row: each reader goes on, its figures have bounds, and no other worker is affected."""

from __future__ import annotations

import asyncio
import json
import math
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster2.config.settings import Settings
from cluster2.config.value_types import TcpAddress
from cluster2.core import health
from cluster2.core.health import PROMISED_HEARTBEAT_S, Promise, Trouble
from cluster2.core.lifecycle import WorkerState
from cluster2.core.planning import Load, lightest
from cluster2.linux import ledger
from cluster2.linux.cells import CELLS_PER_ROW, MAX_SECONDS
from cluster2.linux.listeners import open_all
from cluster2.linux.scoreboard import Scoreboard
from cluster2.processes.master.control.cluster_status import status
from cluster2.processes.master.control.heartbeat_event import Heartbeats
from cluster2.processes.master.state.handle import WorkerHandle
from cluster2.processes.master.state.worker_registry import WorkerRegistry
from cluster2.processes.master.workers.health_monitor import HealthMonitor
from cluster2.processes.master.workers.stalled_clients import StalledClientReporter
from cluster2.processes.master.workers.steering import Steering
from cluster2.processes.monitor.http.metrics import exposition
from cluster2.processes.worker.sampling.accept_mode import COUNTING_WINDOW_S, AcceptMode, AcceptModeSelector
from tests.unit.monitored import a_board, dashboard_of

GONE = 5_000_000
"""A pid that no process has: the kernel's highest is below it."""


def bits(real: float) -> int:
    """Return the cell of a double as an integer."""
    return int(struct.unpack("q", struct.pack("d", real))[0])


REALS = (math.nan, math.inf, -math.inf, 1e308, -1.0, 5e-324)
PATTERNS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-2, 100), st.sampled_from(REALS).map(bits))
ROWS = st.lists(PATTERNS, min_size=CELLS_PER_ROW, max_size=CELLS_PER_ROW)


class Parts:
    """The readers of the master and of the monitor, over a scoreboard with two workers: the first lies, the second is well."""

    def __init__(self, board: Scoreboard) -> None:
        now = time.monotonic()
        self.board = board
        self.roster = WorkerRegistry()
        self.warned: list[str] = []
        for slot in range(2):
            handle = WorkerHandle(slot + 1, slot, 1, board.claim(), now, slot, WorkerState.READY, GONE + slot)
            row = board.row(handle.row)
            row.slot, row.generation, row.started, row.state, row.pid = slot, 1, now, WorkerState.READY, GONE + slot
            self.roster.add(handle)
        self.liar, self.well = self.roster
        self.watchman = HealthMonitor(board, lambda fact: None, self.warned.append)
        self.watchman.prepare(1, Settings(request_timeout=30.0, request_threshold=10**6))
        self.watchman.apply_rules(1)
        self.watchman._stuck = lambda handle, trouble: setattr(handle, "reason", "hang")  # type: ignore[method-assign]
        self.heartbeats = Heartbeats(board, now)
        self.stalls = StalledClientReporter(board)
        self.dashboard = dashboard_of(board)

    def write(self, patterns: list[int]) -> None:
        """Let the first worker write all of its cells, and the second do its work."""
        for cell, pattern in enumerate(patterns):
            self.board.row(self.liar.row).integers[cell] = pattern
        row = self.board.row(self.well.row)
        row.heartbeat = time.monotonic() + PROMISED_HEARTBEAT_S
        row.requests += 10

    def told(self) -> list[Any]:
        """Return the output of all readers, as it is sent."""
        now = time.monotonic()
        shown = status(
            self.board,
            self.roster,
            state="serving",
            wanted=2,
            addresses=[],
            monitor=None,
            message_counters={},
            backoffs=(),
            memory=False,
            waiting=0,
        )
        beat = self.heartbeats.event_if_due(self.roster, now + 10, 1.0)
        self.dashboard.sampler.sample(now, time.time())
        exposition(self.board, "")
        self.stalls.report_if_due(self.roster, now)
        return [msgspec.json.decode(msgspec.json.encode(each)) for each in (shown, beat, self.dashboard.report())]


@contextmanager
def parts() -> Iterator[Parts]:
    for board in a_board():
        yield Parts(board)


def numbers(told: Any) -> Iterator[float]:
    """All numbers in it."""
    if isinstance(told, dict):
        told = list(told.values())
    if isinstance(told, list):
        for each in told:
            yield from numbers(each)
    elif isinstance(told, (int, float)):
        yield told


@settings(max_examples=60, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=3))
def test_any_row_is_read(rows: list[list[int]]) -> None:
    """Status, heartbeat event and page are JSON with finite numbers below 2^63; the other worker's counts are right."""
    with parts() as made:
        for patterns in rows:
            made.write(patterns)
            for told in made.told():
                assert all(math.isfinite(number) and abs(number) < 2**63 for number in numbers(told))
                assert json.dumps(told, allow_nan=False)
        ledger.fold_life(made.board, made.liar.row, 0, lived=True, crashed=True)
        made.roster.remove(made.liar)
        made.told()
        assert ledger.read(made.board)[1].counters["requests"] == 10 * len(rows)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=3))
def test_no_row_condemns_another_worker(rows: list[list[int]]) -> None:
    """The worker that is well is neither taken for stuck nor recycled, whatever stands in the other's row."""
    with parts() as made:
        for patterns in rows:
            made.write(patterns)
            made.watchman.check_all(made.roster, time.monotonic())
        assert (made.well.reason, made.well.replace) == (None, None)


@pytest.mark.parametrize("real", REALS)
def test_no_promise_hides_a_hang(real: float) -> None:
    """A worker that hangs is found in time, whatever the last heartbeat promised that it wrote: in an hour, or no number."""
    with parts() as made:
        row, now = made.board.row(made.liar.row), time.monotonic()
        made.write([0] * CELLS_PER_ROW)
        for promised in (real, now + 3600):
            made.liar.reason, row.heartbeat = None, promised
            made.watchman.check_all(made.roster, now)
            made.watchman.check_all([made.liar], now + PROMISED_HEARTBEAT_S + 60)
            assert made.liar.reason == "hang"
        made.liar.reason = None
        for second in range(100):  # one that goes on writing doesn't hang, whatever it is
            row.heartbeat = MAX_SECONDS - second
            made.watchman.check_all([made.liar], now + second)
        assert made.liar.reason is None


@given(st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0.0, 5.0)), min_size=1, max_size=20))
def test_an_honest_promise_counts_as_it_is(steps: list[tuple[float, float]]) -> None:
    """The deadline of a worker that promises two seconds each time is just what it has promised, at any time of the check."""
    promise, now = Promise(), 1000.0
    for pause, until_seen in steps:
        now += pause
        said = now + PROMISED_HEARTBEAT_S
        now += until_seen
        assert promise.deadline(bits(said), said, now) == said


def test_a_worker_that_never_promised() -> None:
    """A heartbeat in the past is overdue as well, two seconds after it was seen."""
    promise = Promise()
    assert promise.deadline(0, 0.0, 100.0) == promise.deadline(0, 0.0, 200.0) == 100.0 + PROMISED_HEARTBEAT_S
    vitals = health.Vitals(0, 0, 1.0, None, promise.deadline(0, 0.0, 200.0), 0.0)
    assert health.trouble(vitals, 200.0, max_delay=30.0, request_timeout=0.0) is Trouble.LOOP


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_any_row_is_steered_by(patterns: list[int]) -> None:
    """Unless the claims are credible, new connections still go to the worker that is well."""
    asyncio.run(steered_by(patterns))


async def steered_by(patterns: list[int]) -> None:
    (listener,) = open_all([TcpAddress("127.0.0.1", 0)], backlog=64)
    with parts() as made:
        steering = Steering([(0, listener)], made.board, 64)
        try:
            steering.open(1, [0], 2)
            for handle in made.roster:
                handle.place = steering.take(1)
            made.write(patterns)
            made.board.row(made.well.row).begun = 1  # one request under way
            for _ in range(3):
                steering.steer(made.roster, time.monotonic())
                steering._poll_gauges()
            sane = 0 <= made.board.row(made.liar.row).begun - made.board.row(made.liar.row).ended <= 1
            assert sane or made.well.place in steering._steered
        finally:
            steering.close()
            listener.close()


@given(st.integers(-(2**63), -1), st.integers(0, 5))
def test_fewer_requests_than_none_draw_nobody(claim: int, honest: int) -> None:
    """A worker that claims a negative number of requests under way isn't the one with the fewest."""
    assert lightest([Load(0, claim, 0), Load(1, honest, 0)], by_requests=True) == [1]
    assert lightest([Load(0, claim, 0)], by_requests=True) == [0]


@pytest.mark.parametrize("claim", [200.0, MAX_SECONDS])
def test_no_proof_from_the_future(claim: float) -> None:
    """A sibling that claims a long step at a time that is far ahead makes no worker park."""
    pace = AcceptModeSelector(0.01)
    for when in (100.0, 100.1):
        assert pace.step(0.05, when, [claim]) is not AcceptMode.HANDOFF
    assert pace.step(0.05, 100.2 + COUNTING_WINDOW_S, [claim]) is not AcceptMode.HANDOFF
    assert pace.step(0.05, 100.3 + COUNTING_WINDOW_S, [100.4 + COUNTING_WINDOW_S]) is AcceptMode.HANDOFF
