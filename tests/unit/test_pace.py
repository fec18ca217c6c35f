"""How a worker takes connections: every way from mode to mode, by a clock that only these tests move."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.worker.pace import CALM, LONG, PROOF, WINDOW, Mode, Pace

ABOVE = 0.005
LONG_STEP = 2 * LONG
PROOF_STEP = 2 * ABOVE


def parking(now: float = 100.0) -> Pace:
    """One that parks since `now`."""
    pace = Pace(ABOVE)
    for _ in range(PROOF):
        pace.step(PROOF_STEP, now, [])
    assert pace.mode is Mode.PARKING
    return pace


def test_the_beginning() -> None:
    """A worker starts eager, and stays so while nothing is long."""
    pace = Pace(ABOVE)
    assert pace.mode is Mode.EAGER
    assert pace.relax(1000.0) is Mode.EAGER
    assert pace.longest == 0.0


def test_one_long_step_holds() -> None:
    """The first long step makes it hold back, at once; the longest one is known."""
    pace = Pace(ABOVE)
    assert pace.step(LONG_STEP, 100.0, []) is Mode.HELD
    assert pace.step(LONG_STEP / 2, 100.1, []) is Mode.HELD
    assert pace.longest == LONG_STEP


def test_calm_makes_eager() -> None:
    """When no step was long for three seconds it is eager again, and has forgotten the longest one."""
    pace = Pace(ABOVE)
    pace.step(LONG_STEP, 100.0, [])
    assert pace.relax(100.0 + CALM) is Mode.HELD
    assert pace.relax(100.0 + CALM + 0.01) is Mode.EAGER
    assert pace.longest == 0.0


def test_long_steps_keep_it_held() -> None:
    """Each long step begins the calm anew."""
    pace = Pace(ABOVE)
    for tenth in range(100):
        pace.step(LONG_STEP, 100.0 + tenth / 10, [])
        assert pace.relax(100.0 + tenth / 10) is Mode.HELD
    assert pace.relax(109.9 + CALM + 0.01) is Mode.EAGER


def test_three_proofs_park() -> None:
    """The third proof within two seconds makes it park, not the second."""
    pace = Pace(ABOVE)
    assert pace.step(PROOF_STEP, 100.0, []) is Mode.HELD
    assert pace.step(PROOF_STEP, 101.0, []) is Mode.HELD
    assert pace.step(PROOF_STEP, 101.9, []) is Mode.PARKING


def test_proofs_far_apart_do_not_park() -> None:
    """A garbage collection now and then is no reason to park."""
    pace = Pace(ABOVE)
    for number in range(50):
        assert pace.step(PROOF_STEP, 100.0 + number * WINDOW / 2, []) is Mode.HELD


def test_proof_of_others_counts() -> None:
    """What siblings saw lately counts: with two of theirs a worker's first proof makes it park; old ones don't count."""
    assert Pace(ABOVE).step(PROOF_STEP, 100.0, [99.0, 98.1]) is Mode.PARKING
    assert Pace(ABOVE).step(PROOF_STEP, 100.0, [99.0, 97.0]) is Mode.HELD
    assert Pace(ABOVE).step(PROOF_STEP, 100.0, [0.0] * 50) is Mode.HELD


def test_proof_of_others_alone_does_not_park() -> None:
    """A step that is long but no proof makes nobody park, whatever the others saw."""
    assert Pace(ABOVE).step(LONG_STEP, 100.0, [100.0] * 10) is Mode.HELD


def test_parking_ends_by_steps() -> None:
    """After three seconds without new proof it holds; after three without a long step it is eager. Both may fall together."""
    pace = parking(100.0)
    assert pace.relax(100.0 + CALM) is Mode.PARKING
    pace.step(LONG_STEP, 102.0, [])
    assert pace.relax(100.0 + CALM + 0.01) is Mode.HELD
    assert pace.relax(102.0 + CALM + 0.01) is Mode.EAGER
    assert parking(100.0).relax(100.0 + CALM + 0.01) is Mode.EAGER


def test_proof_keeps_it_parking() -> None:
    """It parks for as long as proof comes."""
    pace = parking(100.0)
    for tenth in range(100):
        pace.step(PROOF_STEP, 100.0 + tenth / 10, [])
        assert pace.relax(100.0 + tenth / 10) is Mode.PARKING


@pytest.mark.parametrize(("step", "proof"), [(ABOVE, False), (ABOVE * 1.01, True), (0.0, False), (LONG, False)])
def test_what_is_proof(step: float, proof: bool) -> None:
    """Proof is a step that is longer than `park_above`."""
    assert Pace(ABOVE).is_proof(step) is proof


STEPS = st.lists(
    st.tuples(
        st.floats(0.0, 5.0),  # seconds since the last one
        st.floats(LONG, 0.1).filter(lambda step: step > LONG),
        st.lists(st.floats(0.0, 10.0), max_size=4),  # how long ago others saw proof
    ),
    max_size=40,
)


@given(STEPS)
def test_it_never_parks_if_told_so(steps: list[tuple[float, float, list[float]]]) -> None:
    """With `park_above = 0` nothing makes it park."""
    pace, now = Pace(0.0), 1000.0
    for passed, step, ages in steps:
        now += passed
        assert pace.step(step, now, [now - age for age in ages]) is not Mode.PARKING
        assert not pace.is_proof(step)


@given(STEPS)
def test_it_parks_for_three_proofs_only(steps: list[tuple[float, float, list[float]]]) -> None:
    """Whenever it begins to park, it and the others saw three proofs within the last two seconds; and then it does begin."""
    pace, now = Pace(ABOVE), 1000.0
    own: list[float] = []
    for passed, step, ages in steps:
        now += passed
        before = pace.relax(now)
        if step > ABOVE:
            own.append(now)
        seen = sum(now - when < WINDOW for when in own[-PROOF:]) + sum(age < WINDOW - 1e-6 for age in ages)
        at_most = sum(now - when < WINDOW for when in own[-PROOF:]) + sum(age < WINDOW + 1e-6 for age in ages)
        mode = pace.step(step, now, [now - age for age in ages])
        if before is not Mode.PARKING and mode is Mode.PARKING:
            assert at_most >= PROOF
            assert step > ABOVE
        if step > ABOVE and seen >= PROOF:
            assert mode is Mode.PARKING


@given(STEPS, st.floats(0.01, 1e6))
def test_calm_always_leads_back(steps: list[tuple[float, float, list[float]]], rest: float) -> None:
    """Whatever happened, after three seconds of calm it is eager, and the longest step forgotten."""
    pace, now = Pace(ABOVE), 1000.0
    for passed, step, ages in steps:
        now += passed
        pace.step(step, now, [now - age for age in ages])
        assert pace.longest >= step
    assert pace.relax(now + CALM + rest) is Mode.EAGER
    assert pace.longest == 0.0


@given(STEPS)
def test_modes_relax_downwards_only(steps: list[tuple[float, float, list[float]]]) -> None:
    """Time alone never makes a worker stricter, and a step never makes it more greedy."""
    pace, now = Pace(ABOVE), 1000.0
    for passed, step, ages in steps:
        now += passed
        before = pace.mode
        relaxed = pace.relax(now)
        assert relaxed <= before
        assert pace.step(step, now, [now - age for age in ages]) >= max(relaxed, Mode.HELD)
