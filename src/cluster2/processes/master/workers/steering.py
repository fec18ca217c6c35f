"""Who gets new connections, where engines take them by themselves: a place in the steered group for each worker.

Each worker of such an engine has a place of its own, from the order to make it until it is buried; its successor has another. A
place that is free again is kept open. Connections are steered to the workers that serve: first the successor's place is added,
then the predecessor's is left out, and that one goes on accepting what is on its way (`kernel.steering`).

- *A worker crashed*: what waits in its queue is served by whoever gets its place next: a free place in which somebody waits is
  given out first. If nobody is to be made just then, `has_stranded_clients` says so, and a worker is recycled for it.
- *A worker is stuck*: it is left out as soon as its heartbeat is late, long before it is killed.
- *None serves*: connections go on to where they went, and wait.
- *A change of engine by a reload*: workers of an engine that is fed share place 0, the ordinary listener. The other way is
  refused while there is a keeper: what rests there comes back through queues that such an engine doesn't read.

**The loop is closed**: while requests come the master looks at each worker's gauge (requests begun and ended, in the scoreboard)
every 10 ms. Where one has been at the same request between two looks, handlers are long; then it looks every millisecond, and
steers to the workers with the fewest requests under way (`core.planning.lightest`), so that nobody new waits behind a handler that holds
its loop. At all times those are left out that have more than their share of connections. A look costs some 5 µs, another program
25; with no request in a second it stops, and a tick of the master's finds out when they come again.

Where no engine takes connections itself, there is no group, and all of this is nothing.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable, Sequence

from ....core.lifecycle import WorkerState
from ....core.planning import Load, lightest
from ....errors import ConfigError
from ....linux import accept_queues
from ....linux.listeners import Listener, shut
from ....linux.scoreboard import Row, Scoreboard
from ....linux.steered_group import SteeredGroup
from ..state.handle import WorkerHandle

logger = logging.getLogger("cluster2.master")

_COARSE_POLL_INTERVAL_S = 0.010
FINE_POLL_INTERVAL_S = 0.001
"""Seconds between two looks at the gauges: usually, and while handlers are long."""
_LONG_HANDLERS_MEMORY_S = 2.0
"""Seconds after which handlers count as short again."""
_MAX_MEAN_LATENESS_S = 0.003
"""Seconds by which looks are late in the mean when steering by them does harm: all would go to one until the next look."""
_LATENESS_SMOOTHING = 0.1
"""Share of the newest look in that mean."""
_MAX_PROOF_S = 0.01
"""Seconds for which the master's loop may stand still because another place can't be proved."""
IDLE_AFTER_S = 1.0
"""Seconds without a request after which nobody looks."""


class Steering:
    """The groups of a cluster, one for each listener that is steered, and who has which place in all of them."""

    def __init__(self, listeners: Sequence[tuple[int, Listener]], board: Scoreboard, backlog: int) -> None:
        """Nothing is steered."""
        self._listeners = listeners
        self._board = board
        self._backlog = backlog
        self._sites: dict[int, frozenset[int]] = {}
        self._groups: dict[int, SteeredGroup] = {}  # by the listener's index
        self._taken: set[int] = set()
        self._steered: tuple[int, ...] = (0,)
        self._serving: list[tuple[int, Row]] = []  # place and row of each worker that may get connections
        self._gauges: dict[int, tuple[int, int]] = {}
        self._moved_at = 0.0
        self._long_at = 0.0
        self._due = 0.0
        self._lag = 0.0
        self._timer: asyncio.TimerHandle | None = None

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
                group = self._groups.get(index)
                if group is None:
                    self._groups[index] = self._make_group(listener, 2 * slots)
                else:
                    self._enlarge(group, 2 * slots)

    def sites(self, generation: int) -> frozenset[int]:
        """Return the apps whose engine takes connections itself in that generation."""
        return self._sites.get(generation, frozenset())

    def check_change(self, before: int, sites: Iterable[int]) -> None:
        """Whether a reload may lead to engines that take connections of these apps themselves.

        Raises:
            ConfigError: now they are fed: what rests at the keeper would find nobody to come back to.
        """
        if set(sites) - self._sites.get(before, frozenset()):
            raise ConfigError("connections that rest at the keeper can't come to it: restart to change to that engine")

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
                self._enlarge(group, place + 1)
        self._taken.add(place)
        return place

    def release(self, place: int | None) -> None:
        """The worker that had it is gone."""
        if place is not None:
            self._taken.discard(place)

    def descriptors(self, handle: WorkerHandle) -> list[int]:
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

    def queued(self) -> int | None:
        """Return how many connections wait to be accepted, at all listeners, steered or not; None: it isn't known."""
        sockets: list[socket.socket] = []
        for index, (_, listener) in enumerate(self._listeners):
            group = self._groups.get(index)
            sockets += [listener.sock] if group is None else map(group.at, range(len(group)))
        return accept_queues.waiting(sockets)

    def has_stranded_clients(self) -> bool:
        """Whether somebody waits at a place that nobody has."""
        if not self._groups:
            return False
        places = range(max(map(len, self._groups.values())))
        # Where fed engines share place 0, nobody has it by name.
        shared = any(not sites for sites in self._sites.values())
        return any(self.waiting(each) for each in places if each not in self._taken and (each or not shared))

    def steer(self, roster: Iterable[WorkerHandle], now: float) -> None:
        """Let new connections go to those that serve now, and aren't stuck."""
        if not self._groups:
            return
        serving = [handle for handle in roster if handle.state is WorkerState.READY]
        well = [handle for handle in serving if handle.reason != "hang" and not self._is_late(handle, now)]
        self._serving = [(handle.place or 0, self._board.row(handle.row)) for handle in well or serving]
        self._gauges = {place: self._gauges.get(place, (0, 0)) for place, _ in self._serving}
        places = {place for place, _ in self._serving}
        # While the loop is closed its choice stands, as far as those still serve; a newcomer is seen with the next look.
        chosen = places.intersection(self._steered) if self._timer is not None else places
        self._steer_to(sorted(chosen or places))
        if self._timer is None and len(self._serving) > 1:
            self._poll_gauges()

    def _steer_to(self, places: Sequence[int]) -> None:
        """Let new connections go there."""
        if places and tuple(places) != self._steered:
            for group in self._groups.values():
                group.steer(places)
            self._steered = tuple(places)  # not before: what failed is tried again

    def _poll_gauges(self) -> None:
        """Steer by what each worker has to do, and look again soon, while there is anything."""
        now = time.monotonic()
        self._timer = None
        if len(self._serving) < 2:
            return
        loads = []
        for place, row in self._serving:
            ended = (
                row.ended
            )  # before `begun`: else a request that begins and ends in between would make it the greater one
            begun = row.begun
            gauge = begun, ended
            if gauge != self._gauges.get(place):
                self._gauges[place] = gauge
                self._moved_at = now
            elif begun > ended:
                self._long_at = self._moved_at = now
            loads.append(Load(place, begun - ended, max(0, row.connections)))
        if now - self._moved_at < IDLE_AFTER_S:
            long = now - self._long_at < _LONG_HANDLERS_MEMORY_S
            late = max(0.0, now - self._due) if self._due else 0.0
            self._lag += _LATENESS_SMOOTHING * (late - self._lag)
            self._steer_to(lightest(loads, by_requests=long and self._lag < _MAX_MEAN_LATENESS_S))
            wait = FINE_POLL_INTERVAL_S if long else _COARSE_POLL_INTERVAL_S
            self._due = now + wait
            self._timer = asyncio.get_running_loop().call_later(wait, self._poll_gauges)
        else:
            self._due = 0.0

    def shut_doors(self, warn: Callable[[str], None]) -> list[Listener]:
        """Let no newcomer in, at any listener, steered or not. Return the listeners whose doors stay open."""
        return [
            listener
            for index, (_, listener) in enumerate(self._listeners)
            if not shut(self._groups.get(index) or listener, listener.address, warn)
        ]

    def close(self) -> None:
        """Close what was opened here; the listeners themselves are the estate's."""
        if self._timer is not None:
            self._timer.cancel()
        self._serving = []
        for group in self._groups.values():
            group.close()
        self._groups.clear()

    def _is_late(self, handle: WorkerHandle, now: float) -> bool:
        return handle.deadline(self._board.row(handle.row), now) < now

    def _make_group(self, listener: Listener, places: int) -> SteeredGroup:
        """A new group. Usually nobody is served yet, so there is time to prove it."""
        group = SteeredGroup(listener, self._backlog)
        try:
            group.grow(places)
        except ConfigError:
            group.close()
            raise
        return group

    def _enlarge(self, group: SteeredGroup, places: int) -> None:
        try:
            group.grow(places, _MAX_PROOF_S)
        except ConfigError:
            # It was possible before: descriptors have run out, or a stranger has come. What there is serves on.
            logger.exception("no more than %d places can be opened on %s", len(group), group.listener.address)
            raise
