"""Steer new connections to workers whose engines accept connections themselves.

Each worker of such an engine has a *place* of its own in the steered group: a listening socket with its own accept queue. It has
the place from the order to make it until its exit is recorded; its successor gets another one. A free place stays open.
Connections are steered to the workers that are ready. First the place of a successor is added, then that of its predecessor is
left out. The predecessor goes on accepting the connections that are in its queue already (`linux.steered_group`).

- *A worker crashed*: the connections in its queue are served by the next worker that gets the place. A free place with waiting
  connections is given out first. If no worker is to be made, `has_stranded_clients` reports them, and a worker is recycled.
- *A worker is stuck*: its place is left out as soon as its heartbeat is late, long before it is killed.
- *No worker is ready*: connections go on to the places that got them before, and wait.
- *A reload changes the engine*: workers of an engine that the acceptor feeds share place 0, the ordinary listener. The opposite
  change is refused while there is a keeper: connections at rest come back through queues that such an engine doesn't read.

**Steering is a closed loop.** While requests come, the master polls the gauge of each worker (requests begun and ended, in the
scoreboard) every 10 ms. If a worker has been at the same request in two polls, handlers are long. Then it polls every
millisecond, and steers to the workers with the fewest requests under way (`core.planning.lightest`), so that no new client waits
behind a handler that holds its loop. Workers with more than their share of connections are always left out. A poll takes about 5
µs, another BPF program 25 µs. After a second without a request the polls stop; the next tick of the master finds out when
requests come again.

Where no engine accepts connections itself, there is no group, and this module does nothing.
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
_FINE_POLL_INTERVAL_S = 0.001
"""Seconds between two polls of the gauges: usually, and while handlers are long."""
_LONG_HANDLERS_MEMORY_S = 2.0
"""Seconds after which handlers count as short again."""
_MAX_MEAN_LATENESS_S = 0.003
"""Mean lateness of polls in seconds above which steering by requests does harm: until the next poll all go to one worker."""
_LATENESS_SMOOTHING = 0.1
"""Weight of the newest poll in that mean."""
_MAX_PROOF_S = 0.01
"""Seconds for which the test of another place may hold the master's loop."""
_IDLE_AFTER_S = 1.0
"""Seconds without a request after which the polls stop."""


class Steering:
    """The steered groups of a cluster, one for each steered listener. A worker has the same place in all of them."""

    def __init__(self, listeners: Sequence[tuple[int, Listener]], board: Scoreboard, backlog: int) -> None:
        """Make an object that steers no listener yet."""
        self._listeners = listeners
        self._board = board
        self._backlog = backlog
        self._steered_apps: dict[int, frozenset[int]] = {}
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

    def open(self, generation: int, steered_apps: Iterable[int], slots: int) -> None:
        """Open places for a generation whose workers accept the connections of these apps themselves.

        Args:
            slots: number of workers; there are two places for each.

        Raises:
            ConfigError: an address that can't be steered.
        """
        self._steered_apps[generation] = frozenset(steered_apps)
        for index, (app_index, listener) in enumerate(self._listeners):
            if app_index in self._steered_apps[generation]:
                group = self._groups.get(index)
                if group is None:
                    self._groups[index] = self._make_group(listener, 2 * slots)
                else:
                    self._enlarge(group, 2 * slots)

    def steered_apps(self, generation: int) -> frozenset[int]:
        """Return the apps whose engine takes connections itself in that generation."""
        return self._steered_apps.get(generation, frozenset())

    def check_change(self, before: int, steered_apps: Iterable[int]) -> None:
        """Check that a reload may lead to engines that accept connections of these apps themselves.

        Raises:
            ConfigError: they are fed now, and connections at rest could not come back from the keeper.
        """
        if set(steered_apps) - self._steered_apps.get(before, frozenset()):
            raise ConfigError("connections that rest at the keeper can't come to it: restart to change to that engine")

    def take(self, generation: int) -> int | None:
        """Return a place for a new worker of that generation; None: its engines don't need one.

        Raises:
            ConfigError: no more places can be opened.
        """
        if not self._steered_apps.get(generation):
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
        """Free the place of a worker that has ended."""
        if place is not None:
            self._taken.discard(place)

    def descriptors(self, handle: WorkerHandle) -> list[int]:
        """Return the sockets that a worker listens on, a descriptor for each listener of the cluster."""
        steered_apps = self._steered_apps.get(handle.generation, frozenset())
        return [
            (self._groups[index].at(handle.place) if app_index in steered_apps and handle.place is not None else listener.sock)
            .fileno()
            for index, (app_index, listener) in enumerate(self._listeners)
        ]  # fmt: skip

    def waiting(self, place: int) -> int:
        """Return how many connections wait at a place, in all groups."""
        return sum(group.waiting(place) for group in self._groups.values() if place < len(group))

    def queued(self) -> int | None:
        """Return how many connections wait to be accepted, at all listeners, steered or not; None: it isn't known."""
        sockets: list[socket.socket] = []
        for index, (_, listener) in enumerate(self._listeners):
            group = self._groups.get(index)
            sockets += [listener.sock] if group is None else map(group.at, range(len(group)))
        return accept_queues.waiting(sockets)

    def has_stranded_clients(self) -> bool:
        """Return True if connections wait at a place that no worker has."""
        if not self._groups:
            return False
        places = range(max(map(len, self._groups.values())))
        # Workers of fed engines share place 0; it is in no handle.
        shared = any(not steered_apps for steered_apps in self._steered_apps.values())
        return any(self.waiting(each) for each in places if each not in self._taken and (each or not shared))

    def steer(self, workers: Iterable[WorkerHandle], now: float) -> None:
        """Steer new connections to the workers that are ready and not stuck."""
        if not self._groups:
            return
        serving = [handle for handle in workers if handle.state is WorkerState.READY]
        healthy = [handle for handle in serving if handle.reason != "hang" and not self._is_late(handle, now)]
        self._serving = [(handle.place or 0, self._board.row(handle.row)) for handle in healthy or serving]
        self._gauges = {place: self._gauges.get(place, (0, 0)) for place, _ in self._serving}
        places = {place for place, _ in self._serving}
        # While gauges are polled, the last choice stands for workers that are still ready. The next poll adds a new worker.
        chosen = places.intersection(self._steered) if self._timer is not None else places
        self._steer_to(sorted(chosen or places))
        if self._timer is None and len(self._serving) > 1:
            self._poll_gauges()

    def _steer_to(self, places: Sequence[int]) -> None:
        """Steer new connections to these places."""
        if places and tuple(places) != self._steered:
            for group in self._groups.values():
                group.steer(places)
            self._steered = tuple(places)  # not before, so that a change that failed is tried again

    def _poll_gauges(self) -> None:
        """Steer by the load of each worker, and schedule the next poll while requests come."""
        now = time.monotonic()
        self._timer = None
        if len(self._serving) < 2:
            return
        loads = []
        for place, row in self._serving:
            # `ended` is read before `begun`: else a request that begins and ends between the two reads would make it the greater
            # one.
            ended = row.ended
            begun = row.begun
            gauge = begun, ended
            if gauge != self._gauges.get(place):
                self._gauges[place] = gauge
                self._moved_at = now
            elif begun > ended:
                self._long_at = self._moved_at = now
            loads.append(Load(place, begun - ended, max(0, row.connections)))
        if now - self._moved_at < _IDLE_AFTER_S:
            long = now - self._long_at < _LONG_HANDLERS_MEMORY_S
            late = max(0.0, now - self._due) if self._due else 0.0
            self._lag += _LATENESS_SMOOTHING * (late - self._lag)
            self._steer_to(lightest(loads, by_requests=long and self._lag < _MAX_MEAN_LATENESS_S))
            wait = _FINE_POLL_INTERVAL_S if long else _COARSE_POLL_INTERVAL_S
            self._due = now + wait
            self._timer = asyncio.get_running_loop().call_later(wait, self._poll_gauges)
        else:
            self._due = 0.0

    def shut_doors(self, warn: Callable[[str], None]) -> list[Listener]:
        """Refuse new connections at all listeners, steered or not. Return the listeners that could not be shut."""
        return [
            listener
            for index, (_, listener) in enumerate(self._listeners)
            if not shut(self._groups.get(index) or listener, listener.address, warn)
        ]

    def close(self) -> None:
        """Close the groups. The listeners belong to `MasterResources`."""
        if self._timer is not None:
            self._timer.cancel()
        self._serving = []
        for group in self._groups.values():
            group.close()
        self._groups.clear()

    def _is_late(self, handle: WorkerHandle, now: float) -> bool:
        return handle.deadline(self._board.row(handle.row), now) < now

    def _make_group(self, listener: Listener, places: int) -> SteeredGroup:
        """Make a group. Usually no client is served yet, so its test may take time."""
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
            # Descriptors have run out, or another process listens there too. The places that exist serve on.
            logger.exception("no more than %d places can be opened on %s", len(group), group.listener.address)
            raise
