"""When connections leave a worker, and which: with connections that are none, over a queue of the real kernel."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, cast

import pytest

from cluster2.engines.base import Engine, Movable
from cluster2.linux.handover import HandedConnection, QueueReader, QueueWriter, queue
from cluster2.linux.scoreboard import Header, Scoreboard
from cluster2.processes.worker.connections.handoff import SURPLUS_DIVISOR, UNSTRETCHED_WAKE_RATE, HandoffPolicy
from tests.unit.waiting import until

pytestmark = pytest.mark.anyio
NOW = 1000.0


class Connection:
    """May move or not, as the test says."""

    def __init__(self, descriptor: int, *, idle: float = 0.0, may: bool = True, kept: bool = True) -> None:
        self.descriptor = descriptor
        self.since = NOW - idle
        self.may = may
        self.kept = kept
        self.gone = self.abandoned = False

    def may_move(self) -> bool:
        return self.may and not self.gone

    def kept_alive(self) -> bool:
        return self.kept

    def idle_since(self) -> float:
        return self.since

    def descriptor_and_family(self) -> tuple[int, int]:
        return self.descriptor, socket.AF_INET

    def release(self) -> None:
        assert not self.gone, "it can leave only once"
        self.gone = True

    def abandon(self, step: str) -> None:
        self.gone = self.abandoned = True


class Broken(Connection):
    """Has no descriptor any more."""

    def descriptor_and_family(self) -> tuple[int, int]:
        raise OSError("closed")


class Home:
    """An engine: its connections, its hook, and what was shed."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.freed: Callable[[Movable], None] | None = None
        self.sheds: list[tuple[int, bool]] = []

    def movable(self) -> list[Connection]:
        return [each for each in self.connections if not each.gone]

    def report_freed(self, freed: Callable[[Movable], None] | None) -> None:
        self.freed = freed

    def close_some(self, count: int, *, fixed: bool) -> int:
        self.sheds.append((count, fixed))
        return count

    @property
    def gone(self) -> list[bool]:
        return [each.gone for each in self.connections]


class House:
    """Two engines, the ways out, and the keeper's end of the queue."""

    def __init__(self, stack: ExitStack, *, keeper: bool = True) -> None:
        into, out = queue()
        stack.callback(into.close)
        stack.callback(out.close)
        self.into = into
        self.inlet = QueueReader(out)
        self.board = Scoreboard.create()
        stack.callback(self.board.close)
        self.header: Header = self.board.header
        self.homes = [Home(), Home()]
        self.moves = HandoffPolicy(QueueWriter(into) if keeper else None, cast(list[Engine], self.homes), self.header)
        self._reader, writer = os.pipe()
        stack.callback(os.close, self._reader)
        stack.callback(os.close, writer)

    def add(self, home: int = 0, count: int = 1, **how: Any) -> list[Connection]:
        made = [Connection(self._reader, **how) for _ in range(count)]
        self.homes[home].connections += made
        return made

    def arrived(self) -> list[HandedConnection]:
        found = []
        while some := self.inlet.take_all():
            found += some
        for parcel in found:
            os.close(parcel.descriptor)
        return found

    def fill(self) -> None:
        """Fill the queue."""
        while QueueWriter(self.into).send(self._reader, 9, 0, 0.0):
            pass


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


# Rest


async def test_rest(stack: ExitStack) -> None:
    """What was idle for long enough goes, with its app, family and age; what wasn't, or can't, stays."""
    house = House(stack)
    house.add(0, idle=5.0)
    house.add(0, idle=1.0)
    house.add(0, idle=5.0, may=False)
    house.add(1, idle=2.0)
    house.moves.handoff_idle(NOW, 2.0)
    assert house.homes[0].gone == [True, False, False]
    assert house.homes[1].gone == [True]
    assert [each[1:] for each in house.arrived()] == [(0, socket.AF_INET, 5.0), (1, socket.AF_INET, 2.0)]
    assert (house.moves.moved, house.moves.parked) == (2, 0)


async def test_a_connection_that_fails(stack: ExitStack) -> None:
    """One that can't be handed over is reset; the others go, with a worker that retires and with a response that is complete."""
    house = House(stack)
    broken = [Broken(0, idle=5.0), Broken(0, idle=5.0)]
    house.homes[0].connections.append(broken[0])
    house.add(0)
    house.moves.retire(NOW)
    assert house.homes[0].freed is not None
    house.homes[0].freed(broken[1])
    assert [each.abandoned for each in broken] == [True, True]
    assert len(house.arrived()) == 1


async def test_never_rest(stack: ExitStack) -> None:
    """With `handoff_idle_after = 0` nothing goes to rest."""
    house = House(stack)
    house.add(idle=1e6)
    house.moves.handoff_idle(NOW, 0.0)
    assert house.arrived() == []


async def test_rest_of_a_busy_keeper(stack: ExitStack) -> None:
    """The time to rest grows with the keeper's load."""
    house = House(stack)
    house.add(idle=5.0)
    house.add(idle=7.0)
    house.header.keeper_rate = 3 * UNSTRETCHED_WAKE_RATE
    house.moves.handoff_idle(NOW, 2.0)
    assert house.homes[0].gone == [False, True]
    house.header.keeper_rate = UNSTRETCHED_WAKE_RATE / 10
    house.moves.handoff_idle(NOW, 2.0)
    assert house.homes[0].gone == [True, True]
    assert len(house.arrived()) == 2


async def test_a_clock_that_is_behind(stack: ExitStack) -> None:
    """A connection used after the tick that asks has no negative age."""
    house = House(stack)
    house.add(idle=-3.0)
    house.moves.retire(NOW)
    assert [each.age for each in house.arrived()] == [0.0]


# Park


async def test_park(stack: ExitStack) -> None:
    """All idle ones go at once, and each of the others when its response is complete."""
    house = House(stack)
    house.add(0, 3)
    (busy,) = house.add(1, may=False)
    house.moves.start_handoff_after_response(NOW)
    assert len(house.arrived()) == 3
    busy.may = True
    freed = house.homes[1].freed
    assert freed is not None
    freed(cast(Movable, busy))
    assert busy.gone
    assert [each.site for each in house.arrived()] == [1]
    assert (house.moves.moved, house.moves.parked) == (4, 4)


async def test_park_when_written(stack: ExitStack) -> None:
    """A response that isn't written when it is complete may be a turn of the loop later; then its connection goes."""
    house = House(stack)
    house.moves.start_handoff_after_response(NOW)
    (busy,) = house.add(may=False)
    freed = house.homes[0].freed
    assert freed is not None
    freed(cast(Movable, busy))
    asyncio.get_running_loop().call_soon(lambda: None)
    assert not busy.gone
    busy.may = True
    await until(lambda: busy.gone)
    assert len(house.arrived()) == 1


async def test_park_late(stack: ExitStack) -> None:
    """One that wasn't written even then goes with a later tick."""
    house = House(stack)
    house.moves.start_handoff_after_response(NOW)
    (busy,) = house.add(may=False)
    freed = house.homes[0].freed
    assert freed is not None
    freed(cast(Movable, busy))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    busy.may = True
    house.moves.handoff_late(NOW)
    assert busy.gone
    assert house.moves.parked == 1
    house.arrived()


async def test_park_no_more(stack: ExitStack) -> None:
    """When parking ends the hooks are gone."""
    house = House(stack)
    house.moves.start_handoff_after_response(NOW)
    assert all(home.freed for home in house.homes)
    house.moves.stop_handoff_after_response()
    assert not any(home.freed for home in house.homes)


async def test_a_full_queue(stack: ExitStack) -> None:
    """What the queue doesn't take stays a connection of this worker, and goes when there is room."""
    house = House(stack)
    connections = house.add(0, 5)
    house.moves.start_handoff_after_response(NOW)
    house.arrived()
    (late,) = house.add()
    house.fill()
    freed = house.homes[0].freed
    assert freed is not None
    freed(cast(Movable, late))
    house.moves.handoff_late(NOW)
    assert not late.gone
    assert house.moves.moved == 5
    house.arrived()
    house.moves.handoff_late(NOW)
    assert late.gone
    assert all(each.gone for each in connections)
    assert len(house.arrived()) == 1


async def test_some_fit(stack: ExitStack) -> None:
    """Of those that go together, exactly the ones that the queue took are let go."""
    house = House(stack)
    house.into.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connections = house.add(0, 20_000)
    house.moves.retire(NOW)
    gone = sum(each.gone for each in connections)
    assert 0 < gone < len(connections)
    assert len(house.arrived()) == gone == house.moves.moved


# Share


@pytest.mark.parametrize(
    ("counts", "mine", "sent"),
    [
        ([10, 10], 10, 0),
        ([11, 10], 11, 0),
        ([11, 9], 11, 0),  # one too many is as good as it gets
        ([12, 8], 12, 2),
        ([20, 0], 20, 10),
        ([1000, 990, 1010], 1010, 0),  # within the slack
        ([1000, 940, 1060], 1060, 60),
        ([8, 12], 8, 0),  # others have too many
        ([5], 5, 0),
    ],
)
async def test_share(stack: ExitStack, counts: list[int], mine: int, sent: int) -> None:
    """A worker with more than its share gives the surplus away, one with its share or less nothing."""
    house = House(stack)
    house.add(0, mine)
    house.moves.handoff_surplus(NOW, counts, mine)
    assert len(house.arrived()) == sent
    assert house.homes[0].sheds == []


async def test_share_kept_ones(stack: ExitStack) -> None:
    """Connections that brought no request yet don't go: they may be used for one only."""
    house = House(stack)
    house.add(0, 10, kept=False)
    house.add(0, 10)
    house.moves.handoff_surplus(NOW, [20, 0], 20)
    assert house.homes[0].gone == [False] * 10 + [True] * 10
    house.arrived()


async def test_share_what_can_not_move(stack: ExitStack) -> None:
    """What can't move is ended politely, a part of the surplus at a time; with a keeper only what never can."""
    house = House(stack)
    house.add(0, 20, may=False)
    house.moves.handoff_surplus(NOW, [20, 0], 20)
    assert [home.sheds for home in house.homes] == [[(10 // SURPLUS_DIVISOR, True)]] * 2
    alone = House(stack, keeper=False)
    alone.add(0, 20)
    alone.moves.handoff_surplus(NOW, [20, 0], 20)
    assert alone.homes[0].sheds == [(10 // SURPLUS_DIVISOR, False)]
    assert not any(alone.homes[0].gone)


# Without a keeper


async def test_without_a_keeper(stack: ExitStack) -> None:
    """Nothing moves, nothing is hooked."""
    house = House(stack, keeper=False)
    house.add(0, 3, idle=100.0)
    house.moves.handoff_idle(NOW, 1.0)
    house.moves.start_handoff_after_response(NOW)
    house.moves.handoff_late(NOW)
    house.moves.retire(NOW)
    assert house.homes[0].gone == [False] * 3
    assert house.homes[0].freed is None
    assert not house.moves.possible
    assert house.moves.moved == 0


async def test_retire(stack: ExitStack) -> None:
    """All go that may; the others as soon as they may; those that have gone don't go twice."""
    house = House(stack)
    house.add(0, 300)
    (busy,) = house.add(1, may=False)
    house.moves.retire(NOW)
    house.moves.retire(NOW)
    assert len(house.arrived()) == 300
    busy.may = True
    house.moves.retire(NOW)
    freed = house.homes[1].freed
    assert freed is not None
    freed(cast(Movable, busy))
    assert len(house.arrived()) == 1
