"""The mode in which a worker accepts connections: every way from mode to mode, by a clock that only these tests move."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.processes.worker.sampling.accept_mode import (
    CALM_AFTER_S,
    CLEARLY_LONG_STEP_S,
    COUNTING_WINDOW_S,
    LONG_STEP_S,
    MIN_CLEARLY_LONG_STEPS,
    MIN_LONG_STEPS,
    MIN_SLOW_STEPS,
    AcceptMode,
    AcceptModeSelector,
)

ABOVE = 0.005
LONG_STEP = 2 * LONG_STEP_S
CLEAR_STEP = 2 * CLEARLY_LONG_STEP_S
PROOF_STEP = 2 * ABOVE


def parking(now: float = 100.0) -> AcceptModeSelector:
    """Return a selector that is in mode handoff since `now`."""
    pace = AcceptModeSelector(ABOVE)
    for _ in range(MIN_SLOW_STEPS):
        pace.step(PROOF_STEP, now, [])
    assert pace.mode is AcceptMode.HANDOFF
    return pace


def test_the_beginning() -> None:
    """Start in mode batch, and stay there while no step is long."""
    pace = AcceptModeSelector(ABOVE)
    assert pace.mode is AcceptMode.BATCH
    assert pace.relax(1000.0) is AcceptMode.BATCH
    assert pace.longest == 0.0


def held(now: float = 100.0) -> AcceptModeSelector:
    """Return a selector that is in mode one_by_one since `now`."""
    pace = AcceptModeSelector(0.0)
    for _ in range(MIN_CLEARLY_LONG_STEPS):
        pace.step(CLEAR_STEP, now, [])
    assert pace.mode is AcceptMode.ONE_BY_ONE
    return pace


@pytest.mark.parametrize(("step", "many"), [(CLEAR_STEP, MIN_CLEARLY_LONG_STEPS), (LONG_STEP, MIN_LONG_STEPS)])
def test_long_steps_hold(step: float, many: int) -> None:
    """Leave mode batch at once after as many steps of a degree within the window as count, not after one fewer."""
    pace = AcceptModeSelector(0.0)
    for number in range(many - 1):
        assert pace.step(step, 100.0 + number * COUNTING_WINDOW_S / many, []) is AcceptMode.BATCH
    assert pace.longest == step
    assert pace.step(step, 99.9 + COUNTING_WINDOW_S, []) is AcceptMode.ONE_BY_ONE


@pytest.mark.parametrize(("step", "many"), [(CLEAR_STEP, MIN_CLEARLY_LONG_STEPS), (LONG_STEP, MIN_LONG_STEPS)])
def test_rare_long_steps_do_not_hold(step: float, many: int) -> None:
    """Stay in mode batch for the kernel's work in an app's time: it comes now and then, however long that goes on."""
    pace = AcceptModeSelector(0.0)
    for number in range(10 * many):
        assert pace.step(step, 100.0 + number * 1.001 * COUNTING_WINDOW_S / (many - 1), []) is AcceptMode.BATCH


def test_calm_makes_eager() -> None:
    """Return to mode batch when few steps were long for three seconds, and forget the longest one."""
    pace = held(100.0)
    assert pace.relax(100.0 + CALM_AFTER_S) is AcceptMode.ONE_BY_ONE
    assert pace.relax(100.0 + CALM_AFTER_S + 0.01) is AcceptMode.BATCH
    assert pace.longest == 0.0


def test_the_longest_is_forgotten() -> None:
    """Forget the longest step also if the mode was always batch."""
    pace = AcceptModeSelector(0.0)
    pace.step(LONG_STEP, 100.0, [])
    pace.relax(100.0 + CALM_AFTER_S)
    assert pace.longest == LONG_STEP
    pace.relax(100.0 + CALM_AFTER_S + 0.01)
    assert pace.longest == 0.0


def test_a_rare_long_step_does_not_keep_it_held() -> None:
    """Calm down although a step is long now and then."""
    pace = held(100.0)
    assert pace.step(CLEAR_STEP, 100.1 + COUNTING_WINDOW_S, []) is AcceptMode.ONE_BY_ONE
    assert pace.relax(100.0 + CALM_AFTER_S + 0.01) is AcceptMode.BATCH


def test_long_steps_keep_it_held() -> None:
    """Stay in mode one_by_one as long as long steps come."""
    pace = held(100.0)
    for tenth in range(100):
        pace.step(LONG_STEP, 100.0 + tenth / 20, [])
        assert pace.relax(100.0 + tenth / 20) is AcceptMode.ONE_BY_ONE
    assert pace.relax(104.95 + CALM_AFTER_S + 0.01) is AcceptMode.BATCH


def test_three_proofs_park() -> None:
    """Begin mode handoff with the third proof within two seconds, not with the second."""
    pace = AcceptModeSelector(ABOVE)
    assert pace.step(PROOF_STEP, 100.0, []) is AcceptMode.BATCH
    assert pace.step(PROOF_STEP, 101.0, []) is AcceptMode.ONE_BY_ONE
    assert pace.step(PROOF_STEP, 101.9, []) is AcceptMode.HANDOFF


def test_proofs_far_apart_do_not_park() -> None:
    """Don't begin mode handoff for a garbage collection now and then."""
    pace = AcceptModeSelector(ABOVE)
    for number in range(50):
        assert pace.step(PROOF_STEP, 100.0 + number * COUNTING_WINDOW_S / 2, []) is not AcceptMode.HANDOFF


def test_proof_of_others_counts() -> None:
    """Count what siblings saw lately: with two of theirs the first proof begins mode handoff; old ones don't count."""
    assert AcceptModeSelector(ABOVE).step(PROOF_STEP, 100.0, [99.0, 98.1]) is AcceptMode.HANDOFF
    assert AcceptModeSelector(ABOVE).step(PROOF_STEP, 100.0, [99.0, 97.0]) is AcceptMode.BATCH
    assert AcceptModeSelector(ABOVE).step(PROOF_STEP, 100.0, [0.0] * 50) is AcceptMode.BATCH


def test_proof_of_others_alone_does_not_park() -> None:
    """Begin mode handoff for no step that is long but no proof, whatever the others saw."""
    assert AcceptModeSelector(ABOVE).step(LONG_STEP, 100.0, [100.0] * 10) is AcceptMode.BATCH


def test_parking_ends_by_steps() -> None:
    """Step down after three seconds without proof, and after three without a long step; both may fall together."""
    pace = parking(100.0)
    assert pace.relax(100.0 + CALM_AFTER_S) is AcceptMode.HANDOFF
    for _ in range(MIN_LONG_STEPS):
        pace.step(LONG_STEP, 102.0, [])
    assert pace.relax(100.0 + CALM_AFTER_S + 0.01) is AcceptMode.ONE_BY_ONE
    assert pace.relax(102.0 + CALM_AFTER_S + 0.01) is AcceptMode.BATCH
    assert parking(100.0).relax(100.0 + CALM_AFTER_S + 0.01) is AcceptMode.BATCH


def test_proof_keeps_it_parking() -> None:
    """Stay in mode handoff as long as proof comes."""
    pace = parking(100.0)
    for tenth in range(100):
        pace.step(PROOF_STEP, 100.0 + tenth / 10, [])
        assert pace.relax(100.0 + tenth / 10) is AcceptMode.HANDOFF


@pytest.mark.parametrize(("step", "proof"), [(ABOVE, False), (ABOVE * 1.01, True), (0.0, False), (LONG_STEP_S, False)])
def test_what_is_proof(step: float, proof: bool) -> None:
    """Take a step that is longer than `handoff_slow_above` as proof."""
    assert AcceptModeSelector(ABOVE).is_proof(step) is proof


STEPS = st.lists(
    st.tuples(
        st.floats(0.0, 5.0),  # seconds since the last one
        st.floats(LONG_STEP_S, 0.1).filter(lambda step: step > LONG_STEP_S),
        st.lists(st.floats(0.0, 10.0), max_size=4),  # how long ago others saw proof
    ),
    max_size=40,
)


@given(STEPS)
def test_it_never_parks_if_told_so(steps: list[tuple[float, float, list[float]]]) -> None:
    """Never begin mode handoff with `handoff_slow_above = 0`."""
    pace, now = AcceptModeSelector(0.0), 1000.0
    for passed, step, ages in steps:
        now += passed
        assert pace.step(step, now, [now - age for age in ages]) is not AcceptMode.HANDOFF
        assert not pace.is_proof(step)


@given(STEPS)
def test_it_parks_for_three_proofs_only(steps: list[tuple[float, float, list[float]]]) -> None:
    """Begin mode handoff exactly if the worker and the others saw three proofs within the last two seconds."""
    pace, now = AcceptModeSelector(ABOVE), 1000.0
    own: list[float] = []
    for passed, step, ages in steps:
        now += passed
        before = pace.relax(now)
        if step > ABOVE:
            own.append(now)
        seen = sum(now - when < COUNTING_WINDOW_S for when in own[-MIN_SLOW_STEPS:]) + sum(
            age < COUNTING_WINDOW_S - 1e-6 for age in ages
        )
        at_most = sum(now - when < COUNTING_WINDOW_S for when in own[-MIN_SLOW_STEPS:]) + sum(
            age < COUNTING_WINDOW_S + 1e-6 for age in ages
        )
        mode = pace.step(step, now, [now - age for age in ages])
        if before is not AcceptMode.HANDOFF and mode is AcceptMode.HANDOFF:
            assert at_most >= MIN_SLOW_STEPS
            assert step > ABOVE
        if step > ABOVE and seen >= MIN_SLOW_STEPS:
            assert mode is AcceptMode.HANDOFF


@given(STEPS, st.floats(0.01, 1e6))
def test_calm_always_leads_back(steps: list[tuple[float, float, list[float]]], rest: float) -> None:
    """Return to mode batch after three seconds of calm, whatever happened, and forget the longest step."""
    pace, now = AcceptModeSelector(ABOVE), 1000.0
    for passed, step, ages in steps:
        now += passed
        pace.step(step, now, [now - age for age in ages])
        assert pace.longest >= step
    assert pace.relax(now + CALM_AFTER_S + rest) is AcceptMode.BATCH
    assert pace.longest == 0.0


@given(STEPS)
def test_modes_relax_downwards_only(steps: list[tuple[float, float, list[float]]]) -> None:
    """Never become stricter by time alone, nor greedier by a step."""
    pace, now = AcceptModeSelector(ABOVE), 1000.0
    for passed, step, ages in steps:
        now += passed
        before = pace.mode
        relaxed = pace.relax(now)
        assert relaxed <= before
        assert pace.step(step, now, [now - age for age in ages]) >= relaxed
