"""What the master decides, as pure functions of what it knows and the time.

`plan` compares what is wanted with what is there and says what to do next; `Restarts` says when a crashed worker may be
replaced, `Pauses` when a helper may. All are tested without a process and with a clock of the test's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .lifecycle import LIVE, State

FIRST_BACKOFF = 0.1
BACKOFF_FACTOR = 1.5
LONGEST_BACKOFF = 15.0
MOST_STEPS = 50
"""Steps of growth after which every back-off has reached its longest."""
FAIR = 1.02
"""Share of the mean number of connections that a worker may have before it is steered around (and one more)."""
SHORT_LIFE = 1.0
"""A worker that lived for less has achieved nothing: its slot's next one waits a little longer each time."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the cluster should be.

    Attributes:
        slots: how many workers.
        generation: of all of them.
        surge: how many may be replaced at a time.
    """

    slots: int
    generation: int
    surge: int = 1


@dataclass(frozen=True, slots=True)
class Seen:
    """One worker, as far as decisions need to know it.

    Attributes:
        replace: since when it is to be replaced within its generation; None: it isn't. First come, first served.
    """

    incarnation: int
    slot: int
    generation: int
    state: State
    replace: float | None = None


@dataclass(frozen=True, slots=True)
class Spawn:
    """A worker is needed in this slot.

    Attributes:
        generation: of which; None: the wanted one.
    """

    slot: int
    generation: int | None = None


@dataclass(frozen=True, slots=True)
class Retire:
    """This worker is to leave politely: its successor serves, or nobody wants its slot."""

    incarnation: int


Decision = Spawn | Retire


def plan(
    wanted: Wanted,
    workers: Iterable[Seen],
    *,
    barred: frozenset[int] = frozenset(),
    retire: bool = True,
    meanwhile: int | None = None,
) -> list[Decision]:
    """What to do next.

    Each wanted slot has one live worker of the wanted generation. One that is outdated is retired only after its successor
    is ready, and at most `surge` slots are between the two at a time; a slot whose last retirement is still under way waits.
    Slots beyond the wanted number are retired.

    Args:
        barred: slots in which nothing may be spawned yet (they back off).
        retire: false: successors may be made, but predecessors stay (the new generation has to prove itself first).
        meanwhile: the generation that slots get which nobody serves, while the wanted one has to prove itself; None: that
            one.
    """
    decisions: list[Decision] = []
    by_slot, leaving = _by_slot(workers)
    outdated: list[tuple[float, int]] = []
    crowded: list[tuple[float, int]] = []  # between two workers that are both outdated by now
    rolling = 0
    for slot in range(wanted.slots):
        live = by_slot.pop(slot, [])
        old, new = _divide(live, wanted.generation)
        if not any(meanwhile in (None, worker.generation) or worker.state is State.READY for worker in live):
            # Nobody is there; or only one by which new code is tried, beside which the old one has died.
            rolling += bool(live)
            decisions += [Spawn(slot, meanwhile)] if slot not in barred else []
        elif old and not new:
            since = min(worker.replace or 0.0 for worker in old)
            (crowded if len(old) > 1 else outdated).append((since, slot))
        elif old and retire and any(worker.state is State.READY for worker in new):
            decisions += [Retire(worker.incarnation) for worker in old]
        elif old:
            rolling += 1
    room = max(0, wanted.surge - rolling)
    for queue in crowded, outdated:
        free = [slot for _, slot in sorted(queue) if slot not in barred | leaving]
        decisions += [Spawn(slot) for slot in free[:room]]
        room = max(0, room - len(queue))
    decisions += [Retire(worker.incarnation) for extra in by_slot.values() for worker in extra]
    return decisions


def _by_slot(workers: Iterable[Seen]) -> tuple[dict[int, list[Seen]], set[int]]:
    """The live workers of each slot, and the slots in which others are still leaving."""
    live: dict[int, list[Seen]] = {}
    leaving = set()
    for worker in workers:
        if worker.state in LIVE:
            live.setdefault(worker.slot, []).append(worker)
        else:
            leaving.add(worker.slot)
    return live, leaving


def _divide(workers: Sequence[Seen], generation: int) -> tuple[list[Seen], list[Seen]]:
    """The outdated ones and the current ones of a slot."""
    old = [worker for worker in workers if worker.replace is not None or worker.generation != generation]
    return old, [worker for worker in workers if worker not in old]


class Load(NamedTuple):
    """What a worker that takes connections itself has to do.

    Attributes:
        place: in the steered group.
        in_flight: requests under way.
        connections: open, as far as it has counted them.
    """

    place: int
    in_flight: int
    connections: int


def lightest(loads: Sequence[Load], *, by_requests: bool) -> list[int]:
    """The places that new connections should go to; all of them where there is nothing to choose.

    Those with the fewest requests under way, and of them those that haven't clearly more than their share of connections.

    Args:
        by_requests: handlers are long; while they are short, requests under way say nothing about the next moment.
    """
    fewest = min((load.in_flight for load in loads), default=0)
    free = [load for load in loads if load.in_flight == fewest] if by_requests else list(loads)
    share = sum(load.connections for load in loads) / max(1, len(loads))
    fair = [load for load in free if load.connections <= share * FAIR + 1]
    return sorted(load.place for load in fair or free)


@dataclass(slots=True)
class Restarts:
    """When a crashed worker may be replaced.

    The first crash in a slot costs nothing: the successor is forked at once. A slot whose workers die young waits longer each
    time (×1.5, at most 15 s; the idea of PM2 and einhorn). More than `limit` crashes of the whole cluster within `window`
    seconds make it *degraded* (Erlang's restart intensity): then every restart waits, until the window has passed.
    """

    limit: int
    window: float
    _crashes: deque[float] = field(default_factory=deque)
    _young: dict[int, int] = field(default_factory=dict)
    _not_before: dict[int, float] = field(default_factory=dict)
    degraded: bool = False

    def crashed(self, slot: int, uptime: float, now: float) -> None:
        """A worker died that wasn't meant to. `uptime` and `now` in seconds, `now` from a monotonic clock."""
        self._crashes.append(now)
        self._forget(now)
        young = self._young.get(slot, 0) + 1 if uptime < SHORT_LIFE else 0
        self._young[slot] = young
        wait = 0.0 if young <= 1 else _backoff(FIRST_BACKOFF, young - 2)
        if len(self._crashes) > self.limit:
            self.degraded = True
            excess = len(self._crashes) - self.limit
            wait = max(wait, _backoff(1.0, excess - 1))
        self._not_before[slot] = now + wait

    def settled(self, slot: int) -> None:
        """The slot's worker is ready and has lived for long enough to count as healthy."""
        self._young.pop(slot, None)
        self._not_before.pop(slot, None)

    def barred(self, now: float) -> frozenset[int]:
        """Slots that have to wait still."""
        return frozenset(slot for slot, when in self._not_before.items() if when > now)

    def next_time(self, now: float) -> float | None:
        """When the first of them may go on, or None."""
        return min((when for when in self._not_before.values() if when > now), default=None)

    def crashes(self, now: float) -> int:
        """How many within the window."""
        self._forget(now)
        return len(self._crashes)

    def recovered(self, now: float) -> bool:
        """Whether a degraded cluster may be called healthy again; it is so from then on."""
        if self.degraded and not self.crashes(now):
            self.degraded = False
            return True
        return False

    def _forget(self, now: float) -> None:
        while self._crashes and self._crashes[0] <= now - self.window:
            self._crashes.popleft()


def _backoff(first: float, steps: int) -> float:
    """Seconds to wait after so many steps of growth."""
    # Bounded before the power is taken: a night of crashes would take it beyond what a float can hold.
    return min(LONGEST_BACKOFF, first * BACKOFF_FACTOR ** min(steps, MOST_STEPS))


@dataclass(slots=True)
class Pauses:
    """How long one waits until a helper that has ended is started again.

    Not at all after its first end; then longer each time, until one has lived for a while.

    Attributes:
        settled: seconds of life after which its end counts as the first one again.
        first: seconds of the second pause; each later one is twice as long.
        longest: seconds that none exceeds.
    """

    settled: float
    first: float
    longest: float
    _next: float = 0.0

    def after(self, lived: float) -> float:
        """The pause, in seconds, after the end of one that has lived for so many."""
        pause = 0.0 if lived >= self.settled else self._next
        self._next = min(max(self.first, 2 * pause), self.longest)
        return pause
