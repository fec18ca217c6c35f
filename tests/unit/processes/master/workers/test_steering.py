"""The choice of workers for new connections, without a process: places, free places, and the lightest loads."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.config.value_types import TcpAddress
from cluster2.core.lifecycle import WorkerState
from cluster2.core.planning import FAIR_SHARE, Load, lightest
from cluster2.errors import ConfigError
from cluster2.linux.listeners import Listener, open_all
from cluster2.linux.scoreboard import Scoreboard
from cluster2.processes.master.state.handle import WorkerHandle
from cluster2.processes.master.workers.steering import Steering


class Bench:
    """A steering over one listener, and workers that are only handles."""

    def __init__(self, listener: Listener) -> None:
        self.board = Scoreboard.create()
        self.listener = listener
        self.steering = Steering([(0, listener)], self.board, 64)
        self.roster: list[WorkerHandle] = []

    def worker(self, state: WorkerState = WorkerState.READY, generation: int = 1) -> WorkerHandle:
        place = self.steering.take(generation)
        handle = WorkerHandle(len(self.roster), 0, generation, self.board.claim(), 0.0, place, state)
        self.roster.append(handle)
        return handle

    def steered(self, now: float = 0.0) -> set[int]:
        self.steering.steer(self.roster, now)
        return set(self.steering._steered)

    def close(self) -> None:
        self.steering.close()
        self.listener.close()
        self.board.close()


@pytest.fixture
def make() -> Iterator[Callable[[], Bench]]:
    """Yield a bench whose group has two places for each of two workers."""
    made: list[Bench] = []

    def make() -> Bench:
        (listener,) = open_all([TcpAddress("127.0.0.1", 0)], backlog=64)
        made.append(Bench(listener))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_successor_has_another_place(make: Callable[[], Bench]) -> None:
    """Connections go to those that serve: a successor is added when it is ready, its predecessor left out when it drains."""
    bench = make()
    bench.steering.open(1, [0], 2)
    first, second = bench.worker(), bench.worker()
    assert (first.place, second.place) == (0, 1)
    assert bench.steered() == {0, 1}
    successor = bench.worker(WorkerState.BOOTING)
    assert successor.place == 2
    assert bench.steered() == {0, 1}
    successor.state = WorkerState.READY
    assert bench.steered() == {0, 1, 2}
    first.state = WorkerState.DRAINING
    assert bench.steered() == {1, 2}


def test_nobody_serves(make: Callable[[], Bench]) -> None:
    """When no worker is ready, connections wait where the last went."""
    bench = make()
    bench.steering.open(1, [0], 1)
    worker = bench.worker()
    bench.steered()
    worker.state = WorkerState.DEAD
    assert bench.steered() == {0}


def test_a_stuck_worker(make: Callable[[], Bench]) -> None:
    """One whose heartbeat is late, or that is being replaced for a hang, gets nothing; unless all are like that."""
    bench = make()
    bench.steering.open(1, [0], 3)
    late, hung, well = (bench.worker() for _ in range(3))
    bench.board.row(late.row).heartbeat = 10.0
    hung.reason = "hang"
    assert bench.steered(now=9.0) == {0, 2}
    assert bench.steered(now=11.0) == {2}
    well.reason = "hang"
    assert bench.steered(now=11.0) == {0, 1, 2}


def test_who_waits_is_served_first(make: Callable[[], Bench]) -> None:
    """A new worker gets the free place with the longest queue; connections that wait at a free place are reported."""
    bench = make()
    bench.steering.open(1, [0], 2)
    first, second = bench.worker(), bench.worker()
    first.state = WorkerState.DRAINING
    bench.steered()
    with socket.create_connection(bench.listener.sock.getsockname()):
        assert not bench.steering.has_stranded_clients(), "its worker has it still"
        second.state = WorkerState.DEAD
        bench.steering.release(second.place)
        assert bench.steering.has_stranded_clients()
        assert bench.worker(WorkerState.BOOTING).place == second.place
        assert not bench.steering.has_stranded_clients()


def test_more_places_than_were_opened(make: Callable[[], Bench]) -> None:
    """When all places are taken another is opened."""
    bench = make()
    bench.steering.open(1, [0], 1)
    assert [bench.worker().place for _ in range(5)] == [0, 1, 2, 3, 4]
    assert bench.steered() == {0, 1, 2, 3, 4}


def test_a_generation_that_is_fed(make: Callable[[], Bench]) -> None:
    """Workers of an engine that is fed have no place; after a change to such an engine connections go to the listener."""
    bench = make()
    bench.steering.open(1, [0], 1)
    old = bench.worker()
    bench.steering.open(2, [], 1)
    new = bench.worker(generation=2)
    assert (old.place, new.place) == (0, None)
    assert bench.steering.descriptors(new) == [bench.listener.sock.fileno()]
    old.state = WorkerState.DEAD
    bench.steering.release(old.place)
    assert bench.steered() == {0}


def test_what_cant_be_steered(make: Callable[[], Bench]) -> None:
    """An address that can't be steered is refused when the engine becomes known."""
    bench = make()
    bench.steering._listeners = [(0, Listener(bench.listener.sock, bench.listener.address, owned=False))]
    with pytest.raises(ConfigError, match="was inherited"):
        bench.steering.open(1, [0], 1)


LOADS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 300)).map(lambda pair: Load(0, *pair)), min_size=1, max_size=9
).map(lambda loads: [load._replace(place=place) for place, load in enumerate(loads)])


@given(LOADS, st.booleans())
def test_the_lightest(loads: list[Load], by_requests: bool) -> None:
    """A worker is always chosen. If requests count, it never has more than another. A crowded one is chosen only if all are."""
    chosen = lightest(loads, by_requests=by_requests)
    assert chosen
    fewest = min(load.in_flight for load in loads)
    able = [load for load in loads if load.in_flight == fewest or not by_requests]
    assert set(chosen) <= {load.place for load in able}
    share = sum(load.connections for load in loads) / len(loads)
    fair = [load.place for load in able if load.connections <= share * FAIR_SHARE + 1]
    assert chosen == (fair or [load.place for load in able])
