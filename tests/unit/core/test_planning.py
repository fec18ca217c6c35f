"""What the master decides, without a process: properties of `plan`, a simulated cluster, `Restarts` with a fake clock."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.core.lifecycle import LIVE_STATES, WorkerState
from cluster2.core.planning import (
    MAX_BACKOFF_S,
    SHORT_LIFE_S,
    Backoff,
    Decision,
    Restarts,
    Retire,
    Spawn,
    Wanted,
    WorkerView,
    plan,
)

WANTED = st.builds(Wanted, st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))
STATES = st.sampled_from([state for state in WorkerState if state is not WorkerState.DEAD])
REPLACE = st.none() | st.floats(0, 100)
WORKERS = st.lists(
    st.builds(WorkerView, st.just(0), st.integers(0, 7), st.integers(1, 3), STATES, REPLACE), max_size=16
)


@dataclass(frozen=True)
class Situation:
    """Everything that `plan` can be asked, possible in a healthy cluster or not."""

    wanted: Wanted
    workers: list[WorkerView]
    available: frozenset[int]
    blocked_slots: frozenset[int]
    may_retire: bool
    fallback_generation: int | None

    def plan(self) -> list[Decision]:
        return plan(
            self.wanted,
            self.workers,
            available=self.available,
            blocked_slots=self.blocked_slots,
            may_retire=self.may_retire,
            fallback_generation=self.fallback_generation,
        )

    def live(self, slot: int, decisions: Collection[Decision] = ()) -> list[WorkerView]:
        """The live workers of a slot, without those that the decisions retire."""
        retired = {each.incarnation for each in decisions if isinstance(each, Retire)}
        return [
            each
            for each in self.workers
            if each.slot == slot and each.state in LIVE_STATES and each.incarnation not in retired
        ]

    def fallback(self) -> int | None:
        """The fallback generation, if it can be had."""
        return self.fallback_generation if self.fallback_generation in self.available else None


SITUATIONS = st.builds(
    Situation,
    WANTED,
    WORKERS.map(lambda workers: numbered(workers)),
    st.frozensets(st.integers(1, 3)),
    st.frozensets(st.integers(0, 7)),
    st.booleans(),
    st.none() | st.integers(1, 3),
).filter(lambda situation: situation.fallback_generation != situation.wanted.generation)


def numbered(workers: list[WorkerView]) -> list[WorkerView]:
    """Each with an incarnation of its own."""
    return [replace(worker, incarnation=number) for number, worker in enumerate(workers)]


def current(worker: WorkerView, wanted: Wanted) -> bool:
    """Whether it is as it should be."""
    return worker.generation == wanted.generation and worker.replace is None


def ready(workers: Collection[WorkerView]) -> bool:
    """Whether one of them serves."""
    return any(worker.state is WorkerState.READY for worker in workers)


@given(SITUATIONS)
def test_never_more_than_wanted_and_surge(situation: Situation) -> None:
    """Whatever is observed, what is live after the decisions is bounded: a decision never depends on itself for its end."""
    decisions = situation.plan()
    live = [worker for slot in range(8) for worker in situation.live(slot, decisions)]
    spawned = [each for each in decisions if isinstance(each, Spawn)]
    assert len(live) + len(spawned) <= situation.wanted.slots + situation.wanted.surge


@given(SITUATIONS)
def test_spawns_only_what_is_needed_and_can_be_had(situation: Situation) -> None:
    """At most one worker a slot is spawned, of an available generation, in a wanted slot that is free to have one."""
    wanted, decisions = situation.wanted, situation.plan()
    spawned = [each for each in decisions if isinstance(each, Spawn)]
    assert len({each.slot for each in spawned}) == len(spawned)
    for spawn in spawned:
        assert spawn.slot not in situation.blocked_slots
        assert spawn.slot < wanted.slots
        assert spawn.generation in situation.available
        assert spawn.generation in (wanted.generation, situation.fallback())
        beside = situation.live(spawn.slot, decisions)
        if spawn.generation == wanted.generation:
            assert not any(current(each, wanted) for each in beside)
        else:
            assert not ready(beside)
            assert all(each.generation != spawn.generation for each in beside)


@given(SITUATIONS)
def test_a_slot_that_serves_goes_on_serving(situation: Situation) -> None:
    """A wanted slot with a ready worker keeps one; no worker is retired twice, and only live ones are."""
    decisions = situation.plan()
    retired = [each.incarnation for each in decisions if isinstance(each, Retire)]
    assert len(set(retired)) == len(retired)
    assert all(situation.workers[each].state in LIVE_STATES for each in retired)
    for slot in range(situation.wanted.slots):
        assert ready(situation.live(slot)) == ready(situation.live(slot, decisions))


@given(SITUATIONS)
def test_surplus_is_retired(situation: Situation) -> None:
    """A wanted slot keeps at most one current and one outdated worker, another slot none."""
    decisions = situation.plan()
    for slot in range(8):
        left = situation.live(slot, decisions)
        assert len(left) <= 2 if slot < situation.wanted.slots else not left
        assert sum(current(each, situation.wanted) for each in left) <= 1


@given(SITUATIONS)
def test_the_only_worker_of_a_slot_stays(situation: Situation) -> None:
    """One worker in a wanted slot is left alone, unless the slot gets a fallback and it is of no use beside that."""
    decisions = situation.plan()

    def useful(worker: WorkerView) -> bool:
        return current(worker, situation.wanted) or worker.generation == situation.fallback()

    for slot in range(situation.wanted.slots):
        match situation.live(slot):
            case [only] if situation.fallback() is None or only.state is WorkerState.READY or useful(only):
                assert situation.live(slot, decisions) == [only]
            case _:
                pass


@given(SITUATIONS)
def test_predecessors_stay_while_they_may_not_retire(situation: Situation) -> None:
    """While the new generation has to prove itself, a slot in which an old worker serves keeps it, with its code."""
    decisions = replace(situation, may_retire=False).plan()
    for slot in range(situation.wanted.slots):
        live = situation.live(slot)
        old = [each for each in live if not current(each, situation.wanted)]
        if ready(old):
            assert ready([each for each in situation.live(slot, decisions) if each in old])


@given(SITUATIONS)
def test_a_decision_is_made_once(situation: Situation) -> None:
    """Once the decisions are carried out, the same question has no further answer: no event repeats an order."""
    decisions = situation.plan()
    retired = {each.incarnation for each in decisions if isinstance(each, Retire)}
    after = [
        replace(each, state=WorkerState.DRAINING) if each.incarnation in retired else each for each in situation.workers
    ]
    spawned = [each for each in decisions if isinstance(each, Spawn)]
    after += [
        WorkerView(len(after) + number, spawn.slot, spawn.generation, WorkerState.SPAWNING)
        for number, spawn in enumerate(spawned)
    ]
    again = replace(situation, workers=after).plan()
    # What a retirement or a spawn makes room for is the next step, never the same one.
    assert not {each for each in again if isinstance(each, Spawn)} & set(spawned)
    assert not [each for each in again if isinstance(each, Retire) and each.incarnation in retired]


@given(WANTED, WORKERS)
def test_nothing_to_do_when_all_is_well(wanted: Wanted, workers: list[WorkerView]) -> None:
    """With one ready worker a slot, whatever else is leaving, nothing is decided."""
    leaving = [replace(each, state=WorkerState.DRAINING) for each in workers]
    fine = [WorkerView(0, slot, wanted.generation, WorkerState.READY) for slot in range(wanted.slots)]
    assert plan(wanted, numbered([*leaving, *fine])) == []


def test_spawns_from_nothing() -> None:
    """At the start all slots are filled at once: `surge` bounds replacements, not the first workers."""
    assert plan(Wanted(4, 1), []) == [Spawn(0, 1), Spawn(1, 1), Spawn(2, 1), Spawn(3, 1)]


def test_dead_slot_is_filled_while_others_roll() -> None:
    """An empty slot is filled at once, even while another rolls."""
    workers = [WorkerView(1, 0, 1, WorkerState.READY), WorkerView(2, 0, 2, WorkerState.BOOTING)]
    assert plan(Wanted(2, 2), workers) == [Spawn(1, 2)]


def test_scale_down_retires_whatever_its_state() -> None:
    """Slots beyond the wanted number are retired, those that boot included; the others are left alone."""
    workers = [
        WorkerView(1, 0, 1, WorkerState.READY),
        WorkerView(2, 1, 1, WorkerState.BOOTING),
        WorkerView(3, 2, 1, WorkerState.READY),
    ]
    assert plan(Wanted(1, 1), workers) == [Retire(2), Retire(3)]


def test_abandoned_generation_is_taken_back() -> None:
    """When an older generation is wanted again, the newcomers of the abandoned one leave and the old ones stay."""
    workers = [
        WorkerView(1, 0, 1, WorkerState.READY),
        WorkerView(2, 0, 2, WorkerState.BOOTING),
        WorkerView(3, 1, 1, WorkerState.READY),
    ]
    assert plan(Wanted(2, 1), workers) == [Retire(2)]


def test_two_current_workers_are_one_too_many() -> None:
    """Of two current workers in a slot the ready one stays, of two equals the older."""
    booting = [WorkerView(1, 0, 1, WorkerState.BOOTING), WorkerView(2, 0, 1, WorkerState.BOOTING)]
    assert plan(Wanted(1, 1), booting) == [Retire(2)]
    assert plan(Wanted(1, 1), [booting[0], WorkerView(2, 0, 1, WorkerState.READY)]) == [Retire(1)]


def test_a_fallback_that_can_not_be_had() -> None:
    """The old zygote and the old worker die while the successor boots: the slot waits for that, and no other is made."""
    successor = [WorkerView(2, 0, 2, WorkerState.BOOTING)]
    proving = {"may_retire": False, "fallback_generation": 1}
    assert plan(Wanted(1, 2), successor, available={2}, **proving) == []
    assert plan(Wanted(1, 2), successor, available={1, 2}, **proving) == [Spawn(0, 1)]
    assert plan(Wanted(1, 2), [], available={2}, **proving) == [Spawn(0, 2)]
    assert plan(Wanted(1, 2), [], available=(), **proving) == []


def test_a_fallback_that_comes_back() -> None:
    """Once the old code can be had again, it takes its slots back one by one: `surge` bounds this, too."""
    workers = [WorkerView(slot, slot, 2, WorkerState.BOOTING) for slot in range(3)]
    assert plan(Wanted(3, 2), workers, may_retire=False, fallback_generation=1) == [Spawn(0, 1)]


def test_a_lower_surge_is_kept_at_once() -> None:
    """A reload that lowers `max_surge` ends the successors that are too many; those that serve go on."""
    workers = [WorkerView(slot, slot, 1, WorkerState.READY) for slot in range(3)]
    workers += [
        WorkerView(3, 0, 2, WorkerState.BOOTING),
        WorkerView(4, 1, 2, WorkerState.READY),
        WorkerView(5, 2, 2, WorkerState.BOOTING),
    ]
    assert plan(Wanted(3, 2, surge=1), workers, may_retire=False) == [Retire(3), Retire(5)]


@dataclass
class Cluster:
    """A cluster of dataclasses: decisions are applied, and what is under way ends in random order."""

    chance: random.Random
    workers: dict[int, WorkerView] = field(default_factory=dict)
    count: int = 0

    def add(self, slot: int, generation: int, state: WorkerState) -> None:
        self.count += 1
        self.workers[self.count] = WorkerView(self.count, slot, generation, state)

    def set(self, incarnation: int, state: WorkerState) -> None:
        self.workers[incarnation] = replace(self.workers[incarnation], state=state)

    def apply(self, wanted: Wanted) -> bool:
        """Do what is decided; whether anything was."""
        decisions = plan(wanted, self.workers.values())
        for decision in decisions:
            if isinstance(decision, Spawn):
                self.add(decision.slot, decision.generation, WorkerState.SPAWNING)
            else:
                self.set(decision.incarnation, WorkerState.DRAINING)
        return bool(decisions)

    def advance(self, crashes: float) -> bool:
        """One of the workers that are under way gets on, or crashes; whether there was one."""
        moving = [each for each in self.workers.values() if each.state is not WorkerState.READY]
        if not moving:
            return False
        worker = self.chance.choice(moving)
        if worker.state is WorkerState.DRAINING or self.chance.random() < crashes:
            del self.workers[worker.incarnation]
        else:
            self.set(
                worker.incarnation, WorkerState.READY if worker.state is WorkerState.BOOTING else WorkerState.BOOTING
            )
        return True

    def serving(self, wanted: Wanted) -> int:
        """Wanted slots with a worker that serves."""
        return len(
            {each.slot for each in self.workers.values() if each.state is WorkerState.READY} & set(range(wanted.slots))
        )

    def between(self, wanted: Wanted) -> int:
        """Wanted slots with more than one live worker."""
        slots = [each.slot for each in self.workers.values() if each.state in LIVE_STATES and each.slot < wanted.slots]
        return sum(slots.count(slot) > 1 for slot in set(slots))


@given(st.lists(WANTED, min_size=1, max_size=4), st.integers(), st.sampled_from([0.0, 0.2]))
def test_converges(history: list[Wanted], seed: int, crashes: float) -> None:
    """Through scaling, reloads and crashes at boot it comes to one ready worker of the wanted generation in each slot.

    On the way no slot that was served goes unserved, and no more than `surge` slots are between two workers.
    """
    cluster = Cluster(random.Random(seed))
    for wanted in history:
        for _ in range(1000):
            served, between = cluster.serving(wanted), cluster.between(wanted)
            decided = cluster.apply(wanted)
            assert cluster.serving(wanted) >= served
            assert cluster.between(wanted) <= max(wanted.surge, between)
            if not cluster.advance(crashes) and not decided:
                break
        else:
            pytest.fail(f"no end: {cluster.workers}")
        left = sorted((each.slot, each.generation, each.state) for each in cluster.workers.values())
        assert left == [(slot, wanted.generation, WorkerState.READY) for slot in range(wanted.slots)]


def test_recycling_in_turn() -> None:
    """Workers marked for replacement go one after the other, those that wait for longest first, behind ready successors."""
    cluster, wanted = Cluster(random.Random(1)), Wanted(3, 1)
    for slot in range(3):
        cluster.add(slot, 1, WorkerState.READY)
    for incarnation in (1, 2, 3):
        cluster.workers[incarnation] = replace(cluster.workers[incarnation], replace=10.0 - incarnation)
    gone: list[int] = []
    while cluster.apply(wanted) | cluster.advance(0):
        assert cluster.serving(wanted) == 3
        ready = {each for each, worker in cluster.workers.items() if worker.state is WorkerState.READY}
        gone += [each for each in (1, 2, 3) if each not in ready and each not in gone]
    assert gone == [3, 2, 1]


def test_first_crash_costs_nothing() -> None:
    """A worker that has lived, and the first that dies young, are replaced at once."""
    restarts = Restarts(10, 60)
    restarts.crashed(0, uptime=100.0, now=0.0)
    assert restarts.blocked_slots(0.0) == frozenset()
    restarts.crashed(1, uptime=0.1, now=0.0)
    assert restarts.blocked_slots(0.0) == frozenset()
    assert restarts.next_time(0.0) is None


def test_backoff_grows_to_its_cap() -> None:
    """A slot whose workers die young waits longer each time, up to the cap; other slots don't wait."""
    restarts, now, waits = Restarts(10**6, 60), 0.0, []
    for _ in range(20):
        wait = restarts.crashed(3, uptime=0.01, now=now)
        when = restarts.next_time(now)
        waits.append(0.0 if when is None else when - now)
        assert wait == pytest.approx(waits[-1])
        expected = [Backoff(3, pytest.approx(wait), len(waits))] if wait else []
        assert restarts.backoffs(now) == expected
        assert restarts.blocked_slots(now) == (frozenset({3}) if waits[-1] else frozenset())
        now += waits[-1]
        assert restarts.blocked_slots(now) == frozenset(), "it may go on at that time, not after it"
    assert waits[:4] == pytest.approx([0.0, 0.1, 0.15, 0.225])
    assert [round(wait, 6) for wait in waits] == sorted(round(wait, 6) for wait in waits)
    assert waits[-1] == pytest.approx(MAX_BACKOFF_S)


def test_backoff_never_overflows() -> None:
    """A worker that dies at boot for a whole night waits for the cap each time: no power grows out of its number."""
    restarts, now = Restarts(3, 1e6), 0.0
    for _ in range(5000):
        restarts.crashed(0, uptime=0.0, now=now)
        now += MAX_BACKOFF_S
    assert restarts.next_time(now - MAX_BACKOFF_S) == pytest.approx(now)


def test_a_long_life_resets_the_backoff() -> None:
    """Who has lived for a second, or settled, starts from nothing again."""
    for reset in (lambda r: r.settled(0), lambda r: r.crashed(0, uptime=SHORT_LIFE_S, now=50.0)):
        restarts = Restarts(10, 60)
        for _ in range(5):
            restarts.crashed(0, uptime=0.0, now=0.0)
        assert restarts.blocked_slots(0.0) == {0}
        reset(restarts)
        assert restarts.blocked_slots(50.0) == frozenset()
        restarts.crashed(0, uptime=0.0, now=100.0)
        assert restarts.blocked_slots(100.0) == frozenset(), "the first that dies young costs nothing"


def test_degraded_above_the_limit() -> None:
    """One crash more than the limit within the window degrades; from then on every restart waits, also in a new slot."""
    restarts = Restarts(3, 10)
    for slot in range(3):
        restarts.crashed(slot, uptime=100.0, now=float(slot))
        assert not restarts.degraded
    assert restarts.blocked_slots(2.0) == frozenset()
    restarts.crashed(7, uptime=100.0, now=3.0)
    assert restarts.degraded
    assert restarts.crashes(3.0) == 4
    assert restarts.next_time(3.0) == pytest.approx(4.0)


def test_slow_crashes_never_degrade() -> None:
    """The limit counts within the window: crashes that are rarer go on for ever."""
    restarts = Restarts(3, 10)
    for number in range(100):
        restarts.crashed(0, uptime=100.0, now=number * 5.0)
    assert not restarts.degraded
    assert restarts.crashes(495.0) == 2


def test_recovered_after_the_window() -> None:
    """A degraded cluster is called healthy once, when the window has passed without a crash."""
    restarts = Restarts(1, 10)
    assert not restarts.recovered(0.0), "it never was degraded"
    restarts.crashed(0, uptime=5.0, now=0.0)
    restarts.crashed(0, uptime=5.0, now=4.0)
    assert not restarts.recovered(13.9)
    assert restarts.degraded
    assert restarts.recovered(14.0)
    assert not restarts.recovered(14.0)
    assert not restarts.degraded


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 3), st.floats(0, 20)), max_size=60), st.integers(0, 5))
def test_waits_are_bounded(crashes: list[tuple[int, float, float]], limit: int) -> None:
    """Whatever crashes when: no slot waits for longer than the cap, and `next_time` is the first that ends."""
    restarts, now = Restarts(limit, 30), 0.0
    for slot, uptime, pause in crashes:
        restarts.crashed(slot, uptime, now)
        assert restarts.degraded or restarts.crashes(now) <= limit
        when = restarts.next_time(now)
        assert (when is None) == (not restarts.blocked_slots(now))
        if when is not None:
            assert now < when <= now + MAX_BACKOFF_S
            assert restarts.blocked_slots(when) < restarts.blocked_slots(now)
        now += pause
    assert restarts.blocked_slots(now + MAX_BACKOFF_S) == frozenset()


def test_crashes_of_other_code() -> None:
    """What a slot waits for can be lifted while crashes still count; then all crashes can be forgotten."""
    restarts = Restarts(limit=2, window=60)
    for now in (1.0, 2.0, 3.0, 4.0):
        restarts.crashed(0, 0.1, now)
    assert restarts.degraded
    assert restarts.blocked_slots(4.0) == {0}
    restarts.release()
    assert restarts.degraded
    assert restarts.blocked_slots(4.0) == frozenset()
    assert restarts.crashes(4.0) == 4
    assert restarts.forgive()
    assert not restarts.degraded
    assert restarts.crashes(4.0) == 0
    assert not restarts.forgive()
