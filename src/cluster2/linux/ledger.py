"""The counters of each slot since the cluster began: those of workers that have ended, and of those that run.

A row of the scoreboard belongs to one worker. After its end the row is zeroed and given to another worker. A counter that is
monitored must not fall then. So the master, which has reaped the worker and is now the row's only writer, adds the row's counts
to the totals of its slot (`SlotTotals`) before it frees the row. Both are in the scoreboard: nothing is lost when the monitor
dies, no process has to be asked, and a master that is stuck can be watched.

Between the two steps a reader would count a worker twice, and in the other order not at all. So the header's `burials` is odd
meanwhile, and another number afterwards. A reader that finds it odd, or changed, reads again. This is a sequence lock: its reader
may be late and never blocks the writer. x86-64 shows stores in their order. On a processor that doesn't promise that, the
microseconds that Python takes from one statement to the next stand in for a barrier.

Single values only grow: while a worker runs because it only adds, and over its end because the sum that is carried over is the
last one that a reader saw, or more.

A worker that is killed leaves in its row what it published last: at most a tick (0.1 s, 1 s at rest) is missing. A worker that
leaves by itself publishes before it does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from cluster2.errors import ClusterError

from .scoreboard import SLOTS, Integer, Real, Row, Scoreboard, SlotTotals

_LIFE_COUNTERS: tuple[Integer | Real, ...] = (
    Row.requests, Row.accepted, Row.errors, Row.timed_out, Row.stalled, Row.parked, Row.moved_in, Row.moved_out, Row.lost,
    Row.transactions, Row.duration, Row.cpu, Row.latency,
    Row.status_1xx, Row.status_2xx, Row.status_3xx, Row.status_4xx, Row.status_5xx, Row.disconnects,
)  # fmt: skip
"""The counters that only grow while a worker runs, besides the buckets of latencies."""

READ_TIMEOUT_S = 1.0
"""Seconds for which a reader tries."""
_LARGEST = {"q": 2**52, "d": 2**62}
"""The largest sums of a slot. With any value that a worker writes, they fit into a cell, and all slots into a message."""
_UNIT = 1e9
"""Units a second: times are added up in whole nanoseconds. A sum of doubles depends on the order, and would fall by a bit if of
two workers the second ended first. Prometheus takes a counter that falls by a bit for one that has begun anew, and counts all
of it again.
"""


def fold_life(board: Scoreboard, row: int, slot: int, *, lived: bool, crashed: bool) -> None:
    """Add the counts of a worker to its slot, and release its row. Master only, after the worker was reaped.

    Args:
        lived: there was a process.
        crashed: it crashed or hung.
    Raises:
        ClusterError: the row wasn't claimed.
    """
    header = board.header
    header.burials += 1
    try:
        past = board.past(slot)
        _add(board.row(row), past)
        header.slots = max(header.slots, slot + 1)
        past.lives += lived
        past.crashes += crashed
        board.release(row)
    finally:
        header.burials += 1


def _add(row: Row, past: SlotTotals) -> None:
    for each in _LIFE_COUNTERS:
        more = _whole(each, getattr(row, each.name))
        past.integers[each.index] = min(past.integers[each.index] + more, _LARGEST[each.kind])
    past.slowest = max(past.slowest, row.slowest)
    for bucket, more in enumerate(row.measured()):
        past.latencies[bucket] = min(past.latencies[bucket] + more, _LARGEST["q"])


def _whole(field: Integer | Real, counted: float) -> int:
    """Return a cell's value as a number to add; an unknown count is 0."""
    return int(counted * _UNIT) if field.kind == "d" else max(0, int(counted))


@dataclass(slots=True)
class LifeCounts:
    """The row of a worker that runs.

    Attributes:
        memory: bytes; the others as in `scoreboard.Row`.
    """

    pid: int
    state: int
    connections: int
    in_flight: int
    memory: int
    heartbeat: float
    slowest_lately: float


@dataclass(slots=True)
class Account:
    """The counters of one slot.

    Attributes:
        counters: the sums since the cluster began, by the name in `_LIFE_COUNTERS`; times in seconds.
        unknown: names that the engine of a worker can't know: their sums are meaningless.
        latencies: requests that were measured, by bucket.
        slowest: how long the slowest of these took: seconds.
        begun: workers, ended ones included.
        crashes: workers that crashed or hung.
        lives: the workers that run.
    """

    counters: dict[str, float]
    latencies: list[int]
    slowest: float
    begun: int
    crashes: int
    unknown: set[str] = field(default_factory=set)
    lives: list[LifeCounts] = field(default_factory=list)


def read(board: Scoreboard, timeout_s: float = READ_TIMEOUT_S) -> dict[int, Account]:
    """Return the counters of all slots that a worker was ever in, by number; the sums of ended workers are of one moment.

    Args:
        timeout_s: seconds that it may take, blocking.

    Raises:
        ClusterError: the master began to fold in a worker and doesn't finish.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        # A sequence lock: an odd number means that the master is between the two steps of `fold_life`.
        before = board.header.burials
        if before % 2 == 0:
            found = _read(board)
            if board.header.burials == before:
                return found
        if time.monotonic() > deadline:
            raise ClusterError(f"the scoreboard can't be read: the master has been changing it for {timeout_s:g} s")
        time.sleep(0.0005)


def _read(board: Scoreboard) -> dict[int, Account]:
    accounts = {slot: _ended(board.past(slot)) for slot in range(board.header.slots)}
    for index in range(board.header.high_water):
        row = board.row(index)
        pid, slot = row.pid, row.slot
        if not pid or slot >= SLOTS:
            continue
        account = accounts.get(slot)
        if account is None:
            account = accounts[slot] = _ended(board.past(slot))
        _add_life(account, row, pid)
    for account in accounts.values():
        for each in _LIFE_COUNTERS:
            if each.kind == "d":
                account.counters[each.name] /= _UNIT
    return {slot: account for slot, account in sorted(accounts.items()) if account.begun}


def _ended(past: SlotTotals) -> Account:
    counters: dict[str, float] = {each.name: past.integers[each.index] for each in _LIFE_COUNTERS}
    return Account(counters, past.latencies.tolist(), past.slowest, past.lives, past.crashes)


def _add_life(account: Account, row: Row, pid: int) -> None:
    """Add the counts of a worker that runs."""
    for each in _LIFE_COUNTERS:
        counted = getattr(row, each.name)
        account.counters[each.name] += _whole(each, counted)
        if counted < 0:
            account.unknown.add(each.name)
    account.latencies = [past + more for past, more in zip(account.latencies, row.measured(), strict=True)]
    account.begun += 1
    account.lives.append(
        LifeCounts(
            pid=pid,
            state=row.state,
            connections=row.connections,
            in_flight=row.in_flight,
            memory=row.memory,
            heartbeat=row.heartbeat,
            slowest_lately=row.slowest_lately,
        )
    )
    account.slowest = max(account.slowest, row.slowest)
