"""The hand-off policy: when connections leave a worker, and which. The connections are fakes; the queue is the kernel's."""

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
    """A connection that may move or not, as the test says."""

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
    """A connection without a descriptor."""

    def descriptor_and_family(self) -> tuple[int, int]:
        raise OSError("closed")


class FakeEngine:
    """An engine with connections, a hook, and a count of the connections that it closed."""

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


class Setup:
    """Two engines, the policy, and the keeper's end of the queue."""

    def __init__(self, stack: ExitStack, *, keeper: bool = True) -> None:
        into, out = queue()
        stack.callback(into.close)
        stack.callback(out.close)
        self.into = into
        self.reader = QueueReader(out)
        self.board = Scoreboard.create()
        stack.callback(self.board.close)
        self.header: Header = self.board.header
        self.engines = [FakeEngine(), FakeEngine()]
        self.moves = HandoffPolicy(QueueWriter(into) if keeper else None, cast(list[Engine], self.engines), self.header)
        self._reader, writer = os.pipe()
        stack.callback(os.close, self._reader)
        stack.callback(os.close, writer)

    def add(self, home: int = 0, count: int = 1, **how: Any) -> list[Connection]:
        made = [Connection(self._reader, **how) for _ in range(count)]
        self.engines[home].connections += made
        return made

    def arrived(self) -> list[HandedConnection]:
        found = []
        while some := self.reader.take_all():
            found += some
        for handed in found:
            os.close(handed.descriptor)
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
    """Hand over connections that were idle for long enough, with app, family and age; keep those that weren't, or can't move."""
    setup = Setup(stack)
    setup.add(0, idle=5.0)
    setup.add(0, idle=1.0)
    setup.add(0, idle=5.0, may=False)
    setup.add(1, idle=2.0)
    setup.moves.handoff_idle(NOW, 2.0)
    assert setup.engines[0].gone == [True, False, False]
    assert setup.engines[1].gone == [True]
    assert [each[1:] for each in setup.arrived()] == [(0, socket.AF_INET, 5.0), (1, socket.AF_INET, 2.0)]
    assert (setup.moves.moved, setup.moves.parked) == (2, 0)


async def test_a_connection_that_fails(stack: ExitStack) -> None:
    """Reset a connection that can't be handed over and hand over the others, at the retirement and after a response."""
    setup = Setup(stack)
    broken = [Broken(0, idle=5.0), Broken(0, idle=5.0)]
    setup.engines[0].connections.append(broken[0])
    setup.add(0)
    setup.moves.retire(NOW)
    assert setup.engines[0].freed is not None
    setup.engines[0].freed(broken[1])
    assert [each.abandoned for each in broken] == [True, True]
    assert len(setup.arrived()) == 1


async def test_never_rest(stack: ExitStack) -> None:
    """Hand over no idle connection with `handoff_idle_after = 0`."""
    setup = Setup(stack)
    setup.add(idle=1e6)
    setup.moves.handoff_idle(NOW, 0.0)
    assert setup.arrived() == []


async def test_rest_of_a_busy_keeper(stack: ExitStack) -> None:
    """Make the idle time grow with the keeper's load."""
    setup = Setup(stack)
    setup.add(idle=5.0)
    setup.add(idle=7.0)
    setup.header.keeper_rate = 3 * UNSTRETCHED_WAKE_RATE
    setup.moves.handoff_idle(NOW, 2.0)
    assert setup.engines[0].gone == [False, True]
    setup.header.keeper_rate = UNSTRETCHED_WAKE_RATE / 10
    setup.moves.handoff_idle(NOW, 2.0)
    assert setup.engines[0].gone == [True, True]
    assert len(setup.arrived()) == 2


async def test_a_clock_that_is_behind(stack: ExitStack) -> None:
    """Send no negative age for a connection that was used after the tick."""
    setup = Setup(stack)
    setup.add(idle=-3.0)
    setup.moves.retire(NOW)
    assert [each.idle_s for each in setup.arrived()] == [0.0]


# Park


async def test_park(stack: ExitStack) -> None:
    """Hand over all idle connections at once, and each of the others when its response is complete."""
    setup = Setup(stack)
    setup.add(0, 3)
    (busy,) = setup.add(1, may=False)
    setup.moves.start_handoff_after_response(NOW)
    assert len(setup.arrived()) == 3
    busy.may = True
    freed = setup.engines[1].freed
    assert freed is not None
    freed(cast(Movable, busy))
    assert busy.gone
    assert [each.app_index for each in setup.arrived()] == [1]
    assert (setup.moves.moved, setup.moves.parked) == (4, 4)


async def test_park_when_written(stack: ExitStack) -> None:
    """Hand over a connection whose response is written a turn of the loop after it is complete."""
    setup = Setup(stack)
    setup.moves.start_handoff_after_response(NOW)
    (busy,) = setup.add(may=False)
    freed = setup.engines[0].freed
    assert freed is not None
    freed(cast(Movable, busy))
    asyncio.get_running_loop().call_soon(lambda: None)
    assert not busy.gone
    busy.may = True
    await until(lambda: busy.gone)
    assert len(setup.arrived()) == 1


async def test_park_late(stack: ExitStack) -> None:
    """Hand over a connection whose response is written even later with a later tick."""
    setup = Setup(stack)
    setup.moves.start_handoff_after_response(NOW)
    (busy,) = setup.add(may=False)
    freed = setup.engines[0].freed
    assert freed is not None
    freed(cast(Movable, busy))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    busy.may = True
    setup.moves.handoff_late(NOW)
    assert busy.gone
    assert setup.moves.parked == 1
    setup.arrived()


async def test_park_no_more(stack: ExitStack) -> None:
    """Remove the hooks when mode handoff ends."""
    setup = Setup(stack)
    setup.moves.start_handoff_after_response(NOW)
    assert all(home.freed for home in setup.engines)
    setup.moves.stop_handoff_after_response()
    assert not any(home.freed for home in setup.engines)


async def test_a_full_queue(stack: ExitStack) -> None:
    """Keep a connection that the queue doesn't take, and hand it over when the queue has capacity."""
    setup = Setup(stack)
    connections = setup.add(0, 5)
    setup.moves.start_handoff_after_response(NOW)
    setup.arrived()
    (late,) = setup.add()
    setup.fill()
    freed = setup.engines[0].freed
    assert freed is not None
    freed(cast(Movable, late))
    setup.moves.handoff_late(NOW)
    assert not late.gone
    assert setup.moves.moved == 5
    setup.arrived()
    setup.moves.handoff_late(NOW)
    assert late.gone
    assert all(each.gone for each in connections)
    assert len(setup.arrived()) == 1


async def test_some_fit(stack: ExitStack) -> None:
    """Release exactly those connections of a batch that the queue took."""
    setup = Setup(stack)
    setup.into.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connections = setup.add(0, 20_000)
    setup.moves.retire(NOW)
    gone = sum(each.gone for each in connections)
    assert 0 < gone < len(connections)
    assert len(setup.arrived()) == gone == setup.moves.moved


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
    """Hand over the surplus of a worker with more than its share, and nothing of one with its share or less."""
    setup = Setup(stack)
    setup.add(0, mine)
    setup.moves.handoff_surplus(NOW, counts, mine)
    assert len(setup.arrived()) == sent
    assert setup.engines[0].sheds == []


async def test_share_kept_ones(stack: ExitStack) -> None:
    """Keep connections that have brought no request yet: they may be used for one only."""
    setup = Setup(stack)
    setup.add(0, 10, kept=False)
    setup.add(0, 10)
    setup.moves.handoff_surplus(NOW, [20, 0], 20)
    assert setup.engines[0].gone == [False] * 10 + [True] * 10
    setup.arrived()


async def test_share_what_can_not_move(stack: ExitStack) -> None:
    """Close connections that can't move politely, a part of the surplus at a time; with a keeper only those that never can."""
    setup = Setup(stack)
    setup.add(0, 20, may=False)
    setup.moves.handoff_surplus(NOW, [20, 0], 20)
    assert [home.sheds for home in setup.engines] == [[(10 // SURPLUS_DIVISOR, True)]] * 2
    alone = Setup(stack, keeper=False)
    alone.add(0, 20)
    alone.moves.handoff_surplus(NOW, [20, 0], 20)
    assert alone.engines[0].sheds == [(10 // SURPLUS_DIVISOR, False)]
    assert not any(alone.engines[0].gone)


# Without a keeper


async def test_without_a_keeper(stack: ExitStack) -> None:
    """Move nothing and hook nothing without a keeper."""
    setup = Setup(stack, keeper=False)
    setup.add(0, 3, idle=100.0)
    setup.moves.handoff_idle(NOW, 1.0)
    setup.moves.start_handoff_after_response(NOW)
    setup.moves.handoff_late(NOW)
    setup.moves.retire(NOW)
    assert setup.engines[0].gone == [False] * 3
    assert setup.engines[0].freed is None
    assert not setup.moves.possible
    assert setup.moves.moved == 0


async def test_retire(stack: ExitStack) -> None:
    """Hand over all connections that may move, the others as soon as they may, and none twice."""
    setup = Setup(stack)
    setup.add(0, 300)
    (busy,) = setup.add(1, may=False)
    setup.moves.retire(NOW)
    setup.moves.retire(NOW)
    assert len(setup.arrived()) == 300
    busy.may = True
    setup.moves.retire(NOW)
    freed = setup.engines[1].freed
    assert freed is not None
    freed(cast(Movable, busy))
    assert len(setup.arrived()) == 1
    assert (setup.moves.moved, setup.moves.parked) == (301, 0), "parked counts the hand-offs of mode handoff alone"


async def test_retire_in_mode_handoff(stack: ExitStack) -> None:
    """Count no hand-off of the drain as parked, although mode handoff was on before."""
    setup = Setup(stack)
    (busy,) = setup.add(0, may=False)
    setup.moves.start_handoff_after_response(NOW)
    setup.moves.retire(NOW)
    busy.may = True
    freed = setup.engines[0].freed
    assert freed is not None
    freed(cast(Movable, busy))
    assert (setup.moves.moved, setup.moves.parked) == (1, 0)
    assert len(setup.arrived()) == 1
