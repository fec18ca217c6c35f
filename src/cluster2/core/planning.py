"""Decide which workers the master makes and retires, and when a crashed process may be replaced.

`plan` compares the wanted workers with the observed ones and returns the next decisions. `Restarts` has the back-off of slots,
`RestartBackoff` that of helpers. All of it is pure: tests need no processes, and give the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .lifecycle import LIVE_STATES, WorkerState

_FIRST_BACKOFF_S = 0.1
_BACKOFF_FACTOR = 1.5
MAX_BACKOFF_S = 15.0
_MAX_BACKOFF_STEPS = 50
"""Steps of growth after which every back-off has reached its longest."""
FAIR_SHARE = 1.02
"""The multiple of the mean number of connections that is a worker's fair share. A worker that has more, by one at least, gets no new
connections (`lightest`), and hands over its surplus (`HandoffPolicy.handoff_surplus`)."""
SHORT_LIFE_S = 1.0
"""Seconds. An earlier end of a worker counts as a failed start: its slot backs off, longer each time."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The workers that the cluster should have.

    Attributes:
        slots: the number of workers.
        generation: the generation of all of them.
        surge: how many may be replaced at a time.
    """

    slots: int
    generation: int
    surge: int = 1


@dataclass(frozen=True, slots=True)
class WorkerView:
    """The facts about a worker that decisions need.

    Attributes:
        replace: since when the worker is to be replaced within its generation; None: it isn't. The earliest is replaced first.
    """

    incarnation: int
    slot: int
    generation: int
    state: WorkerState
    replace: float | None = None


@dataclass(frozen=True, slots=True)
class Spawn:
    """Make a worker of this generation in this slot."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Retire:
    """Have this worker leave: its successor serves, its slot has a better worker, or its slot isn't wanted.

    The master drains it. One that is stuck doesn't hear the order, and is killed (`WorkerSupervisor.retire`).
    """

    incarnation: int


Decision = Spawn | Retire


class _Slot(NamedTuple):
    """The live workers of one wanted slot that `plan` keeps: at most one of each kind."""

    slot: int
    current: WorkerView | None
    outdated: WorkerView | None


def plan(
    wanted: Wanted,
    workers: Iterable[WorkerView],
    *,
    available: Collection[int] | None = None,
    blocked_slots: frozenset[int] = frozenset(),
    may_retire: bool = True,
    fallback_generation: int | None = None,
) -> list[Decision]:
    """Return what to do next, for every set of workers that can be observed.

    Each wanted slot has one live worker (`lifecycle.LIVE_STATES`) of the wanted generation. An outdated worker is retired only after
    its successor is ready. A slot whose last retirement is still under way waits. Slots beyond the wanted number are retired.

    Invariants, whatever is observed:

    - After the decisions at most `wanted.slots + wanted.surge` workers are live. Workers that drain do not count: their clients
      decide how long that takes, and a reload does not wait for them.
    - A slot keeps at most one current and one outdated worker. All others are surplus and are retired.
    - A wanted slot that has a ready worker keeps one.

    Args:
        available: the generations of which a worker can be made now; None: all.
        blocked_slots: slots in which no worker may be made yet (they back off).
        may_retire: false: successors may be made, but predecessors stay (the new generation has to prove itself first).
        fallback_generation: the generation that serves while the wanted one has to prove itself; None: there is none. A slot
            without a ready worker gets a worker of it. If it is not available, the slot makes do with the wanted one.
    """
    fallback = fallback_generation if available is None or fallback_generation in available else None
    by_slot, slots_draining = _by_slot(workers)
    slots, surplus = _keep_best(wanted, by_slot, fallback_generation, fallback_available=fallback is not None)
    slots_draining |= {worker.slot for worker in surplus}
    decisions: list[Decision] = [Retire(worker.incarnation) for worker in surplus]
    pairs = []
    for each in slots:
        if each.current is None or each.outdated is None:
            continue
        if may_retire and each.current.state is WorkerState.READY:
            decisions.append(Retire(each.outdated.incarnation))
        else:
            pairs.append(each)
    decisions += _end_surplus_pairs(pairs, wanted.surge)
    new = None if available is not None and wanted.generation not in available else wanted.generation
    first = new if fallback is None else fallback
    if first is not None:
        empty = [each.slot for each in slots if each.current is None and each.outdated is None]
        decisions += [Spawn(slot, first) for slot in empty if slot not in blocked_slots]
    spare = max(0, wanted.surge - len(pairs))
    beside = _fallbacks(slots, fallback) + _successors(slots, new, slots_draining)
    decisions += [spawn for spawn in beside if spawn.slot not in blocked_slots][:spare]
    return decisions


def _by_slot(workers: Iterable[WorkerView]) -> tuple[dict[int, list[WorkerView]], set[int]]:
    """Return the live workers of each slot, and the slots in which others drain or are dying."""
    live: dict[int, list[WorkerView]] = {}
    slots_draining = set()
    for worker in workers:
        if worker.state in LIVE_STATES:
            live.setdefault(worker.slot, []).append(worker)
        else:
            slots_draining.add(worker.slot)
    return live, slots_draining


def _keep_best(
    wanted: Wanted,
    by_slot: Mapping[int, list[WorkerView]],
    fallback_generation: int | None,
    *,
    fallback_available: bool,
) -> tuple[list[_Slot], list[WorkerView]]:
    """Return the workers that each wanted slot keeps, and all others, which are surplus."""
    rank = {wanted.generation: 1, fallback_generation: 2}

    def merit(worker: WorkerView) -> tuple[bool, int, bool, int]:
        # A ready worker always wins, so that no slot loses the one that serves it; then proved code, then the wanted one,
        # over the code of an abandoned reload. The oldest of equals is nearest to being ready.
        return (
            worker.state is WorkerState.READY,
            rank.get(worker.generation, 0),
            worker.replace is None,
            -worker.incarnation,
        )

    slots, kept = [], set()
    for slot in range(wanted.slots):
        live = by_slot.get(slot, [])
        current = [worker for worker in live if worker.replace is None and worker.generation == wanted.generation]
        outdated = [
            worker
            for worker in live
            # If the fallback generation is available, an outdated worker of another one that isn't ready is of no use.
            if worker not in current
            and (
                not fallback_available or worker.generation == fallback_generation or worker.state is WorkerState.READY
            )
        ]
        best = _Slot(slot, max(current, key=merit, default=None), max(outdated, key=merit, default=None))
        slots.append(best)
        kept |= {worker.incarnation for worker in best[1:] if isinstance(worker, WorkerView)}
    live_workers = (worker for _, live in sorted(by_slot.items()) for worker in live)
    return slots, [worker for worker in live_workers if worker.incarnation not in kept]


def _end_surplus_pairs(pairs: list[_Slot], surge: int) -> list[Decision]:
    """Return the retirements that leave at most `surge` slots with two live workers.

    More than `surge` are observed when a reload has lowered `max_surge`, or when the fallback generation became available
    again after workers of the new one had taken its place.
    """

    def is_ready(worker: WorkerView | None) -> bool:
        return worker is not None and worker.state is WorkerState.READY

    # Pairs whose new worker is ready go on, since they end soonest. `sorted` is stable: of equals, the lower slots go on.
    surplus = sorted(pairs, key=lambda pair: not is_ready(pair.current))[surge:]
    # The outdated worker stays, unless only the current one serves.
    only_current = [pair for pair in surplus if is_ready(pair.current) and not is_ready(pair.outdated)]
    ended = [pair.outdated if pair in only_current else pair.current for pair in surplus]
    return [Retire(worker.incarnation) for worker in ended if worker is not None]


def _fallbacks(slots: Iterable[_Slot], fallback: int | None) -> list[Spawn]:
    """Return the slots whose only worker is unproved and not ready, because the old worker beside it has ended."""
    if fallback is None:
        return []
    return [
        Spawn(slot, fallback)
        for slot, current, outdated in slots
        if outdated is None and current is not None and current.state is not WorkerState.READY
    ]


def _successors(slots: Iterable[_Slot], generation: int | None, slots_draining: Collection[int]) -> list[Spawn]:
    """Return the slots whose only worker is outdated, in the order in which they became outdated."""
    if generation is None:
        return []
    due = sorted(
        (outdated.replace or 0.0, slot)
        for slot, current, outdated in slots
        if outdated is not None and current is None and slot not in slots_draining
    )
    return [Spawn(slot, generation) for _, slot in due]


class Load(NamedTuple):
    """The load of a worker whose engine accepts connections itself.

    Attributes:
        place: its index in the group of steered sockets.
        in_flight: requests under way.
        connections: open connections that the worker has counted.
    """

    place: int
    in_flight: int
    connections: int


def lightest(loads: Sequence[Load], *, by_requests: bool) -> list[int]:
    """Return the places that new connections should go to; all places if no worker is better than the others.

    These are the workers with the fewest requests under way. A worker with clearly more than its share
    of connections is left out.

    Args:
        by_requests: handlers are long, so the number of requests under way counts. While handlers are short, it doesn't predict
            the next moment.
    """
    # A negative number is a worker's false claim: it must not draw all connections to that worker.
    fewest = min((load.in_flight for load in loads if load.in_flight >= 0), default=0)
    free = [load for load in loads if load.in_flight == fewest] if by_requests else []
    free = free or list(loads)
    share = sum(load.connections for load in loads) / max(1, len(loads))
    fair = [load for load in free if load.connections <= share * FAIR_SHARE + 1]
    return sorted(load.place for load in fair or free)


class Backoff(NamedTuple):
    """A slot that backs off: its next worker isn't made yet.

    Attributes:
        seconds: seconds until it may be made.
        young_deaths: consecutive workers of the slot that ended within `SHORT_LIFE_S`.
    """

    slot: int
    seconds: float
    young_deaths: int


@dataclass(slots=True)
class Restarts:
    """The back-off of slots whose workers crash.

    The first crash in a slot has no delay: its next worker is made at once. If workers of a slot end within `SHORT_LIFE_S`, the slot waits
    longer each time (×1.5, at most 15 s, as PM2 and einhorn do). More than `limit` crashes of the whole cluster within `window`
    seconds make the cluster *degraded* (Erlang's restart intensity): then every restart waits until the window has passed.
    """

    limit: int
    window: float
    _crashes: deque[float] = field(default_factory=deque)
    _young: dict[int, int] = field(default_factory=dict)
    _not_before: dict[int, float] = field(default_factory=dict)
    _refused: dict[int, int] = field(default_factory=dict)
    degraded: bool = False

    def crashed(self, slot: int, uptime: float, now: float) -> float:
        """Count the crash of a worker.

        Args:
            uptime: seconds from the order to fork the worker to its end.
            now: seconds on a monotonic clock.

        Returns:
            Seconds until the slot's next worker may be made.
        """
        self._crashes.append(now)
        self._forget(now)
        young = self._young.get(slot, 0) + 1 if uptime < SHORT_LIFE_S else 0
        self._young[slot] = young
        wait = 0.0 if young <= 1 else _backoff(_FIRST_BACKOFF_S, young - 2)
        if len(self._crashes) > self.limit:
            self.degraded = True
            excess = len(self._crashes) - self.limit
            wait = max(wait, _backoff(1.0, excess - 1))
        self._not_before[slot] = now + wait
        return wait

    def refused(self, slot: int, now: float) -> None:
        """Postpone the next attempt to make a worker, because the system refused this one; longer each time.

        A refusal is no crash of the app, so it doesn't make the cluster degraded.
        """
        times = self._refused[slot] = self._refused.get(slot, 0) + 1
        self._not_before[slot] = max(self._not_before.get(slot, 0.0), now + _backoff(_FIRST_BACKOFF_S, times - 1))

    def made(self, slot: int) -> None:
        """Record that the system has made a worker for that slot."""
        self._refused.pop(slot, None)

    def settled(self, slot: int) -> None:
        """Note that the slot's worker is ready and has lived long enough to count as healthy."""
        self._young.pop(slot, None)
        self._not_before.pop(slot, None)

    def blocked_slots(self, now: float) -> frozenset[int]:
        """Return the slots that still have to wait."""
        return frozenset(slot for slot, when in self._not_before.items() if when > now)

    def backoffs(self, now: float) -> list[Backoff]:
        """Return the slots that still have to wait, in order."""
        return [
            Backoff(slot, self._not_before[slot] - now, self._young.get(slot, 0))
            for slot in sorted(self.blocked_slots(now))
        ]

    def next_time(self, now: float) -> float | None:
        """Return when the first slot that waits may go on; None: no slot waits."""
        return min((when for when in self._not_before.values() if when > now), default=None)

    def crashes(self, now: float) -> int:
        """Return the number of crashes within the window."""
        self._forget(now)
        return len(self._crashes)

    def release(self) -> None:
        """End the back-off of all slots. Crashes still count."""
        self._young.clear()
        self._not_before.clear()

    def forgive(self) -> bool:
        """Forget all crashes, since they were those of other code. Returns whether the cluster was degraded."""
        self.release()
        self._crashes.clear()
        was, self.degraded = self.degraded, False
        return was

    def recovered(self, now: float) -> bool:
        """Return whether a degraded cluster has recovered: no crash was within the window. From then on it isn't degraded."""
        if self.degraded and not self.crashes(now):
            self.degraded = False
            return True
        return False

    def _forget(self, now: float) -> None:
        while self._crashes and self._crashes[0] <= now - self.window:
            self._crashes.popleft()


def _backoff(first: float, steps: int) -> float:
    """Return the seconds to wait after so many steps of growth."""
    # The exponent is bounded: after a night of crashes the power would overflow a float.
    return min(MAX_BACKOFF_S, first * _BACKOFF_FACTOR ** min(steps, _MAX_BACKOFF_STEPS))


@dataclass(slots=True)
class RestartBackoff:
    """The pause before a helper that has ended is started again.

    There is no pause after its first end. Each later pause is longer, until a helper has lived for `settled` seconds.

    Attributes:
        settled: seconds of life after which an end counts as the first one again.
        first: seconds of the second pause; each later pause is twice as long.
        longest: seconds of the longest pause.
    """

    settled: float
    first: float
    longest: float
    _next: float = 0.0

    def after(self, lived: float) -> float:
        """Return the seconds to wait after the end of a helper that has lived for so many seconds."""
        pause = 0.0 if lived >= self.settled else self._next
        self._next = min(max(self.first, 2 * pause), self.longest)
        return pause
