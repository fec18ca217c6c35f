"""The master: one loop over one inbox.

The *wanted* state (how many workers, of which generation) is kept apart from the *observed* one (the registry of workers). A
message changes one of the two. Then the loop converges: `core.planning.plan` decides which workers are missing or superfluous,
and the supervisor makes or retires them. Nothing else starts or ends a worker.

This module wires the parts together and dispatches messages. The parts share `ClusterState`, and none takes the master.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from ... import events
from ...core import lifecycle, planning
from ...errors import ClusterError
from ...linux import leftover_processes
from ...protocol import messages
from .control.cluster_status import StatusBuilder
from .control.commands import SIGNAL_COMMANDS, CommandHandler
from .control.server import ControlServer
from .control.subscribers import EventSubscribers
from .descriptor_budget import DescriptorBudget
from .generations.generations import GenerationTable
from .generations.loader import GenerationLoader
from .generations.reloader import Reloader
from .helpers.helper import HelperProcess
from .helpers.keeper import KeeperProcess
from .helpers.monitor import MonitorProcess
from .messaging.hub import MessageHub
from .periodic import PeriodicTasks
from .pids_guard import PidsGuard
from .resources import MasterResources
from .shutdown import Shutdown
from .state.cluster_state import ClusterState, MasterPhase
from .state.inbox import (
    ChannelClosed,
    Command,
    Exited,
    GenerationFailed,
    HelperExited,
    Inbox,
    InboxMessage,
    LameDuckExpired,
    ProtocolViolation,
    Signal,
    StartFailed,
    StateTimeout,
    Tick,
    WorkerExitFailed,
    WorkerMessage,
    WorkerStartFailed,
    WorkerVanished,
    ZygoteMessage,
)
from .workers.health_monitor import HealthMonitor
from .workers.steering import Steering
from .workers.supervisor import WorkerSupervisor

logger = logging.getLogger("cluster2.master")

_ZYGOTE_SHUTDOWN_GRACE_S = 2.0
"""Seconds that a zygote may take to exit at the end; it may be in the middle of the app's import."""
_HANDLERS_SHUTDOWN_GRACE_S = 5.0
"""Seconds for calls that workers have delegated last and don't wait for."""
_MONITOR_SHUTDOWN_GRACE_S = 2.0
"""Seconds for the monitor to exit at the end."""
_KILLED_SHUTDOWN_GRACE_S = 5.0
"""Seconds for the processes to end that are killed because `run` failed."""


class Master:
    """Keeps the wanted workers serving."""

    def __init__(
        self,
        resources: MasterResources,
        *,
        emit: Callable[[events.Event], None],
        on_ready: Callable[[], None],
        hub: MessageHub | None = None,
    ) -> None:
        """Make the parts. Call this inside a running event loop.

        Args:
            emit: takes the events.
            on_ready: called once, when all workers are ready for the first time.
            hub: carries the messages between the app's code in the master and in the workers.
        """
        self.resources = resources
        self._emit = emit
        self._on_ready = on_ready
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox()
        self._slots: dict[int, int] = {}  # by generation: its number of workers, which `scale` may have set
        settings, board, listeners = resources.options.settings, resources.board, resources.listeners
        self.subscribers = EventSubscribers()
        self.state = state = ClusterState(settings, board.header, self.emit, self.post)
        self.hub = hub or MessageHub()
        self.hub.start(self.emit)
        self.generations = GenerationTable(resources, self.post, self.emit)
        self.steering = Steering(listeners, board, settings.backlog)
        self.health_monitor = HealthMonitor(board, self.post, state.warn)
        self._control = ControlServer(self.post)
        self._pids_guard = PidsGuard(resources.pids, self._control, state.registry, state.warn)
        self.keeper = KeeperProcess.from_resources(resources, self.post)
        self.monitor = MonitorProcess.from_resources(resources, self.post, self._control.serve_client)
        self.helpers: list[HelperProcess] = [each for each in (self.keeper, self.monitor) if each is not None]
        self.supervisor = WorkerSupervisor(
            state,
            resources,
            source=self.generations.factory,
            steering=self.steering,
            health_monitor=self.health_monitor,
            hub=self.hub,
            keeper=self.keeper,
            children=self.children,
        )
        self.reloader = Reloader(state, self._load, self._want, self._drop, self._count_reload)
        self.loader = GenerationLoader(
            state,
            resources,
            generations=self.generations,
            reloader=self.reloader,
            supervisor=self.supervisor,
            steering=self.steering,
            health_monitor=self.health_monitor,
            keeper=self.keeper,
            budget=DescriptorBudget(resources, state.registry, self.keeper),
        )
        self.shutdown = Shutdown(
            state,
            supervisor=self.supervisor,
            generations=self.generations,
            reloader=self.reloader,
            steering=self.steering,
            keeper=self.keeper,
        )
        self._periodic = PeriodicTasks(
            state,
            resources,
            loader=self.loader,
            supervisor=self.supervisor,
            steering=self.steering,
            health_monitor=self.health_monitor,
            helpers=self.helpers,
            children=self.children,
        )
        self.commands = CommandHandler(
            state,
            resources,
            loader=self.loader,
            generations=self.generations,
            reloader=self.reloader,
            shutdown=self.shutdown,
            hub=self.hub,
            status=StatusBuilder(state, resources, monitor=self.monitor, hub=self.hub, steering=self.steering),
            subscribers=self.subscribers,
        )

    def post(self, message: InboxMessage) -> None:
        """Put a message into the inbox."""
        self._inbox.post(message)

    def emit(self, event: events.Event) -> None:
        """Emit an event to the handlers in this process and the subscribers of the control socket."""
        self._emit(event)
        self.subscribers.publish(event)

    def children(self) -> set[int]:
        """Return the pids of the children that this master has made and reaps."""
        return self.state.registry.pids().union(self.generations.pids(), *(helper.pids() for helper in self.helpers))

    async def run(self) -> int:
        """Serve until the cluster has ended. Return the exit code.

        Raises:
            ClusterError: the first workers could not be made ready.
        """
        state = self.state
        generation = state.wanted.generation
        header = state.header
        header.generation, header.started, header.traffic = generation, time.time(), 1
        header.wanted, header.beat = state.wanted.slots, time.monotonic()
        self.health_monitor.prepare(generation, state.settings)
        self.health_monitor.apply_rules(generation)
        await self._pids_guard.open()
        for number in SIGNAL_COMMANDS if self.resources.owns_process else ():
            self._loop.add_signal_handler(number, self.post, Signal(number))
        if self.resources.log_directory is not None:
            self.resources.log_directory.start(state.warn)
        if self.monitor is not None:
            self.monitor.start()
        self.generations.load(generation)
        self._periodic.start()
        while not self._has_ended():
            await self._attend(await self._inbox.get())
        return await self._leave()

    def _has_ended(self) -> bool:
        """Return True if the cluster ends, and all workers and the keeper have exited."""
        if not self.state.ending or len(self.state.registry):
            return False
        return self.keeper is None or not self.keeper.alive()

    # Messages

    async def _attend(self, message: InboxMessage) -> None:
        """Handle a message, and do what follows from it.

        Once the cluster serves, an error here is reported, and the workers serve on.
        """
        step = f"a fault in the master ({type(message).__name__})"
        try:
            self._handle(message)
            self._handle_failures()
            self._check_ready()
            if isinstance(message, Tick):
                await self._pids_guard.restore_missing()
            await self._converge()
            self.commands.pending.poll()
        except Exception as error:
            if self.state.phase is MasterPhase.BOOTING:
                raise
            self.state.guard.failed(step, error, "it goes on")
        else:
            self.state.guard.worked(step)

    def _handle(self, message: InboxMessage) -> None:
        match message:
            case ZygoteMessage():
                self.loader.on_message(message)
            case WorkerMessage():
                self.supervisor.on_message(message.worker, message.message)
            case ProtocolViolation():
                logger.warning("%s violated the protocol and is replaced: %s", message.worker, message.text)
                self.supervisor.kill(message.worker, "crash")
            case ChannelClosed():
                self.supervisor.on_channel_closed(message.worker)
            case Exited():
                self.supervisor.on_exited(message.worker)
            case WorkerVanished():
                self.supervisor.on_exit_recorded(message.worker, None)
            case StateTimeout():
                self.supervisor.on_timeout(message.worker, message.state)
            case HelperExited():
                self._on_helper_exited(message)
            case StartFailed():
                self.shutdown.fail(message.error)
            case GenerationFailed():
                self._on_generation_failed(message.generation, message.error)
            case WorkerStartFailed():
                self.commands.pending.on_start_failed(message.slot, message.text)
            case WorkerExitFailed():
                self._on_worker_exit_failed(message)
            case Signal():
                self.commands.on_signal(message.number)
            case Command():
                self.commands.on_command(message)
            case LameDuckExpired():
                self.shutdown.on_lame_duck_expired()
            case Tick():
                self._periodic.run_due()

    def _handle_failures(self) -> None:
        while (failure := self._inbox.next_failure()) is not None:
            self._handle(failure)

    def _on_generation_failed(self, generation: int, error: ClusterError) -> None:
        if self.state.phase is MasterPhase.BOOTING:
            self.shutdown.fail(error)
        elif self.state.is_new(generation):
            self.reloader.abandon(error)
        else:
            self.loader.report_failure(generation, error)

    def _on_worker_exit_failed(self, message: WorkerExitFailed) -> None:
        """Pass a fault on to the command that wanted the worker to leave."""
        self.commands.pending.on_exit_failed(message.worker, message.text)
        self.reloader.on_exit_failed(message.worker.generation, message.text)
        if self.state.phase is MasterPhase.DRAINING:
            self.shutdown.faults.append(message.text)

    def _on_helper_exited(self, message: HelperExited) -> None:
        """Start the helper again. At the end of the cluster, notify the workers that the keeper gives nothing back."""
        (helper,) = (each for each in self.helpers if each.name == message.name)
        if helper is self.keeper and self.state.ending:
            for handle in self.state.registry if self.state.phase is MasterPhase.DRAINING else ():
                handle.send(messages.KeeperGone())
        elif self.state.phase is not MasterPhase.STOPPING:
            pause = helper.schedule_start()
            when = f"in {pause:g} s" if pause else "now"
            self.state.warn(f"the {helper.name} {message.how}; another is started {when}")

    def _check_ready(self) -> None:
        """Report that the cluster serves when all of the first workers are ready."""
        state = self.state
        if state.phase is MasterPhase.BOOTING and state.registry.ready() == state.wanted.slots:
            state.phase = MasterPhase.SERVING
            self._on_ready()
            self.reloader.open()

    # Convergence

    async def _converge(self) -> None:
        """Make and retire workers until the observed state is the wanted one."""
        header = self.state.header
        header.wanted, header.phase = self.state.wanted.slots, lifecycle.PHASES.index(self.state.label)
        if self.state.ending:
            return
        now = time.monotonic()
        self.reloader.advance(now, self.state.registry.views(), self.state.wanted.slots)
        while not await self._carry_out_plan(now):
            self._handle_failures()
        restarts = self.state.restarts
        times = [when for when in (restarts.next_time(now), self.reloader.next_deadline()) if when is not None]
        self._periodic.tick_at(min(times, default=None))

    async def _carry_out_plan(self, now: float) -> bool:
        """Make and retire workers. Return False if that has led to a failure, after which another plan has to be made."""
        decisions = planning.plan(
            self.state.wanted,
            self.state.registry.views(),
            available=self.generations.available(),
            blocked_slots=self.state.restarts.blocked_slots(now),
            may_retire=self.reloader.may_retire(),
            fallback_generation=self.reloader.fallback_generation(),
        )
        for decision in decisions:
            if self.state.ending:  # a program that runs this cluster may end it while a worker is being made
                return True
            match decision:
                case planning.Spawn():
                    await self.supervisor.spawn(decision.slot, decision.generation)
                case planning.Retire():
                    self.supervisor.retire(decision.incarnation)
            if self._inbox.has_failures():
                return False
        return True

    # Changes of generation

    def _load(self, generation: int) -> Sequence[str]:
        return self.loader.load(generation)

    def _drop(self, generation: int) -> None:
        self.loader.drop(generation)
        self._slots.pop(generation, None)

    def _want(self, generation: int) -> None:
        """Have all workers be of that generation, and as many as its options say if their number has changed.

        Nothing here can fail: errors in the options of a generation were found when it was loaded.
        """
        state = self.state
        before, after = state.settings, self.generations.settings(generation)
        self._slots[state.wanted.generation] = slots = state.wanted.slots
        if after.workers != before.workers:  # back to an old generation: back to the number that it had
            slots = self._slots.get(generation, after.workers)
        state.wanted = planning.Wanted(slots, generation, after.max_surge)
        state.settings = after
        self.health_monitor.apply_rules(generation)
        if self.keeper is not None:
            self.keeper.apply_timeout(after)
        if self.monitor is not None:
            self.monitor.apply_settings(after)
        state.header.generation = generation
        if self.generations.factory(generation) is None:
            # Its zygote ended while another generation was tried out.
            self.loader.load_again()

    def _count_reload(self, done: bool) -> None:
        header = self.state.header
        header.reloads, header.reloads_failed = header.reloads + done, header.reloads_failed + (not done)
        if done and self.state.restarts.forgive():
            self.emit(events.Recovered(time=time.time(), ready=self.state.registry.ready()))

    # The end

    async def _leave(self) -> int:
        at_once = self.state.phase is MasterPhase.STOPPING
        self._periodic.stop()
        self.shutdown.close()
        if self.keeper is not None:
            self.keeper.close()
        await self.generations.wait_closed(0.0 if at_once else _ZYGOTE_SHUTDOWN_GRACE_S)
        await self.hub.close(0.0 if at_once else _HANDLERS_SHUTDOWN_GRACE_S)
        self.commands.close()  # before the monitor exits, which may have asked for one of the responses
        if self.monitor is not None:
            await self.monitor.wait_closed(0.0 if at_once else _MONITOR_SHUTDOWN_GRACE_S)
        if self.shutdown.failure is not None:
            raise self.shutdown.failure
        return 0

    async def close(self) -> None:
        """End the processes that are left, which are none unless `run` was cancelled or failed; then the control connections.

        A client that waits for the end of this process learns of it by the end of its connection.
        """
        if not self._has_ended():
            self.shutdown.failure = None
            self.shutdown.kill_all()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_KILLED_SHUTDOWN_GRACE_S):
                    while not self._has_ended():
                        await self._attend(await self._inbox.get())
            await self._leave()
        if self.monitor is not None:
            await self.monitor.wait_closed(0.0)
        self._kill_leftovers()
        self.steering.close()
        await self._control.close()

    def _kill_leftovers(self) -> None:
        """Kill the processes that still hold a socket of this cluster.

        Not inside of another program: its own forks hold these sockets as well.
        """
        if self.resources.owns_process:
            sockets = [listener.sock.fileno() for _, listener in self.resources.listeners]
            # A listener that could not be shut was closed when the drain began (`Shutdown`).
            held = [*self.resources.board.descriptors, *(fd for fd in sockets if fd >= 0)]
            for pid in leftover_processes.kill_holders(held):
                logger.warning("process %d, a fork that never became a worker, was killed", pid)
