"""Single flight, against a model that is told everything."""

from __future__ import annotations

from math import inf
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster2.core.single_flight import Flight, SingleFlight

LIMIT = 2


class Model(RuleBasedStateMachine):
    """Askers come and go, flights begin and end, in any order; at each moment the flights are what they should be."""

    def __init__(self) -> None:
        super().__init__()
        self.flights: SingleFlight[int] = SingleFlight(LIMIT)
        self.waits: dict[int, Flight[int]] = {}
        self.under_way: list[Flight[int]] = []
        self.next = 0
        self.lone = 0
        self.lone_done = 0
        self.answered: list[int] = []
        self.begun_by_key: dict[Any, int] = {}

    @rule(key=st.sampled_from(["a", "b", None]), deadline=st.sampled_from([1.0, 2.0, inf]))
    def ask(self, key: str | None, deadline: float) -> None:
        self.next += 1
        joined = [flight for flight in set(self.waits.values()) if key is not None and flight.key == key]
        flight = self.flights.join_or_begin(self.next, key, self.next, deadline)
        assert joined in ([], [flight]), "equal requests that are under way are one flight"
        assert joined or flight.request == self.next
        self.waits[self.next] = flight

    @rule()
    def ask_alone(self) -> None:
        self.lone += 1
        flight = self.flights.join_or_begin(("lone", self.lone), None, None, inf)
        assert flight not in self.waits.values()

    @rule()
    def begin(self) -> None:
        free = LIMIT - len(self.under_way)
        flight = self.flights.next_flight()
        if flight is None:
            assert not free or len(self.flights) == sum(not flight.over for flight in self.under_way)
            return
        assert free > 0
        assert flight.begun
        assert not flight.over
        assert flight not in self.under_way
        self.under_way.append(flight)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        flight = data.draw(st.sampled_from(self.under_way))
        self.under_way.remove(flight)
        told = self.flights.finish(flight)
        assert set(told) == {asker for asker, its in self.waits.items() if its is flight}
        for asker in told:
            del self.waits[asker]
            self.answered.append(asker)
        self.lone_done += flight.lone

    @precondition(lambda self: self.waits)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        asker = data.draw(st.sampled_from(sorted(self.waits)))
        self._leave(asker)

    @rule(now=st.sampled_from([0.5, 1.0, 2.0]))
    def expire(self, now: float) -> None:
        due = {asker for asker, flight in self.waits.items() if flight.askers[asker] <= now}
        found = list(self.flights.expired(now))
        assert {asker for _, asker in found} == due
        for _, asker in found:
            self._leave(asker)

    def _leave(self, asker: int) -> None:
        flight = self.waits.pop(asker)
        last = flight not in self.waits.values()
        assert self.flights.leave(flight, asker) == last
        assert not self.flights.leave(flight, asker), "who has left is gone"
        assert flight.over == last

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        assert len(self.answered) == len(set(self.answered))
        alive = set(self.waits.values())
        assert {flight for flight in self.flights if not flight.lone} == alive
        lone = [flight for flight in self.flights if flight.lone]
        assert len(lone) + self.lone_done == self.lone
        for asker, flight in self.waits.items():
            assert asker in flight.askers
            assert not flight.over


TestFlights = Model.TestCase
TestFlights.settings = settings(max_examples=60, stateful_step_count=40)


def test_turns_are_in_order() -> None:
    """Work begins in the order in which it came, as many at a time as the limit says."""
    flights: SingleFlight[int] = SingleFlight(2)
    made = [flights.join_or_begin(number, number, number, inf) for number in range(1, 6)]
    assert [flights.next_flight(), flights.next_flight(), flights.next_flight()] == [made[0], made[1], None]
    flights.leave(made[2], 3)
    flights.finish(made[1])
    assert flights.next_flight() is made[3], "one that call_servers has left has no turn"


def test_after_all_have_left_a_new_one_begins() -> None:
    """Nobody joins a flight that was given up, though its handler may still run; its place is taken until that ends."""
    flights: SingleFlight[int] = SingleFlight(1)
    first = flights.join_or_begin("a", "key", 1, inf)
    assert flights.next_flight() is first
    assert flights.leave(first, 1)
    second = flights.join_or_begin("a", "key", 2, inf)
    assert second is not first
    assert flights.next_flight() is None
    assert flights.finish(first) == {}
    assert flights.next_flight() is second
    assert list(flights.finish(second)) == [2]
