"""A change of generation, without a process and with a clock of the test's own."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.core.lifecycle import WorkerState
from cluster2.core.planning import WorkerView
from cluster2.core.rollout import SETTLE_S, Rollout, Stage

OLD, NEW = 1, 2
STATES = st.sampled_from([state for state in WorkerState if state is not WorkerState.DEAD])
WORKERS = st.lists(st.builds(WorkerView, st.just(0), st.integers(0, 5), st.integers(1, 2), STATES), max_size=8)
STEPS = st.lists(
    st.one_of(
        st.just(("prepared", 0.0)),
        st.sampled_from([("ready", float(OLD)), ("ready", float(NEW))]),
        st.tuples(st.just("look"), st.floats(0, 0.3)),
    ),
    max_size=20,
)


def rolled(stage: Stage = Stage.ROLLING) -> Rollout:
    """A change that has come so far, at time 0."""
    rolling = Rollout(OLD, NEW)
    if stage is not Stage.LOADING:
        rolling.on_loaded()
    if stage is Stage.ROLLING:
        rolling.ready(NEW, -SETTLE_S)
        rolling.advance(0.0)
    return rolling


def test_the_way_of_a_good_one() -> None:
    """Loaded, first worker ready, settled: then, and not before, predecessors may go."""
    rolling = Rollout(OLD, NEW)
    assert (rolling.stage, rolling.may_retire()) == (Stage.LOADING, False)
    rolling.on_loaded()
    assert (rolling.stage, rolling.may_retire()) == (Stage.PROVING, False)
    rolling.ready(NEW, 10.0)
    assert rolling.settles_at == pytest.approx(10.0 + SETTLE_S)
    rolling.advance(10.0 + 0.9 * SETTLE_S)
    assert (rolling.stage, rolling.may_retire()) == (Stage.PROVING, False)
    rolling.advance(10.0 + SETTLE_S)
    assert (rolling.stage, rolling.may_retire()) == (Stage.ROLLING, True)


def test_time_alone_proves_nothing() -> None:
    """Without a new worker that is ready no time is long enough."""
    rolling = rolled(Stage.PROVING)
    rolling.advance(1e9)
    assert rolling.stage is Stage.PROVING


@pytest.mark.parametrize("stage", [Stage.LOADING, Stage.PROVING])
def test_workers_of_the_old_code_prove_nothing(stage: Stage) -> None:
    """A worker of the old generation that comes back meanwhile doesn't count, nor does one that is ready too early."""
    rolling = rolled(stage)
    rolling.ready(OLD if stage is Stage.PROVING else NEW, 0.0)
    rolling.advance(1e9)
    assert rolling.settles_at is None
    assert rolling.stage is stage


def test_the_second_worker_does_not_put_it_off() -> None:
    """It is the first new worker that settles; further ones don't begin the wait anew."""
    rolling = rolled(Stage.PROVING)
    rolling.ready(NEW, 0.0)
    rolling.ready(NEW, 0.9 * SETTLE_S)
    assert rolling.settles_at == pytest.approx(SETTLE_S)


@given(STEPS)
def test_predecessors_stay_until_a_new_worker_has_settled(steps: list[tuple[str, float]]) -> None:
    """In whatever order things happen: they may go only SETTLE seconds after a new worker was ready with the code loaded."""
    rolling, now, loaded, ready_at = Rollout(OLD, NEW), 0.0, False, None
    for name, value in steps:
        was = rolling.stage
        match name:
            case "prepared" if not loaded:
                rolling.on_loaded()
                loaded = True
            case "ready":
                rolling.ready(int(value), now)
                if loaded and int(value) == NEW and ready_at is None:
                    ready_at = now
            case "look":
                now += value
                rolling.advance(now)
        assert rolling.may_retire() <= (ready_at is not None and now >= ready_at + SETTLE_S)
        assert list(Stage).index(rolling.stage) >= list(Stage).index(was), "it never goes back"


@given(WORKERS)
def test_finished_when_no_old_worker_is_left(workers: list[WorkerView]) -> None:
    """It is over when every worker, those that drain or die included, is new; and never before the roll has begun."""
    old = [worker for worker in workers if worker.generation == OLD]
    assert rolled().finished(workers) == (not old)
    assert not rolled(Stage.LOADING).finished(workers)
    assert not rolled(Stage.PROVING).finished(workers)


@given(WORKERS)
def test_replaced_counts_new_workers(workers: list[WorkerView]) -> None:
    """What is told to those who watch never exceeds the number of workers, and takes each new one once."""
    counted = rolled().replaced(iter(workers))
    assert counted == len(workers) - sum(worker.generation == OLD for worker in workers)


def test_generators_will_do() -> None:
    """Workers may come as any iterable, that can be read only once."""
    workers = [WorkerView(0, slot, NEW, WorkerState.READY) for slot in range(3)]
    assert rolled().finished(worker for worker in workers)
    assert rolled().replaced(itertools.chain(workers)) == 3
