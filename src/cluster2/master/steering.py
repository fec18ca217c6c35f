"""Who gets new connections, where engines take them by themselves: a place in the steered group for each worker.

Each worker of such an engine has a place of its own, from the order to make it until it is buried; its successor has another. A
place that is free again is kept open. Connections are steered to the workers that serve: first the successor's place is added,
then the predecessor's is left out, and that one goes on accepting what is on its way (`kernel.steering`).

- *A worker crashed*: what waits in its queue is served by whoever gets its place next: a free place in which somebody waits is
  given out first. If nobody is to be made just then, `stranded` says so, and a worker is recycled for it.
- *A worker is stuck*: it is left out as soon as its heartbeat is late, long before it is killed.
- *None serves*: connections go on to where they went, and wait.
- *A change of engine by a reload*: workers of an engine that is fed share place 0, the ordinary listener.

Where no engine takes connections itself, there is no group, and all of this is nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from ..errors import ConfigError
from ..kernel.listeners import Listener
from ..kernel.scoreboard import Scoreboard
from ..kernel.steering import Group
from ..lifecycle import State
from .handle import Handle

logger = logging.getLogger("cluster2.master")


class Steering:
    """The groups of a cluster, one for each listener that is steered, and who has which place in all of them."""

    def __init__(self, listeners: Sequence[tuple[int, Listener]], board: Scoreboard, backlog: int) -> None:
        """Nothing is steered."""
        self._listeners = listeners
        self._board = board
        self._backlog = backlog
        self._sites: dict[int, frozenset[int]] = {}
        self._groups: dict[int, Group] = {}  # by the listener's index
        self._taken: set[int] = set()
        self._steered: tuple[int, ...] = (0,)

    def open(self, generation: int, sites: Iterable[int], slots: int) -> None:
        """The workers of a generation take connections of these apps by themselves.

        Args:
            slots: for how many workers there shall be places: two for each.

        Raises:
            ConfigError: an address that can't be steered.
        """
        self._sites[generation] = frozenset(sites)
        for index, (site, listener) in enumerate(self._listeners):
            if site in self._sites[generation]:
                group = self._groups.get(index) or Group(listener, self._backlog)
                self._grow(group, 2 * slots)
                self._groups[index] = group

    def close_generation(self, generation: int) -> None:
        """No worker of that generation is left, or will be made."""
        self._sites.pop(generation, None)

    def take(self, generation: int) -> int | None:
        """A place for a new worker of that generation; None: its engines don't need one.

        Raises:
            ConfigError: there is no room for another.
        """
        if not self._sites.get(generation):
            return None
        places = range(min(map(len, self._groups.values())))
        free = [place for place in places if place not in self._taken]
        if free:
            place = max(free, key=lambda place: (self.waiting(place), -place))
        else:
            place = len(places)
            for group in self._groups.values():
                self._grow(group, place + 1)
        self._taken.add(place)
        return place

    def release(self, place: int | None) -> None:
        """The worker that had it is gone."""
        if place is not None:
            self._taken.discard(place)

    def descriptors(self, handle: Handle) -> list[int]:
        """What a worker listens on, a descriptor for each listener of the cluster."""
        sites = self._sites.get(handle.generation, frozenset())
        return [
            (self._groups[index].at(handle.place) if site in sites and handle.place is not None else listener.sock)
            .fileno()
            for index, (site, listener) in enumerate(self._listeners)
        ]  # fmt: skip

    def waiting(self, place: int) -> int:
        """How many connections wait there, in all groups."""
        return sum(group.waiting(place) for group in self._groups.values() if place < len(group))

    def stranded(self) -> bool:
        """Whether somebody waits at a place that nobody has."""
        if not self._groups:
            return False
        places = range(max(map(len, self._groups.values())))
        # Where fed engines share place 0, nobody has it by name.
        shared = any(not sites for sites in self._sites.values())
        return any(self.waiting(each) for each in places if each not in self._taken and (each or not shared))

    def steer(self, roster: Iterable[Handle], now: float) -> None:
        """Let new connections go to those that serve now, and aren't stuck."""
        if not self._groups:
            return
        serving = [handle for handle in roster if handle.state is State.READY]
        well = [handle for handle in serving if handle.reason != "hang" and not self._late(handle, now)]
        places = tuple(sorted({handle.place or 0 for handle in well or serving}))
        if places and places != self._steered:
            self._steered = places
            for group in self._groups.values():
                group.steer(places)

    def shut_doors(self) -> None:
        """Let nobody new in, at any place."""
        for group in self._groups.values():
            group.shut_doors()

    def close(self) -> None:
        """Close what was opened here; the listeners themselves are the estate's."""
        for group in self._groups.values():
            group.close()
        self._groups.clear()

    def _late(self, handle: Handle, now: float) -> bool:
        return 0.0 < self._board.row(handle.row).heartbeat < now

    def _grow(self, group: Group, places: int) -> None:
        try:
            group.grow(places)
        except ConfigError:
            if len(group) < 2:
                raise
            # It was possible before: descriptors have run out, or a stranger has come. What there is serves on.
            logger.exception("no more than %d places can be opened on %s", len(group), group.listener.address)
            raise
