"""Single flight: equal requests that are under way at the same time share one call.

A *flight* is a piece of work from the first request to its result. It waits for its turn if too many flights of its kind are
under way. An *asker* is a caller that waits for the result. Askers with an equal request join the flight, and each may leave it.
A flight that all askers have left is over. A request without an asker (`asker=None`) isn't joined with others and is always
done.

This module is pure: the caller runs the work and gives the time.
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
        key: requests with an equal key join this flight; None: no request does.
        askers: the askers that wait, each with its deadline on the caller's clock.
        lone: the request has no asker, and is done all the same.
        begun: the flight has had its turn.
        over: the flight has ended, or all askers have left.
        runner: the caller's handle of the running work.
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
    """The flights of one kind of work.

    Args:
        limit: how many flights may be under way at a time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._under_way = 0
        self._waiting: deque[Flight[A]] = deque()
        self._by_key: dict[Hashable, Flight[A]] = {}
        self._all: dict[Flight[A], None] = {}

    def __len__(self) -> int:
        """Return the number of flights that wait or are under way. Flights that all askers have left don't count."""
        return len(self._all)

    def __iter__(self) -> Iterator[Flight[A]]:
        """Iterate over a copy of these flights."""
        return iter(list(self._all))

    def join_or_begin(self, request: Any, key: Hashable | None, asker: A | None, deadline: float) -> Flight[A]:
        """Join the flight with that key, or add a new one to the queue of `next_flight`.

        Args:
            key: None: the request is equal to no other.
            asker: None: no caller waits; then the request is equal to no other either.
            deadline: when the asker gives up, on the caller's clock.
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
                self._by_key[key] = (
                    flight  # until it ends or all askers have left: later requests join it while it runs
                )
        self._waiting.append(flight)
        self._all[flight] = None
        return flight

    def next_flight(self) -> Flight[A] | None:
        """Return the next flight that may begin now; None: there is none. The caller must `finish` it."""
        while self._waiting and self._under_way < self._limit:
            flight = self._waiting.popleft()
            if not flight.over:  # all its askers may have left while it waited
                flight.begun = True
                self._under_way += 1
                return flight
        return None

    def leave(self, flight: Flight[A], asker: A) -> bool:
        """Remove an asker. Returns whether it was the last one; then the flight is over, and can't be joined any more."""
        flight.askers.pop(asker, None)
        if flight.askers or flight.lone or flight.over:
            return False
        self._forget(flight)
        return True

    def finish(self, flight: Flight[A]) -> dict[A, float]:
        """End a flight that has had its turn. Returns the askers that wait for the result, with their deadlines."""
        self._under_way -= 1
        self._forget(flight)
        askers, flight.askers = flight.askers, {}
        return askers

    def expired(self, now: float) -> Iterator[tuple[Flight[A], A]]:
        """Yield the askers whose deadline has passed, each with its flight."""
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
