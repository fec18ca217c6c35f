"""The counters of slots, over several workers: with real scoreboards, and a writer in another process."""

from __future__ import annotations

import math
import os
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.core.histogram import BUCKET_BOUNDS_S
from cluster2.core.lifecycle import WorkerState
from cluster2.errors import ClusterError
from cluster2.linux import ledger
from cluster2.linux.cells import MAX_COUNT
from cluster2.linux.scoreboard import SLOTS, Row, Scoreboard

COUNTS = 1000


def born(board: Scoreboard, slot: int, pid: int = 1) -> tuple[int, Row]:
    index = board.claim()
    row = board.row(index)
    row.pid, row.slot, row.state = pid, slot, WorkerState.READY
    return index, row


def test_what_a_life_has_counted_outlives_it(board: Scoreboard) -> None:
    """After a worker's end the row is free and the slot has its counts; its successor's counts come on top."""
    index, row = born(board, 3)
    row.requests, row.errors, row.cpu, row.latency, row.connections = 7, 1, 0.5, 0.25, 4
    row.latencies[2] += 2
    ledger.fold_life(board, index, 3, lived=True, crashed=True)
    assert board.column(Row.pid) == [0]
    _, row = born(board, 3)
    row.requests, row.connections = 5, 2
    row.latencies[2] += 1
    _, other = born(board, 0)
    other.requests = 100
    found = ledger.read(board)
    assert list(found) == [0, 3]
    account = found[3]
    assert [account.counters[name] for name in ("requests", "errors", "cpu", "latency")] == [12, 1, 0.5, 0.25]
    assert (account.latencies[2], sum(account.latencies)) == (3, 3)
    assert (account.begun, account.crashes) == (2, 1)
    assert [life.connections for life in account.lives] == [2]
    assert found[0].counters["requests"] == 100


def test_who_never_lived_counts_for_nothing(board: Scoreboard) -> None:
    """A worker that was ordered and never came to be leaves no slot behind."""
    ledger.fold_life(board, board.claim(), 5, lived=False, crashed=False)
    assert ledger.read(board) == {}


def test_what_an_engine_cannot_know(board: Scoreboard) -> None:
    """-1 is no count: it is said to be unknown, and adds nothing, not at the end either."""
    index, row = born(board, 0)
    row.requests, row.accepted = 3, -1
    account = ledger.read(board)[0]
    assert (account.unknown, account.counters["requests"], account.counters["accepted"]) == ({"accepted"}, 3, 0)
    ledger.fold_life(board, index, 0, lived=True, crashed=False)
    assert ledger.read(board)[0].counters["accepted"] == 0


def test_a_row_gone_mad(board: Scoreboard) -> None:
    """With any values in a dead worker's row, the master goes on, and sums don't fall."""
    for _ in range(3):
        index, row = born(board, 0)
        row.requests, row.errors, row.cpu, row.latency, row.duration = 2**63 - 1, -(2**63), math.nan, math.inf, -1.0
        for cell in range(len(BUCKET_BOUNDS_S) + 1):
            row.latencies[cell] = (-(2**63), 2**63 - 1)[cell % 2]
        ledger.fold_life(board, index, 0, lived=True, crashed=False)
    account = ledger.read(board)[0]
    assert account.counters["requests"] == 3 * MAX_COUNT
    assert [account.counters[name] for name in ("errors", "cpu", "duration")] == [0, 0, 0]
    assert account.counters["latency"] == 2**62 / 1e9
    assert (min(account.latencies), max(account.latencies)) == (0, 3 * MAX_COUNT)


def test_sums_saturate(board: Scoreboard) -> None:
    """However many lives claim the most that they can, the sum fits into its cell, and that of all slots into 64 bits."""
    for _ in range(20):
        index, row = born(board, 0)
        row.requests, row.cpu = 2**63 - 1, math.inf
        row.latencies[1] = 2**63 - 1
        ledger.fold_life(board, index, 0, lived=True, crashed=False)
    account = ledger.read(board)[0]
    assert account.counters["requests"] == account.latencies[1] == 2**52
    assert account.counters["cpu"] == 2**62 / 1e9
    assert SLOTS * account.counters["requests"] < 2**63


def test_a_stuck_master(board: Scoreboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader doesn't wait for ever for a master that stopped in the middle; it says so."""
    monkeypatch.setattr(ledger, "READ_TIMEOUT_S", 0.01)
    board.header.burials = 3
    with pytest.raises(ClusterError, match="has been changing it"):
        ledger.read(board)


_STEPS = st.lists(
    st.tuples(st.sampled_from(["born", "works", "dies"]), st.integers(0, 4), st.integers(0, 20)), max_size=60
)


@given(_STEPS)
def test_counters_never_fall(steps: list[tuple[str, int, int]]) -> None:
    """Over any lives, several at a time in a slot: each sum is what was counted, and none is less than before by even a bit."""
    board = Scoreboard.create()
    alive: list[tuple[int, Row, int]] = []
    counted = dict.fromkeys(range(5), 0)
    lives = dict.fromkeys(range(5), 0)
    before: dict[int, Any] = {}
    spent: dict[int, float] = {}
    try:
        for what, slot, number in steps:
            if what == "born":
                alive.append((*born(board, slot), slot))
                lives[slot] += 1
            elif alive:
                index, row, slot = alive[number % len(alive)]
                if what == "works":
                    row.requests += number
                    row.cpu += number / 7  # thirds and the like have no exact double: their sums depend on the order
                    row.latencies[number % (len(BUCKET_BOUNDS_S) + 1)] += number
                    counted[slot] += number
                else:
                    alive.remove((index, row, slot))
                    ledger.fold_life(board, index, slot, lived=True, crashed=number % 2 == 0)
            found = ledger.read(board)
            assert {slot: each.begun for slot, each in found.items()} == {k: n for k, n in lives.items() if n}
            for slot, each in found.items():
                assert each.counters["requests"] == sum(each.latencies) == counted[slot]
                assert all(a <= b for a, b in zip(before.get(slot, each.latencies), each.latencies, strict=True))
                assert spent.get(slot, 0.0) <= each.counters["cpu"] == pytest.approx(counted[slot] / 7)
            before = {slot: each.latencies for slot, each in found.items()}
            spent = {slot: each.counters["cpu"] for slot, each in found.items()}
    finally:
        board.close()


def test_times_never_fall_by_a_bit(board: Scoreboard) -> None:
    """Sums of doubles depend on the order; whichever of several lives ends first, what a slot has used isn't less afterwards."""
    chance = random.Random(7)
    before = 0.0
    for _ in range(300):
        lives = [born(board, 0) for _ in range(3)]
        for _, row in lives:
            row.cpu = row.latency = chance.random() * chance.choice((1e-3, 1.0, 1e3))
        chance.shuffle(lives)
        for index, _ in lives:
            cpu = ledger.read(board)[0].counters["cpu"]
            assert cpu >= before
            before = cpu
            ledger.fold_life(board, index, 0, lived=True, crashed=False)
    found = ledger.read(board)[0].counters
    assert before <= found["cpu"] == found["latency"]


def test_a_reader_meets_burials(board: Scoreboard) -> None:
    """Read while another process buries one life after the other, each is there once: never twice, and never not at all."""
    lives = 3000
    child = os.fork()
    if not child:
        try:
            for _ in range(lives):
                index, row = born(board, 1)
                row.requests = COUNTS
                ledger.fold_life(board, index, 1, lived=True, crashed=False)
        finally:
            os._exit(0)
    last, reads = 0.0, 0
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        account = ledger.read(board).get(1)
        if account is not None:
            total, ended = account.counters["requests"], account.begun - len(account.lives)
            assert total in (COUNTS * ended, COUNTS * (ended + 1))
            assert total >= last
            last, reads = total, reads + 1
    assert reads > 10
    assert ledger.read(board)[1].counters["requests"] == COUNTS * lives
