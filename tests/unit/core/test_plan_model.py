"""What the master decides, driven through random reloads, recycles, scales, deaths and hangs with a fake clock.

The machine below is a cluster without processes: `policy`, `rolling`, `lifecycle` and the master's `Reloader` decide, the machine
carries out what they say as `Master` does, and hypothesis decides what happens to workers and who asks for what.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster2.core import lifecycle, planning
from cluster2.core.lifecycle import LIVE_STATES, WorkerAction, WorkerState
from cluster2.core.planning import SHORT_LIFE_S, Retire, Spawn, Wanted, WorkerView
from cluster2.errors import AppError
from cluster2.events import Event, Reason
from cluster2.processes.master.generations.reloader import Reloader, ReloadRequest
from tests.unit.clusters import a_state

LIMIT, WINDOW = 3, 10.0
WAIT_WHEN_DEGRADED = 1.0
CHOICE = st.integers(0, 1000)


@dataclass(eq=False)
class Worker:
    """A worker of the machine."""

    incarnation: int
    slot: int
    generation: int
    born: float
    state: WorkerState = WorkerState.SPAWNING
    reason: Reason | None = None
    replace: float | None = None
    drain_first: bool = True
    ready_at: float | None = None

    def seen(self) -> WorkerView:
        return WorkerView(self.incarnation, self.slot, self.generation, self.state, self.replace)


@dataclass
class Asked:
    """A reload that somebody waits for."""

    request: ReloadRequest
    outcomes: list[object] = field(default_factory=list)

    def poll(self) -> None:
        """Note each outcome that the request has had."""
        if self.request.outcome is not None and self.request.outcome not in self.outcomes:
            self.outcomes.append(self.request.outcome)


class ClusterMachine(RuleBasedStateMachine):
    """A cluster in which everything may go wrong."""

    @initialize(slots=st.integers(1, 4), surge=st.integers(1, 2))
    def begin(self, slots: int, surge: int) -> None:
        self.now = 1000.0
        self.wanted = Wanted(slots, 1, surge)
        self.workers: dict[int, Worker] = {}
        self.count = 0
        self.loaded = {1}
        self.forking = {1}
        self.reloading_zygote = False
        self.loading: int | None = None
        self.restarts = planning.Restarts(LIMIT, WINDOW)
        self.state = a_state(self._emit)
        self.reloader = Reloader(self.state, self._load, self._want, self._drop)
        self.asked: list[Asked] = []
        self.events: list[Event] = []
        self.not_before: dict[int, float] = {}
        self.crash_times: list[float] = []
        self.converge()
        for _ in range(2 * slots):
            self.go_on(0)
        self.reloader.open()

    # What the master gives its reloader.

    def _load(self, generation: int) -> list[str]:
        self.loading = generation
        return []

    def _want(self, generation: int) -> None:
        assert generation in self.loaded, "only what is loaded can be wanted"
        self.wanted = Wanted(self.wanted.slots, generation, self.wanted.surge)
        self.reloading_zygote = generation not in self.forking

    def _drop(self, generation: int) -> None:
        self.loaded.discard(generation)
        self.forking.discard(generation)
        self.loading = None if self.loading == generation else self.loading
        assert self.wanted.generation != generation, "what is wanted is not dropped"

    def _emit(self, event: Event) -> None:
        self.events.append(event)

    # What the master does.

    def seen(self) -> list[WorkerView]:
        return [worker.seen() for worker in self.workers.values()]

    def converge(self) -> None:
        self.reloader.advance(self.now, self.seen(), self.wanted.slots)
        blocked = self.restarts.blocked_slots(self.now)
        before = self.served()
        decisions = planning.plan(
            self.wanted,
            self.seen(),
            available=frozenset(self.forking),
            blocked_slots=blocked,
            may_retire=self.reloader.may_retire(),
            fallback_generation=self.reloader.fallback_generation(),
        )
        for decision in decisions:
            if isinstance(decision, Spawn):
                self.spawn(decision)
            else:
                self.retire(decision)
        assert self.served() >= before, "a decision took away what served"
        live = sum(worker.state in LIVE_STATES for worker in self.workers.values())
        assert live <= self.wanted.slots + self.wanted.surge, "more workers than wanted and surge"
        self.no_slot_waits_for_unproved_code(blocked)

    def no_slot_waits_for_unproved_code(self, blocked: frozenset[int]) -> None:
        """While new code has to prove itself, each slot has a worker that serves, or one of the old code that will.

        Beside workers of the new code as many slots get one of the old code as `max_surge` allows.
        """
        old = self.reloader.fallback_generation()
        if old is None or old not in self.forking:
            return
        live = [worker for worker in self.workers.values() if worker.state in LIVE_STATES]
        fine = {each.slot for each in live if each.generation == old or each.state is WorkerState.READY}
        waiting = set(range(self.wanted.slots)) - fine - blocked
        assert not waiting or self.pairs() >= self.wanted.surge, "a slot waits for unproved code"

    def spawn(self, decision: Spawn) -> None:
        generation = decision.generation
        assert generation in self.forking
        assert self.now >= self.not_before.get(decision.slot, 0.0), "a crashed slot didn't wait while degraded"
        live = [each for each in self.workers.values() if each.slot == decision.slot and each.state in LIVE_STATES]
        assert not [each for each in live if each.generation == generation and each.replace is None], "it has one"
        if live and generation == self.wanted.generation:
            leaving = [each for each in self.workers.values() if each.slot == decision.slot and each not in live]
            assert not leaving, "a second retirement begins in a slot where one is under way"
        self.count += 1
        self.workers[self.count] = Worker(self.count, decision.slot, generation, self.now)

    def retire(self, decision: Retire) -> None:
        worker = self.workers[decision.incarnation]
        assert worker.state in LIVE_STATES
        others = [each for each in self.workers.values() if each.slot == worker.slot and each is not worker]
        if worker.slot < self.wanted.slots:
            serves_on = any(each.state is WorkerState.READY for each in others)
            assert serves_on or worker.state is not WorkerState.READY, "the last one that serves a slot was retired"
        if self.state.rollout is not None and worker.generation == self.state.rollout.old:
            beyond = worker.slot >= self.wanted.slots
            # Of two outdated workers in a slot only one stays: a ready one, else one of the old code.
            live = [each for each in others if each.state in LIVE_STATES]
            same = [each for each in live if each.generation == worker.generation]
            surplus = any(
                each.state is WorkerState.READY for each in (live if worker.state is not WorkerState.READY else same)
            )
            surplus = surplus or (worker.state is not WorkerState.READY and bool(same))
            assert beyond or surplus or self.reloader.may_retire(), (
                "an old worker went before the new code had proved itself"
            )
        worker.reason = worker.reason or "reload"
        self.apply(worker, lifecycle.WorkerEvent.DRAIN if worker.drain_first else lifecycle.WorkerEvent.KILL)

    def apply(self, worker: Worker, event: lifecycle.WorkerEvent) -> None:
        worker.state, actions = lifecycle.step(worker.state, event)
        if WorkerAction.ANNOUNCE in actions:
            worker.ready_at = self.now
            if self.state.rollout is not None:
                self.state.rollout.ready(worker.generation, self.now)
        if WorkerAction.BURY in actions:
            del self.workers[worker.incarnation]

    def bury(self, worker: Worker) -> None:
        meant = worker.reason not in (None, "crash")
        self.apply(worker, lifecycle.WorkerEvent.EXITED)
        if meant:
            return
        if self.state.is_new(worker.generation):
            self.reloader.abandon(AppError("a worker of the new generation died"))
            return
        self.restarts.crashed(worker.slot, self.now - worker.born, self.now)
        self.crash_times = [when for when in [*self.crash_times, self.now] if when > self.now - WINDOW]
        if len(self.crash_times) > LIMIT:
            self.not_before[worker.slot] = self.now + WAIT_WHEN_DEGRADED

    # What is true of it.

    def served(self) -> int:
        """Wanted slots with a worker that serves."""
        slots = {worker.slot for worker in self.workers.values() if worker.state is WorkerState.READY}
        return len(slots & set(range(self.wanted.slots)))

    def pairs(self) -> int:
        """Return the number of wanted slots with more than one live worker."""
        slots = [worker.slot for worker in self.workers.values() if worker.state in LIVE_STATES]
        return sum(slots.count(slot) > 1 for slot in range(self.wanted.slots))

    def pick(self, choice: int, *states: WorkerState) -> Worker | None:
        found = [worker for worker in self.workers.values() if worker.state in states]
        return found[choice % len(found)] if found else None

    # What happens.

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.25, 1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for worker in self.workers.values():
            if (
                worker.ready_at is not None
                and worker.state is WorkerState.READY
                and self.now >= worker.ready_at + SHORT_LIFE_S
            ):
                worker.ready_at = None
                self.restarts.settled(worker.slot)
                self.not_before.pop(worker.slot, None)
        self.restarts.recovered(self.now)
        self.converge()

    @rule(choice=CHOICE)
    def go_on(self, choice: int) -> None:
        """A worker that is under way gets further."""
        worker = self.pick(choice, WorkerState.SPAWNING, WorkerState.BOOTING, WorkerState.DRAINING, WorkerState.DYING)
        if worker is None:
            return
        match worker.state:
            case WorkerState.SPAWNING:
                self.apply(worker, lifecycle.WorkerEvent.FORKED)
            case WorkerState.BOOTING:
                self.apply(worker, lifecycle.WorkerEvent.READY)
            case _:
                self.bury(worker)
        self.converge()

    @rule(choice=CHOICE)
    def dies(self, choice: int) -> None:
        """Any worker dies, whatever it is doing."""
        worker = self.pick(choice, *WorkerState)
        if worker is not None:
            self.bury(worker)
            self.converge()

    @rule(choice=CHOICE)
    def says_that_it_can_not_serve(self, choice: int) -> None:
        """A worker reports that it failed to boot; if it is of new code, that is abandoned, before the process has ended."""
        worker = self.pick(choice, WorkerState.BOOTING)
        if worker is not None and self.state.is_new(worker.generation):
            self.reloader.abandon(AppError("the database is away"))
            self.converge()

    @rule(choice=CHOICE)
    def hangs(self, choice: int) -> None:
        worker = self.pick(choice, WorkerState.READY)
        if worker is not None and worker.reason != "hang":
            worker.reason, worker.replace, worker.drain_first = "hang", self.now, bool(choice % 2)
            self.converge()

    @rule(choice=CHOICE, everyone=st.booleans())
    def recycle(self, choice: int, everyone: bool) -> None:
        one = self.pick(choice, *LIVE_STATES)
        for worker in list(self.workers.values()):
            if worker.state in LIVE_STATES and worker.replace is None and (everyone or worker is one):
                worker.replace, worker.reason = self.now, "recycle"
        self.converge()

    @rule(slots=st.integers(1, 5))
    def scale(self, slots: int) -> None:
        self.wanted = Wanted(slots, self.wanted.generation, self.wanted.surge)
        self.converge()

    @rule()
    def reload(self) -> None:
        self.asked.append(Asked(self.reloader.request()))
        self.converge()

    @precondition(lambda self: self.loading is not None)
    @rule(fine=st.booleans())
    def load_ends(self, fine: bool) -> None:
        """The new code is loaded, or can't be."""
        assert self.loading is not None
        generation, self.loading = self.loading, None
        if fine:
            self.loaded.add(generation)
            self.forking.add(generation)
            self.reloader.on_loaded()
        else:
            self.reloader.abandon(AppError("SyntaxError"))
        self.converge()

    @rule(choice=CHOICE)
    def zygote_dies(self, choice: int) -> None:
        """Any zygote dies, in any phase; the wanted one is loaded again, an unproved one ends its reload."""
        forking = sorted(self.forking)
        if not forking:
            return
        generation = forking[choice % len(forking)]
        self.forking.discard(generation)
        if self.state.is_new(generation):
            self.reloader.abandon(AppError("the zygote died"))
        elif generation == self.wanted.generation:
            self.reloading_zygote = True
        self.converge()

    @precondition(lambda self: self.reloading_zygote)
    @rule()
    def zygote_comes_back(self) -> None:
        self.reloading_zygote = False
        self.forking.add(self.wanted.generation)
        self.converge()

    @rule(choice=CHOICE)
    def old_zygote_comes_back(self, choice: int) -> None:
        """A zygote of any loaded generation can fork (again): that of the fallback, too, whatever has happened meanwhile."""
        loaded = sorted(self.loaded)
        self.forking.add(loaded[choice % len(loaded)])
        self.converge()

    # What has to hold all the time, and in the end.

    @invariant()
    def intensity(self) -> None:
        """More crashes than the limit within the window mean degraded."""
        crashes = [when for when in self.crash_times if when > self.now - WINDOW]
        assert self.restarts.degraded >= (len(crashes) > LIMIT)

    @invariant()
    def two_generations_at_most(self) -> None:
        """What is wanted is loaded, and besides it at most the one that it replaces, or is replaced by."""
        assert self.wanted.generation in self.loaded
        assert len(self.loaded) <= (1 if self.state.rollout is None else 2)

    @invariant()
    def everybody_is_answered_once(self) -> None:
        for asked in self.asked:
            asked.poll()
            assert len(asked.outcomes) <= 1

    def teardown(self) -> None:
        """When the noise stops, it becomes what was wanted, and whoever asked for something has an answer."""
        if not hasattr(self, "workers"):
            return
        for _ in range(1000):
            while self.loading is not None:
                self.load_ends(True)
            if self.reloading_zygote:
                self.zygote_comes_back()
            if self.is_settled():
                break
            self.go_on(0)
            self.time_passes(0.1)
        else:
            raise AssertionError(f"no end: {self.wanted}, {self.workers}, {self.state.rollout}")
        for asked in self.asked:
            asked.poll()
        assert all(len(asked.outcomes) == 1 for asked in self.asked)

    def is_settled(self) -> bool:
        found = sorted((each.slot, each.generation, each.state) for each in self.workers.values())
        wanted = [(slot, self.wanted.generation, WorkerState.READY) for slot in range(self.wanted.slots)]
        replaced = all(worker.replace is None for worker in self.workers.values())
        return found == wanted and replaced and self.state.rollout is None


ClusterMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=60)
test_random_history = ClusterMachine.TestCase
