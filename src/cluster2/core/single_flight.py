"""Single flight: equal requests that are under way at the same time are one piece of work with several askers.

A *flight* is a piece of work from the first request to its answer. It waits for its turn if too many of its kind are under
way; others may join it; an asker may leave it, and a flight that nobody waits for any more is over. Work that nobody waits
for from the start (`asker=None`) is done all the same, each for itself.

Pure: who runs the work, and what the time is, is not known here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Any, Generic, TypeVar

A = TypeVar("A", bound=Hashable)


class Flight(Generic[A]):
    """One piece of work.

    Attributes:
        request: the first request.
        key: what makes others equal to it; None: nothing does.
        askers: who waits, each with its deadline on the caller's clock.
        lone: to be done although nobody waits.
        begun: it has had its turn.
        over: it has ended, or everybody has left.
        runner: what does it; the caller's.
    """

    __slots__ = ("askers", "begun", "key", "lone", "over", "request", "runner")

    def __init__(self, request: Any, key: Hashable | None, lone: bool) -> None:
        self.request = request
        self.key = key
        self.lone = lone
        self.askers: dict[A, float] = {}
        self.begun = self.over = False
        self.runner: Any = None


class SingleFlight(Generic[A]):
    """The work of one kind.

    Args:
        limit: how many may be under way at a time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._under_way = 0
        self._waiting: deque[Flight[A]] = deque()
        self._by_key: dict[Hashable, Flight[A]] = {}
        self._all: dict[Flight[A], None] = {}

    def __len__(self) -> int:
        """Flights that wait or are under way; those that everybody has left are not counted."""
        return len(self._all)

    def __iter__(self) -> Iterator[Flight[A]]:
        """The same, as they are now."""
        return iter(list(self._all))

    def join_or_begin(self, request: Any, key: Hashable | None, asker: A | None, deadline: float) -> Flight[A]:
        """Join the flight of that key, or begin one; `next_flight` gives it out then.

        Args:
            key: None: it is equal to nothing.
            asker: None: nobody waits for it; it is equal to nothing either.
        """
        if asker is None:
            flight: Flight[A] = Flight(request, None, True)
        else:
            found = None if key is None else self._by_key.get(key)
            if found is not None:
                found.askers[asker] = deadline
                return found
            flight = Flight(request, key, False)
            flight.askers[asker] = deadline
            if key is not None:
                self._by_key[key] = flight
        self._waiting.append(flight)
        self._all[flight] = None
        return flight

    def next_flight(self) -> Flight[A] | None:
        """The next flight that may begin now; whoever gets it must `finish` it."""
        while self._waiting and self._under_way < self._limit:
            flight = self._waiting.popleft()
            if not flight.over:
                flight.begun = True
                self._under_way += 1
                return flight
        return None

    def leave(self, flight: Flight[A], asker: A) -> bool:
        """Somebody waits no more. Returns whether nobody does: then nobody can join it any more either."""
        flight.askers.pop(asker, None)
        if flight.askers or flight.lone or flight.over:
            return False
        self._forget(flight)
        return True

    def finish(self, flight: Flight[A]) -> dict[A, float]:
        """A flight that had its turn is done: who is to have the answer."""
        self._under_way -= 1
        self._forget(flight)
        askers, flight.askers = flight.askers, {}
        return askers

    def expired(self, now: float) -> Iterator[tuple[Flight[A], A]]:
        """Askers whose deadline has passed."""
        for flight in list(self._all):
            for asker, deadline in list(flight.askers.items()):
                if deadline <= now:
                    yield flight, asker

    def _forget(self, flight: Flight[A]) -> None:
        if not flight.over:
            flight.over = True
            del self._all[flight]
            if flight.key is not None:
                del self._by_key[flight.key]
