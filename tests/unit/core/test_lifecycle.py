"""The table of a worker's life: every pair of state and event, and what follows from it however events come."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.core.lifecycle import (
    LIVE_STATES,
    TRANSITIONS,
    Step,
    WorkerAction,
    WorkerEvent,
    WorkerState,
    life_phase,
    step,
)

S, E, A = WorkerState, WorkerEvent, WorkerAction
PAIRS = list(itertools.product(WorkerState, WorkerEvent))
HISTORIES = st.lists(st.sampled_from(WorkerEvent), max_size=30)


def run(
    history: list[WorkerEvent], state: WorkerState = WorkerState.SPAWNING
) -> tuple[WorkerState, list[WorkerAction]]:
    """The state after a history, and all that was done on the way."""
    done: list[WorkerAction] = []
    for event in history:
        state, actions = step(state, event)
        done += actions
    return state, done


def test_the_table_is_total() -> None:
    """Each pair of state and event stands in the table once, and nothing else does."""
    assert set(TRANSITIONS) == set(PAIRS)
    assert len(TRANSITIONS) == len(WorkerState) * len(WorkerEvent)


@pytest.mark.parametrize("event", WorkerEvent)
def test_dead_absorbs(event: WorkerEvent) -> None:
    """Nothing that is heard of a dead worker has any effect."""
    assert step(WorkerState.DEAD, event) == Step(WorkerState.DEAD)


@pytest.mark.parametrize(("state", "event"), [pair for pair in PAIRS if pair[0] is not S.DEAD])
def test_only_an_exit_buries(state: WorkerState, event: WorkerEvent) -> None:
    """A worker is dead and buried when it was reaped, and only then: until then its row and pid file are its own."""
    found = step(state, event)
    assert (found.state is WorkerState.DEAD) == (event is WorkerEvent.EXITED)
    assert (WorkerAction.BURY in found.actions) == (event is WorkerEvent.EXITED)


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_never_back_to_life(state: WorkerState, event: WorkerEvent) -> None:
    """States only go forward: a worker that leaves never serves again."""
    assert step(state, event).state >= state


@pytest.mark.parametrize(
    ("state", "event", "expected"),
    [
        (S.SPAWNING, E.FORKED, Step(S.BOOTING, (A.WATCH,))),
        (S.BOOTING, E.READY, Step(S.READY, (A.ANNOUNCE,))),
        (S.READY, E.DRAIN, Step(S.DRAINING, (A.TELL_DRAIN,))),
        (S.READY, E.KILL, Step(S.DYING, (A.SIGKILL,))),
        (S.DRAINING, E.KILL, Step(S.DYING, (A.SIGKILL,))),
        (S.DRAINING, E.DRAIN, Step(S.DRAINING, (A.TELL_DRAIN,))),
        (S.DRAINING, E.READY, Step(S.DRAINING)),
        (S.SPAWNING, E.KILL, Step(S.DYING)),
        (S.DYING, E.FORKED, Step(S.DYING, (A.WATCH, A.SIGKILL))),
    ],
)
def test_steps_that_matter(state: WorkerState, event: WorkerEvent, expected: Step) -> None:
    """The course of an ordinary life, and the turns that are easily got wrong."""
    assert step(state, event) == expected


@given(HISTORIES)
def test_buried_exactly_once(history: list[WorkerEvent]) -> None:
    """Whatever happens, in whatever order: with its exit a worker is buried, once, and nothing is done after that."""
    state, done = run([*history, WorkerEvent.EXITED])
    assert state is WorkerState.DEAD
    assert done.count(WorkerAction.BURY) == 1
    assert done[-1] is WorkerAction.BURY


@given(HISTORIES)
def test_announced_at_most_once(history: list[WorkerEvent]) -> None:
    """A worker is announced once, however often it says that it is ready, and never after it was told to leave."""
    _, done = run(history)
    assert done.count(WorkerAction.ANNOUNCE) <= 1
    assert done.count(WorkerAction.TELL_DRAIN) <= history.count(WorkerEvent.DRAIN)
    if WorkerAction.ANNOUNCE in done:
        assert not {WorkerAction.TELL_DRAIN, WorkerAction.SIGKILL} & set(done[: done.index(WorkerAction.ANNOUNCE)])


@given(HISTORIES)
def test_a_killed_worker_with_a_process_gets_the_signal(history: list[WorkerEvent]) -> None:
    """Killed before or after its process was known: it is sent SIGKILL as soon as it has one."""
    state, done = run([WorkerEvent.FORKED if each is WorkerEvent.EXITED else each for each in history])
    if state is WorkerState.DYING and WorkerEvent.FORKED in history:
        assert WorkerAction.SIGKILL in done


def test_live_states() -> None:
    """A worker counts as live from the order to spawn it until it is told to leave."""
    assert {WorkerState.SPAWNING, WorkerState.BOOTING, WorkerState.READY} == LIVE_STATES
    assert [state.label for state in WorkerState] == ["spawning", "booting", "ready", "draining", "dying", "dead"]


@pytest.mark.parametrize(
    ("state", "executed", "started", "phase"),
    [
        (WorkerState.SPAWNING, False, False, "fork"),
        (WorkerState.BOOTING, False, False, "fork"),
        (WorkerState.BOOTING, False, True, "startup"),
        (WorkerState.SPAWNING, True, False, "import"),
        (WorkerState.BOOTING, True, False, "import"),
        (WorkerState.BOOTING, True, True, "startup"),
        (WorkerState.READY, True, True, "serving"),
        (WorkerState.DRAINING, False, True, "drain"),
    ],
)
def test_the_phase_of_a_life(state: WorkerState, executed: bool, started: bool, phase: str) -> None:
    """What a worker is doing follows from its state, how it was made, and whether its own code runs."""
    assert life_phase(state, executed=executed, started=started) == phase
