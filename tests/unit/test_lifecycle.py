"""The table of a worker's life: every pair of state and event, and what follows from it however events come."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.lifecycle import LIVE_STATES, TRANSITIONS, Action, Event, State, Step, life_phase, step

S, E, A = State, Event, Action
PAIRS = list(itertools.product(State, Event))
HISTORIES = st.lists(st.sampled_from(Event), max_size=30)


def run(history: list[Event], state: State = State.SPAWNING) -> tuple[State, list[Action]]:
    """The state after a history, and all that was done on the way."""
    done: list[Action] = []
    for event in history:
        state, actions = step(state, event)
        done += actions
    return state, done


def test_the_table_is_total() -> None:
    """Each pair of state and event stands in the table once, and nothing else does."""
    assert set(TRANSITIONS) == set(PAIRS)
    assert len(TRANSITIONS) == len(State) * len(Event)


@pytest.mark.parametrize("event", Event)
def test_dead_absorbs(event: Event) -> None:
    """Nothing that is heard of a dead worker has any effect."""
    assert step(State.DEAD, event) == Step(State.DEAD)


@pytest.mark.parametrize(("state", "event"), [pair for pair in PAIRS if pair[0] is not S.DEAD])
def test_only_an_exit_buries(state: State, event: Event) -> None:
    """A worker is dead and buried when it was reaped, and only then: until then its row and pid file are its own."""
    found = step(state, event)
    assert (found.state is State.DEAD) == (event is Event.EXITED)
    assert (Action.BURY in found.actions) == (event is Event.EXITED)


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_never_back_to_life(state: State, event: Event) -> None:
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
def test_steps_that_matter(state: State, event: Event, expected: Step) -> None:
    """The course of an ordinary life, and the turns that are easily got wrong."""
    assert step(state, event) == expected


@given(HISTORIES)
def test_buried_exactly_once(history: list[Event]) -> None:
    """Whatever happens, in whatever order: with its exit a worker is buried, once, and nothing is done after that."""
    state, done = run([*history, Event.EXITED])
    assert state is State.DEAD
    assert done.count(Action.BURY) == 1
    assert done[-1] is Action.BURY


@given(HISTORIES)
def test_announced_at_most_once(history: list[Event]) -> None:
    """A worker is announced once, however often it says that it is ready, and never after it was told to leave."""
    _, done = run(history)
    assert done.count(Action.ANNOUNCE) <= 1
    assert done.count(Action.TELL_DRAIN) <= history.count(Event.DRAIN)
    if Action.ANNOUNCE in done:
        assert not {Action.TELL_DRAIN, Action.SIGKILL} & set(done[: done.index(Action.ANNOUNCE)])


@given(HISTORIES)
def test_a_killed_worker_with_a_process_gets_the_signal(history: list[Event]) -> None:
    """Killed before or after its process was known: it is sent SIGKILL as soon as it has one."""
    state, done = run([Event.FORKED if each is Event.EXITED else each for each in history])
    if state is State.DYING and Event.FORKED in history:
        assert Action.SIGKILL in done


def test_live_states() -> None:
    """A worker counts as live from the order to spawn it until it is told to leave."""
    assert {State.SPAWNING, State.BOOTING, State.READY} == LIVE_STATES
    assert [state.label for state in State] == ["spawning", "booting", "ready", "draining", "dying", "dead"]


@pytest.mark.parametrize(
    ("state", "executed", "started", "phase"),
    [
        (State.SPAWNING, False, False, "fork"),
        (State.BOOTING, False, False, "fork"),
        (State.BOOTING, False, True, "startup"),
        (State.SPAWNING, True, False, "import"),
        (State.BOOTING, True, False, "import"),
        (State.BOOTING, True, True, "startup"),
        (State.READY, True, True, "serving"),
        (State.DRAINING, False, True, "drain"),
    ],
)
def test_the_phase_of_a_life(state: State, executed: bool, started: bool, phase: str) -> None:
    """What a worker is doing follows from its state, how it was made, and whether its own code runs."""
    assert life_phase(state, executed=executed, started=started) == phase
