"""The master: one loop over one queue of facts.

What is *wanted* (how many workers, of which generation) is kept apart from what is *seen* (the roster). A fact changes one of
the two; then the loop converges: it asks `policy.plan` what is missing and does it. Nothing else starts or ends a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Container, Sequence
from typing import Any

from ... import events
from ...config.settings import Settings
from ...core import lifecycle, planning
from ...linux import leftover_processes, processes
from ...protocol import messages
from ...runtime.step_guard import StepGuard
from .control.cluster_status import status
from .control.commands import SIGNAL_COMMANDS, CommandHandler
from .control.server import ControlServer
from .control.subscribers import EventSubscribers
from .descriptor_budget import WORKER_DESCRIPTORS, DescriptorCost, refusal
from .generations.generations import GenerationTable
from .generations.loader import GenerationLoader
from .generations.reloader import Reloader
from .helpers.helper import HelperProcess
from .helpers.keeper import KeeperProcess
from .helpers.monitor import MonitorProcess
from .inbox import (
    ChannelClosed,
    Command,
    Exited,
    Fact,
    HelperExited,
    LameDuckExpired,
    ProtocolViolation,
    Signal,
    StateTimeout,
    Tick,
    WorkerMessage,
    WorkerVanished,
    ZygoteMessage,
)
from .messaging.hub import MessageHub
from .periodic import PeriodicTasks
from .pids_guard import PidsGuard
from .resources import MasterPhase, MasterResources
from .shutdown import Shutdown
from .workers.handle import Handle
from .workers.health_monitor import HealthMonitor
from .workers.steering import Steering
from .workers.supervisor import WorkerSupervisor
from .workers.worker_registry import WorkerRegistry

logger = logging.getLogger("cluster2.master")

_ZYGOTE_SHUTDOWN_GRACE_S = 2.0
"""Seconds that a zygote may take to leave at the end; it may be in the middle of the app's import."""
_HANDLERS_SHUTDOWN_GRACE_S = 5.0
"""Seconds for what workers have delegated last, and don't wait for."""
_MONITOR_SHUTDOWN_GRACE_S = 2.0
"""Seconds for the monitor to leave at the end."""
_LAST_SHUTDOWN_GRACE_S = 5.0
"""Seconds for everybody to end who is killed because `run` failed."""


class Master:
    """Keeps the workers serving."""

    def __init__(
        self,
        estate: MasterResources,
        *,
        emit: Callable[[events.Event], None],
        on_ready: Callable[[], None],
        switchboard: MessageHub | None = None,
    ) -> None:
        """Make it inside a running event loop.

        Args:
            emit: takes the events.
            on_ready: called once, when all workers serve.
            switchboard: what users' code says to workers, and hears from them.
        """
        self.estate = estate
        self._emit = emit
        self.followers = EventSubscribers()
        self.switchboard = switchboard or MessageHub()
        self.switchboard.start(self.emit)
        self._on_ready = on_ready
        self.guard = StepGuard(self._report)
        self._facts: asyncio.Queue[Fact] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        settings = estate.options[0]
        self.phase = MasterPhase.BOOTING
        self.wanted = planning.Wanted(settings.workers, 1, settings.max_surge)
        self._slots: dict[int, int] = {}
        self.roster = WorkerRegistry()
        self.generations = GenerationTable(estate, self.post, self.emit)
        self.steering = Steering(estate.listeners, estate.board, settings.backlog)
        self.loading = GenerationLoader(self)
        self.lives = WorkerSupervisor(self)
        self.keeping = KeeperProcess.from_resources(estate, self.post)
        self._control = ControlServer(self.post)
        self._pids_guard = PidsGuard(estate.pids, self._control, self.roster, self.warn)
        self.monitoring = MonitorProcess.from_resources(estate, self.post, self._control.serve_client)
        self.watchman = HealthMonitor(estate.board, self.post, self.warn)
        self.reloader = Reloader(self._load, self._want, self._drop, self.emit, self._count_reload)
        self.departure = Shutdown(self)
        self._rounds = PeriodicTasks(self)
        self.verbs = CommandHandler(self)

    def post(self, fact: Fact) -> None:
        """Something happened."""
        self._facts.put_nowait(fact)

    def emit(self, event: events.Event) -> None:
        """Tell everybody who listens: handlers in this process, and followers on the control socket."""
        self._emit(event)
        self.followers.publish(event)

    async def run(self) -> int:
        """Serve until told to end. Returns the exit code.

        Raises:
            ClusterError: the first workers could not be made ready.
        """
        header = self.estate.board.header
        header.generation, header.started, header.traffic = self.wanted.generation, time.time(), 1
        header.wanted, header.beat = self.wanted.slots, time.monotonic()
        self.watchman.prepare(self.wanted.generation, self.settings)
        self.watchman.apply_rules(self.wanted.generation)
        await self._pids_guard.open()
        for number in SIGNAL_COMMANDS if self.estate.owns_process else ():
            self._loop.add_signal_handler(number, self.post, Signal(number))
        if self.estate.logbook is not None:
            self.estate.logbook.start(self.warn)
        if self.monitoring is not None:
            self.monitoring.start()
        self.generations.load(self.wanted.generation)
        self._rounds.start()
        while not self._finished():
            await self._attend(await self._facts.get())
        return await self._leave()

    def one_more_serves(self) -> None:
        """A worker has become ready; with the last of the first ones the cluster serves."""
        if self.phase is MasterPhase.BOOTING and self.roster.ready() == self.wanted.slots:
            self.phase = MasterPhase.SERVING
            self._on_ready()
            self.reloader.open()

    def left_badly(self, handle: Handle, fault: str) -> None:
        """A worker did not leave as it was to: tell who wanted it to leave."""
        self.verbs.left_badly(handle, fault)
        if handle.ready_at is not None:  # old code that can't start has lost nothing; the reload may be what mends it
            self.reloader.left_badly(handle.generation, fault)
        if self.phase is MasterPhase.DRAINING:
            self.departure.faults.append(fault)

    def ending(self) -> bool:
        """Whether the cluster is to leave."""
        return self.phase in (MasterPhase.DRAINING, MasterPhase.STOPPING)

    def helpers(self) -> list[HelperProcess]:
        """The processes beside the workers that this cluster has."""
        return [helper for helper in (self.keeping, self.monitoring) if helper is not None]

    def children(self) -> set[int]:
        """Pids of the children that this master has made and waits for."""
        workers = {handle.pid for handle in self.roster if handle.pid is not None}
        return workers.union(self.generations.pids(), *(helper.pids() for helper in self.helpers()))

    def _finished(self) -> bool:
        """Whether we are leaving, and everybody else has left."""
        if not self.ending() or len(self.roster):
            return False
        return self.keeping is None or not self.keeping.alive()

    # Facts

    async def _attend(self, fact: Fact) -> None:
        """Handle a fact, and do what follows from it. Whatever fails there is reported: the workers serve on."""
        fault = f"a fault in the master ({type(fact).__name__})"
        try:
            self._handle(fact)
            if isinstance(fact, Tick):
                await self._pids_guard.restore_missing()
            await self._converge()
            self.verbs.answer()
        except Exception as error:
            if self.phase is MasterPhase.BOOTING:
                raise
            self.guard.failed(fault, error, "it goes on")
        else:
            self.guard.worked(fault)

    def _handle(self, fact: Fact) -> None:
        match fact:
            case ZygoteMessage():
                self.loading.on_message(fact)
            case WorkerMessage():
                self.lives.on_message(fact.worker, fact.message)
            case ProtocolViolation():
                logger.warning("%s sent garbage and is replaced: %s", fact.worker, fact.text)
                self.lives.kill(fact.worker, "crash")
            case ChannelClosed():
                self.lives.on_channel_closed(fact.worker)
            case Exited():
                self.lives.on_exited(fact.worker)
            case WorkerVanished():
                self.lives.on_exit_recorded(fact.worker, None)
            case StateTimeout():
                self.lives.on_timeout(fact.worker, fact.state)
            case HelperExited():
                self._helper_gone(fact)
            case Signal():
                self.verbs.signal(fact.number)
            case Command():
                self.verbs.command(fact)
            case LameDuckExpired():
                self.departure.lame_duck_over()
            case Tick():
                self._rounds.run_due()

    def _helper_gone(self, fact: HelperExited) -> None:
        """Start another one; at the end of the cluster tell the workers that nothing comes back any more."""
        (helper,) = (each for each in self.helpers() if each.name == fact.name)
        if helper is self.keeping and self.ending():
            for handle in self.roster if self.phase is MasterPhase.DRAINING else ():
                handle.send(messages.KeeperGone())
        elif self.phase is not MasterPhase.STOPPING:
            pause = helper.schedule_start()
            when = f"in {pause:g} s" if pause else "now"
            self.warn(f"the {helper.name} {fact.how}; another is started {when}")

    def _count_reload(self, done: bool) -> None:
        header = self.estate.board.header
        header.reloads, header.reloads_failed = header.reloads + done, header.reloads_failed + (not done)
        if done and self.lives.restarts.forgive():
            self.emit(events.Recovered(time=time.time(), ready=self.roster.ready()))

    # What the verbs do

    def status(self, *, memory: bool) -> dict[str, Any]:
        """The cluster as plain data (`status`)."""
        return status(
            self.estate.board,
            self.roster,
            state=self.state,
            wanted=self.wanted.slots,
            addresses=[str(listener.address) for _, listener in self.estate.listeners],
            monitor=None if self.monitoring is None else self.monitoring.address,
            talk=self.switchboard.counters(),
            backoffs=self.lives.restarts.backoffs(time.monotonic()),
            memory=memory,
            waiting=self.steering.queued(),
        )

    @property
    def state(self) -> str:
        """Where the cluster is: one of `lifecycle.PHASES`."""
        return "degraded" if self.lives.restarts.degraded else self.phase.value

    def set_traffic(self, enabled: bool) -> None:
        """What health checks answer, from now on, in all workers that are and will be."""
        header = self.estate.board.header
        if bool(header.traffic) != enabled:
            header.traffic = int(enabled)
            event = events.Enabled if enabled else events.Disabled
            self.emit(event(time=time.time()))

    def unaffordable(
        self, slots: int, surge: int, steered: Container[int], places: int, *, executed: bool
    ) -> str | None:
        """Return why the limit of descriptors doesn't allow so many workers, or None.

        Args:
            steered: the apps whose engine takes connections itself: each worker has a socket of its own for each address.
            places: how many such sockets are opened for a worker.
            executed: whether each worker is executed: then the master keeps what it needs until it has loaded the app.
        """
        ways = [] if self.keeping is None else self.keeping.descriptors()
        relayed = self.estate.logbook is not None and self.estate.logbook.keeps_files_open
        cost = DescriptorCost(
            worker=WORKER_DESCRIPTORS + relayed + places * sum(site in steered for site, _ in self.estate.listeners),
            at_once=1 + 4 + len(self.estate.listeners) + len(ways) if executed else 0,
        )
        opened, limit = processes.open_descriptors(), processes.file_limit()
        return refusal(slots, surge, len(self.roster), cost, opened=opened, limit=limit)

    def scale_refusal(self, slots: int) -> str | None:
        """Return why the limit of descriptors doesn't allow so many workers of the wanted generation, or None."""
        nursery = self.generations.nursery(self.wanted.generation)
        executed = nursery is not None and not nursery.forks
        steered = self.steering.sites(self.wanted.generation)
        return self.unaffordable(slots, self.wanted.surge, steered, 1, executed=executed)

    def resize(self, slots: int) -> None:
        """So many workers are wanted."""
        if self.phase is MasterPhase.SERVING and slots >= 1:
            self.wanted = planning.Wanted(slots, self.wanted.generation, self.wanted.surge)

    # Convergence

    async def _converge(self) -> None:
        """Do what is missing between what is seen and what is wanted."""
        header = self.estate.board.header
        header.wanted, header.phase = self.wanted.slots, lifecycle.PHASES.index(self.state)
        if self.ending():
            return
        now = time.monotonic()
        self.reloader.advance(now, self.roster.seen(), self.wanted.slots)
        decisions = planning.plan(
            self.wanted,
            self.roster.seen(),
            available=self.generations.available(),
            blocked_slots=self.lives.restarts.blocked_slots(now),
            may_retire=self.reloader.may_retire(),
            fallback_generation=self.reloader.fallback_generation(),
        )
        for decision in decisions:
            if self.ending():
                return
            match decision:
                case planning.Spawn():
                    await self.lives.spawn(decision.slot, decision.generation)
                case planning.Retire():
                    self.lives.retire(decision.incarnation)
        times = [when for when in (self.lives.restarts.next_time(now), self.reloader.wake_at()) if when is not None]
        self._rounds.wake_at(min(times, default=None))

    def _load(self, generation: int) -> Sequence[str]:
        """Check all that a new generation needs in this process, and start to load its code.

        Returns:
            Warnings about its options, a line each.

        Raises:
            ClusterError: an option is bad.
        """
        options = self.generations.read_options(generation)
        self.watchman.prepare(generation, options.settings)
        self.generations.load(generation)
        for warning in options.warnings:
            self.warn(warning)
        return options.warnings

    def adopt(self, generation: int, chosen: messages.Chosen) -> None:
        """Give a new generation the options that its script has come to.

        Raises:
            ClusterError: an option is bad.
        """
        warnings = self.generations.fix_options(generation, chosen)
        self.watchman.prepare(generation, self.generations.settings(generation))
        self.reloader.add_warnings(warnings)
        for warning in warnings:
            self.warn(warning)

    def _drop(self, generation: int) -> None:
        """Forget a generation of which no worker is made any more."""
        self.generations.drop(generation)
        self.watchman.drop_rules(generation)
        self._slots.pop(generation, None)

    def _want(self, generation: int) -> None:
        """Have all workers be of that generation, and as many as its options say, if those say something new.

        Nothing here can fail: what may be wrong with a generation was found when it was loaded.
        """
        before, after = self.settings, self.generations.settings(generation)
        self._slots[self.wanted.generation] = slots = self.wanted.slots
        if after.workers != before.workers:  # back to a generation: back to its number, which `scale` may have set
            slots = self._slots.get(generation, after.workers)
        self.wanted = planning.Wanted(slots, generation, after.max_surge)
        self.watchman.apply_rules(generation)
        self.lives.actions.apply_settings(after)
        if self.keeping is not None:
            self.keeping.apply_timeout(after)
        if self.monitoring is not None:
            self.monitoring.apply_settings(after)
        self.estate.board.header.generation = generation
        if self.generations.nursery(generation) is None:
            # Its zygote died while another generation was tried out.
            self.loading.load_again()

    @property
    def settings(self) -> Settings:
        """The options of the generation that is wanted."""
        return self.generations.settings(self.wanted.generation)

    # The end

    async def _leave(self) -> int:
        self._rounds.stop()
        self.departure.close()
        if self.keeping is not None:
            self.keeping.close()
        await self.generations.wait_closed(0.0 if self.phase is MasterPhase.STOPPING else _ZYGOTE_SHUTDOWN_GRACE_S)
        await self.switchboard.close(0.0 if self.phase is MasterPhase.STOPPING else _HANDLERS_SHUTDOWN_GRACE_S)
        self.verbs.give_up()  # before the monitor leaves, which may pass an answer on
        if self.monitoring is not None:
            await self.monitoring.wait_closed(0.0 if self.phase is MasterPhase.STOPPING else _MONITOR_SHUTDOWN_GRACE_S)
        if self.departure.failure is not None:
            raise self.departure.failure
        return 0

    async def close(self) -> None:
        """End what is left, which is nothing unless `run` was cancelled or failed; then the control connections.

        Whoever waits for our end learns of it by theirs.
        """
        if not self._finished():
            self.departure.failure = None
            self.departure.kill_all()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_SHUTDOWN_GRACE_S):
                    while not self._finished():
                        await self._attend(await self._facts.get())
            await self._leave()
        if self.monitoring is not None:
            await self.monitoring.wait_closed(0.0)
        self._kill_leftovers()
        self.steering.close()
        await self._control.close()

    def _kill_leftovers(self) -> None:
        """Kill what still holds a socket of ours. Not in a user's program, whose own forks hold them as well."""
        if self.estate.owns_process:
            sockets = [listener.sock.fileno() for _, listener in self.estate.listeners]
            # A listener whose door could not be shut was closed when the drain began (`Departure`).
            held = [*self.estate.board.descriptors, *(fd for fd in sockets if fd >= 0)]
            for pid in leftover_processes.kill_holders(held):
                logger.warning("process %d, a fork that never became a worker, was killed", pid)

    def reopen_logs(self) -> None:
        """Somebody has renamed log files: everybody is to open theirs again. Who isn't told looks once a second anyway."""
        if self.estate.logbook is not None:
            self.estate.logbook.poll()
            self.generations.reopen_logs()
            for handle in self.roster:
                handle.send(messages.Reopen())

    def warn(self, text: str) -> None:
        """Tell operators something."""
        logger.warning("%s", text)
        self.emit(events.Warned(time=time.time(), text=text))

    def _report(self, text: str, detail: str) -> None:
        """Tell operators of a step that has failed."""
        self.warn(text)
        if detail:
            logger.error("%s", detail)
