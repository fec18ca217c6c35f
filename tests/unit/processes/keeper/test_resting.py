"""Connections at rest and their deadlines, against a plain dictionary."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from cluster2.processes.keeper.resting import NO_DEADLINE, IdleConnections


class Model(RuleBasedStateMachine):
    """`Resting` beside a dictionary of descriptor → (about, deadline)."""

    kept = Bundle("kept")

    def __init__(self) -> None:
        super().__init__()
        self.resting = IdleConnections()
        self.model: dict[int, tuple[tuple[int, int], float]] = {}
        self.now = 1000.0

    @rule(
        target=kept,
        descriptor=st.integers(0, 10_000),
        about=st.tuples(st.integers(0, 3), st.sampled_from((1, 2, 10))),
        timeout=st.one_of(st.floats(0, 100), st.just(float(NO_DEADLINE))),
    )
    def add(self, descriptor: int, about: tuple[int, int], timeout: float) -> int:
        while descriptor in self.model:  # the kernel gives a number once
            descriptor += 1
        self.resting.add(descriptor, about, self.now + timeout)
        self.model[descriptor] = about, self.now + timeout
        return descriptor

    @rule(descriptor=consumes(kept))
    def remove(self, descriptor: int) -> None:
        if descriptor in self.model:
            assert self.resting.remove(descriptor) == self.model.pop(descriptor)[0]
        else:
            with pytest.raises(KeyError):
                self.resting.remove(descriptor)

    @rule(passed=st.floats(0, 40))
    def expire(self, passed: float) -> None:
        self.now += passed
        expired = self.resting.expired(self.now)
        assert len(expired) == len(set(expired))
        for descriptor, (_, deadline) in self.model.items():
            if descriptor in expired:
                assert deadline <= self.now, "none expires too early"
            else:
                assert deadline + 1 >= self.now, "and none more than a second late"
        for descriptor in expired:
            assert self.resting.remove(descriptor) == self.model.pop(descriptor)[0]

    @invariant()
    def the_same(self) -> None:
        assert len(self.resting) == len(self.model)
        assert set(self.resting) == set(self.model)
        assert all(descriptor in self.resting for descriptor in self.model)

    @invariant()
    def the_next_one(self) -> None:
        due = [deadline for _, deadline in self.model.values() if deadline < NO_DEADLINE]
        following = self.resting.next_deadline()
        if not due:
            assert following is None
        else:
            assert following is not None
            assert min(due) <= following <= min(due) + 1


TestModel = Model.TestCase


def test_forever() -> None:
    """What has no time limit never expires, and nobody has to wake for it."""
    resting = IdleConnections()
    resting.add(5, (0, 2), float(NO_DEADLINE))
    assert resting.next_deadline() is None
    assert resting.expired(1e9) == []
    assert resting.remove(5) == (0, 2)


def test_in_the_past() -> None:
    """What is overdue when it comes expires at the next look."""
    resting = IdleConnections()
    resting.add(5, (0, 2), 10.0)
    assert resting.expired(1000.0) == [5]
