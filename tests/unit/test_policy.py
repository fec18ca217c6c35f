"""What the master decides, without a process: properties of `plan`, a simulated cluster, `Restarts` with a fake clock."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.lifecycle import LIVE, State
from cluster2.policy import LONGEST_BACKOFF, SHORT_LIFE, Restarts, Retire, Seen, Spawn, Wanted, plan

WANTED = st.builds(Wanted, st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))
STATES = st.sampled_from([state for state in State if state is not State.DEAD])
REPLACE = st.none() | st.floats(0, 100)
WORKERS = st.lists(st.builds(Seen, st.just(0), st.integers(0, 7), st.integers(1, 3), STATES, REPLACE), max_size=12)
BARRED = st.frozensets(st.integers(0, 7))


def numbered(workers: list[Seen]) -> list[Seen]:
    """Each with an incarnation of its own."""
    return [replace(worker, incarnation=number) for number, worker in enumerate(workers)]


def current(worker: Seen, wanted: Wanted) -> bool:
    """Whether it is as it should be."""
    return worker.generation == wanted.generation and worker.replace is None


@given(WANTED, WORKERS, BARRED)
def test_never_spawns_where_it_may_not(wanted: Wanted, workers: list[Seen], barred: frozenset[int]) -> None:
    """A worker is spawned only in a wanted slot that is free to have one, once, and has no live current worker yet."""
    workers = numbered(workers)
    spawned = [each.slot for each in plan(wanted, workers, barred=barred) if isinstance(each, Spawn)]
    assert len(spawned) == len(set(spawned))
    assert not set(spawned) & barred
    assert set(spawned) <= set(range(wanted.slots))
    assert not set(spawned) & {each.slot for each in workers if each.state in LIVE and current(each, wanted)}


@given(WANTED, WORKERS, BARRED)
def test_never_retires_what_nobody_replaces(wanted: Wanted, workers: list[Seen], barred: frozenset[int]) -> None:
    """In a wanted slot only an outdated worker is retired, and only beside a successor that is ready."""
    workers = numbered(workers)
    ready = {each.slot for each in workers if each.state is State.READY and current(each, wanted)}
    for decision in plan(wanted, workers, barred=barred):
        if isinstance(decision, Retire):
            worker = workers[decision.incarnation]
            assert worker.state in LIVE
            assert worker.slot >= wanted.slots or (not current(worker, wanted) and worker.slot in ready)


@given(WANTED, WORKERS, BARRED)
def test_predecessors_stay_while_they_may_not_retire(
    wanted: Wanted, workers: list[Seen], barred: frozenset[int]
) -> None:
    """While the new generation has to prove itself, no worker of a wanted slot is retired; spawning goes on the same."""
    workers = numbered(workers)
    decisions = plan(wanted, workers, barred=barred, retire=False)
    assert all(workers[each.incarnation].slot >= wanted.slots for each in decisions if isinstance(each, Retire))
    allowed = [each for each in plan(wanted, workers, barred=barred) if isinstance(each, Spawn)]
    assert {each.slot for each in decisions if isinstance(each, Spawn)} <= {each.slot for each in allowed}


@given(WANTED, WORKERS, BARRED)
def test_at_most_surge_slots_roll(wanted: Wanted, workers: list[Seen], barred: frozenset[int]) -> None:
    """No spawn beside a live worker makes more slots roll than `surge` allows."""
    live = [each for each in numbered(workers) if each.state in LIVE and each.slot < wanted.slots]
    slots = {each.slot for each in live}
    ready = {each.slot for each in live if each.state is State.READY and current(each, wanted)}
    old = {each.slot for each in live if not current(each, wanted)}
    rolling = {each.slot for each in live if current(each, wanted)} & old - ready
    started = {each.slot for each in plan(wanted, live, barred=barred) if isinstance(each, Spawn)} & slots
    assert len(started) <= max(0, wanted.surge - len(rolling))


@given(WANTED, WORKERS)
def test_nothing_to_do_when_all_is_well(wanted: Wanted, workers: list[Seen]) -> None:
    """With one ready worker a slot, whatever else is leaving, nothing is decided."""
    leaving = [replace(each, state=State.DRAINING) for each in workers]
    fine = [Seen(0, slot, wanted.generation, State.READY) for slot in range(wanted.slots)]
    assert plan(wanted, numbered([*leaving, *fine])) == []


def test_spawns_from_nothing() -> None:
    """At the start all slots are filled at once: `surge` bounds replacements, not the first workers."""
    assert plan(Wanted(4, 1), []) == [Spawn(0), Spawn(1), Spawn(2), Spawn(3)]


def test_dead_slot_is_filled_while_others_roll() -> None:
    """An empty slot is filled at once, even while another rolls."""
    workers = [Seen(1, 0, 1, State.READY), Seen(2, 0, 2, State.BOOTING)]
    assert plan(Wanted(2, 2), workers) == [Spawn(1)]


def test_scale_down_retires_whatever_its_state() -> None:
    """Slots beyond the wanted number are retired, those that boot included; the others are left alone."""
    workers = [Seen(1, 0, 1, State.READY), Seen(2, 1, 1, State.BOOTING), Seen(3, 2, 1, State.READY)]
    assert plan(Wanted(1, 1), workers) == [Retire(2), Retire(3)]


def test_abandoned_generation_is_taken_back() -> None:
    """When an older generation is wanted again, the newcomers of the abandoned one leave and the old ones stay."""
    workers = [Seen(1, 0, 1, State.READY), Seen(2, 0, 2, State.BOOTING), Seen(3, 1, 1, State.READY)]
    assert plan(Wanted(2, 1), workers) == [Retire(2)]


@dataclass
class Cluster:
    """A cluster of dataclasses: decisions are applied, and what is under way ends in random order."""

    chance: random.Random
    workers: dict[int, Seen] = field(default_factory=dict)
    count: int = 0

    def add(self, slot: int, generation: int, state: State) -> None:
        self.count += 1
        self.workers[self.count] = Seen(self.count, slot, generation, state)

    def set(self, incarnation: int, state: State) -> None:
        self.workers[incarnation] = replace(self.workers[incarnation], state=state)

    def apply(self, wanted: Wanted) -> bool:
        """Do what is decided; whether anything was."""
        decisions = plan(wanted, self.workers.values())
        for decision in decisions:
            if isinstance(decision, Spawn):
                self.add(decision.slot, wanted.generation, State.SPAWNING)
            else:
                self.set(decision.incarnation, State.DRAINING)
        return bool(decisions)

    def advance(self, crashes: float) -> bool:
        """One of the workers that are under way gets on, or crashes; whether there was one."""
        moving = [each for each in self.workers.values() if each.state is not State.READY]
        if not moving:
            return False
        worker = self.chance.choice(moving)
        if worker.state is State.DRAINING or self.chance.random() < crashes:
            del self.workers[worker.incarnation]
        else:
            self.set(worker.incarnation, State.READY if worker.state is State.BOOTING else State.BOOTING)
        return True

    def serving(self, wanted: Wanted) -> int:
        """Wanted slots with a worker that serves."""
        return len(
            {each.slot for each in self.workers.values() if each.state is State.READY} & set(range(wanted.slots))
        )

    def between(self, wanted: Wanted) -> int:
        """Wanted slots with more than one live worker."""
        slots = [each.slot for each in self.workers.values() if each.state in LIVE and each.slot < wanted.slots]
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
        assert left == [(slot, wanted.generation, State.READY) for slot in range(wanted.slots)]


def test_recycling_in_turn() -> None:
    """Workers marked for replacement go one after the other, those that wait for longest first, behind ready successors."""
    cluster, wanted = Cluster(random.Random(1)), Wanted(3, 1)
    for slot in range(3):
        cluster.add(slot, 1, State.READY)
    for incarnation in (1, 2, 3):
        cluster.workers[incarnation] = replace(cluster.workers[incarnation], replace=10.0 - incarnation)
    gone: list[int] = []
    while cluster.apply(wanted) | cluster.advance(0):
        assert cluster.serving(wanted) == 3
        ready = {each for each, worker in cluster.workers.items() if worker.state is State.READY}
        gone += [each for each in (1, 2, 3) if each not in ready and each not in gone]
    assert gone == [3, 2, 1]


def test_first_crash_costs_nothing() -> None:
    """A worker that has lived, and the first that dies young, are replaced at once."""
    restarts = Restarts(10, 60)
    restarts.crashed(0, uptime=100.0, now=0.0)
    assert restarts.barred(0.0) == frozenset()
    restarts.crashed(1, uptime=0.1, now=0.0)
    assert restarts.barred(0.0) == frozenset()
    assert restarts.next_time(0.0) is None


def test_backoff_grows_to_its_cap() -> None:
    """A slot whose workers die young waits longer each time, up to the cap; other slots don't wait."""
    restarts, now, waits = Restarts(10**6, 60), 0.0, []
    for _ in range(20):
        restarts.crashed(3, uptime=0.01, now=now)
        when = restarts.next_time(now)
        waits.append(0.0 if when is None else when - now)
        assert restarts.barred(now) == (frozenset({3}) if waits[-1] else frozenset())
        now += waits[-1]
        assert restarts.barred(now) == frozenset(), "it may go on at that time, not after it"
    assert waits[:4] == pytest.approx([0.0, 0.1, 0.15, 0.225])
    assert [round(wait, 6) for wait in waits] == sorted(round(wait, 6) for wait in waits)
    assert waits[-1] == pytest.approx(LONGEST_BACKOFF)


def test_backoff_never_overflows() -> None:
    """A worker that dies at boot for a whole night waits for the cap each time: no power grows out of its number."""
    restarts, now = Restarts(3, 1e6), 0.0
    for _ in range(5000):
        restarts.crashed(0, uptime=0.0, now=now)
        now += LONGEST_BACKOFF
    assert restarts.next_time(now - LONGEST_BACKOFF) == pytest.approx(now)


def test_a_long_life_resets_the_backoff() -> None:
    """Who has lived for a second, or settled, starts from nothing again."""
    for reset in (lambda r: r.settled(0), lambda r: r.crashed(0, uptime=SHORT_LIFE, now=50.0)):
        restarts = Restarts(10, 60)
        for _ in range(5):
            restarts.crashed(0, uptime=0.0, now=0.0)
        assert restarts.barred(0.0) == {0}
        reset(restarts)
        assert restarts.barred(50.0) == frozenset()
        restarts.crashed(0, uptime=0.0, now=100.0)
        assert restarts.barred(100.0) == frozenset(), "the first that dies young costs nothing"


def test_degraded_above_the_limit() -> None:
    """One crash more than the limit within the window degrades; from then on every restart waits, also in a new slot."""
    restarts = Restarts(3, 10)
    for slot in range(3):
        restarts.crashed(slot, uptime=100.0, now=float(slot))
        assert not restarts.degraded
    assert restarts.barred(2.0) == frozenset()
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
        assert (when is None) == (not restarts.barred(now))
        if when is not None:
            assert now < when <= now + LONGEST_BACKOFF
            assert restarts.barred(when) < restarts.barred(now)
        now += pause
    assert restarts.barred(now + LONGEST_BACKOFF) == frozenset()
