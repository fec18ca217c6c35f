"""Supervise workers from the order to make one until its exit is recorded.

Messages about a worker come here. The lifecycle's table (`core.lifecycle`) says what follows from one, and `lifecycle_actions`
does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from .... import events
from ....core import lifecycle
from ....core.lifecycle import WorkerState
from ....errors import AppError, ClusterError, by_exit_code
from ....events import during
from ....linux import app_forks, processes, stacks
from ....linux.processes import ExitStatus
from ....protocol import messages
from ....protocol.worker_descriptors import WorkerDescriptors
from ....runtime.step_guard import reason
from ..helpers.child import KILL_TIMEOUT_S
from ..helpers.keeper import KeeperProcess
from ..messaging.hub import MessageHub
from ..resources import MasterResources
from ..state.cluster_state import ClusterState, MasterPhase
from ..state.handle import WorkerHandle
from ..state.inbox import (
    GenerationFailed,
    ProtocolViolation,
    StartFailed,
    StateTimeout,
    WorkerExitFailed,
    WorkerStartFailed,
)
from .health_monitor import HealthMonitor
from .lifecycle_actions import LifecycleActions, reason_of
from .steering import Steering
from .worker_channel import WorkerChannel

logger = logging.getLogger("cluster2.master")
_app_logger = logging.getLogger("cluster2.app")

_SPAWN_REFUSED = "no worker can be made"
"""The report when the system refuses to make one."""
_BOOT_REFUSAL_INTERVAL_S = 1.0
"""Seconds for which the system may refuse all workers at the first start before the start fails."""
_STACKS_FIRST = frozenset({WorkerState.SPAWNING, WorkerState.BOOTING, WorkerState.DRAINING})
"""States in which a worker that has stayed for too long is killed, after its stacks have been logged."""


class WorkerSource(Protocol):
    """The part that makes the workers of a generation (`generations.worker_factory`).

    Attributes:
        forks: its workers are forked. False: each is executed and imports the app itself.
    """

    @property
    def forks(self) -> bool:
        """True if workers are forked."""

    def spawn(self, order: messages.Fork, descriptors: WorkerDescriptors) -> None:
        """Order a worker. The descriptors remain the caller's."""


class WorkerSupervisor:
    """The workers of a cluster.

    Attributes:
        actions: the actions of the lifecycle's table.
    """

    def __init__(
        self,
        state: ClusterState,
        resources: MasterResources,
        *,
        source: Callable[[int], WorkerSource | None],
        steering: Steering,
        health_monitor: HealthMonitor,
        hub: MessageHub,
        keeper: KeeperProcess | None,
        children: Callable[[], set[int]],
    ) -> None:
        """Supervise a cluster that has no worker yet.

        Args:
            source: returns the source of workers of a generation, or None while none can be made.
            children: returns the pids that this process reaps.
        """
        self._state = state
        self._resources = resources
        self._source = source
        self._steering = steering
        self._health_monitor = health_monitor
        self._hub = hub
        self._keeper = keeper
        self._children = children
        self._refused_since: float | None = None
        self.actions = LifecycleActions(state, resources.board, resources.pids, self.steer)

    def steer(self) -> None:
        """Steer new connections to the workers that are ready now."""
        with self._state.guard("new connections can't be steered"):
            self._steering.steer(self._state.registry, time.monotonic())

    # Messages

    def on_forked(self, incarnation: int, pid: int) -> None:
        """Record the pid of a worker. Its zygote and the worker itself report it; the first report counts."""
        handle = self._state.registry.find(incarnation)
        if handle is None:
            self._kill_unwanted(pid)
            return
        if handle.pid is not None:
            return  # reported twice, by the zygote and by the worker itself
        handle.pid = self._resources.board.row(handle.row).pid = pid
        self._refused_since = None
        self._state.restarts.made(handle.slot)
        self._state.guard.worked(_SPAWN_REFUSED)
        self.actions.apply(handle, lifecycle.WorkerEvent.FORKED)

    def _kill_unwanted(self, pid: int) -> None:
        """Kill a worker that was given up before it was forked. One that has already ended isn't a child any more."""
        if pid not in self._children() and processes.is_running_child(pid):
            os.kill(pid, signal.SIGKILL)  # not reaped yet, so the pid is still its own

    def on_message(self, handle: WorkerHandle, message: messages.ChannelMessage) -> None:
        """Handle a message of a worker."""
        if handle.state is WorkerState.DEAD:
            return  # sent before its end, read after it
        match message:
            case messages.Started():
                handle.started = True
                self.on_forked(handle.incarnation, message.pid)
                if message.version != messages.PROTOCOL_VERSION:
                    self._refuse_version(handle, message.version)
            case messages.Ready() if handle.pid is None:
                self._state.post(ProtocolViolation(handle, "it is ready, but has not sent that it started"))
            case messages.Ready():
                self.actions.apply(handle, lifecycle.WorkerEvent.READY)
                if self._state.rollout is not None:
                    self._state.rollout.ready(handle.generation, time.monotonic())
            case messages.SelfDraining():
                if handle.reason is None and handle.state is WorkerState.READY:
                    logger.info("%s leaves by itself", handle)
                    self.ask_to_leave(handle, lifecycle.WorkerEvent.DRAIN, "exit")
            case messages.BootFailed():
                self._on_boot_failed(handle, by_exit_code(message.exit_code, message.message, detail=message.detail))
            case messages.SetTraffic():
                self._state.set_traffic(message.enabled)
                handle.send(messages.TrafficSet(message.enabled))
            case messages.Note():
                self._state.warn(f"{handle}: {message.text}")
            case messages.Cut():
                handle.cut = message.text
                self._state.warn(f"{handle}: {message.text}")
            case messages.EndFailed():
                handle.end_failed = message.text
                self._state.warn(f"{handle}: {message.text}")
            case _:
                _app_logger.warning("%s sent a message that only a master sends: %r", handle, message)

    def on_channel_closed(self, handle: WorkerHandle) -> None:
        """Record that the channel of a worker has closed."""
        handle.link = None
        # With a pid, the exit of the process will be posted. Without one, the zygote reports what came of the order, unless the
        # zygote has ended as well.
        if handle.pid is None and self._source(handle.generation) is None and handle.state is not WorkerState.DEAD:
            self.forget(handle)

    def on_zygote_exited(self, generation: int) -> None:
        """Forget the workers that a zygote was to fork when it ended."""
        for handle in list(self._state.registry):
            if handle.generation == generation and handle.pid is None and handle.link is None:
                self.forget(handle)

    def on_fork_failed(self, incarnation: int, text: str) -> None:
        """Record that the zygote could not fork a worker."""
        handle = self._state.registry.find(incarnation)
        if handle is not None and handle.pid is None:
            self.forget(handle)
            self._on_refused(handle.slot, handle.generation, OSError(text))

    def _refuse_version(self, handle: WorkerHandle, version: int) -> None:
        """Refuse a worker whose messages this master doesn't understand."""
        versions = f"its messages are of version {version}, the master's of version {messages.PROTOCOL_VERSION}"
        self._on_boot_failed(handle, ClusterError(f"{versions}: cluster2 was upgraded in place; restart the cluster"))
        self.ask_to_leave(handle, lifecycle.WorkerEvent.KILL, "crash")

    def _on_boot_failed(self, handle: WorkerHandle, error: ClusterError) -> None:
        """Record that a new worker won't become ready."""
        if self._state.is_on_trial(handle.generation):
            self._state.post(GenerationFailed(handle.generation, error))
        else:
            self._state.warn(f"{handle} can't serve: {error.message}")

    # Exits

    def on_exited(self, handle: WorkerHandle) -> None:
        """Reap a worker whose process has ended."""
        if handle.pidfd is None or handle.state is WorkerState.DEAD:
            return
        try:
            status = processes.exit_of(handle.pidfd)
        except ChildProcessError:  # reaped by the program that the master runs in; its status isn't known
            self.on_exit_recorded(handle, None)
            return
        if status is not None:
            self.on_exit_recorded(handle, status)

    def on_exit_recorded(self, handle: WorkerHandle, status: ExitStatus | None) -> None:
        """Record the exit of a worker. If the master didn't want it to leave, count a crash.

        Args:
            status: None: not known, or there never was a process.
        """
        if handle.state is WorkerState.DEAD:
            return  # recorded before: one that vanishes before it can be watched is found at each tick until this is handled
        if handle.state in lifecycle.LIVE_STATES:
            handle.forget_replacement()  # it had no order to leave: it has ended by itself
        exit_wanted = handle.exit_wanted
        fault = departure_fault(handle, status)
        self.forget(handle, status)
        if fault is not None:
            self._state.post(WorkerExitFailed(handle, fault))
        if exit_wanted or self._state.ending:
            return
        if handle.ready_at is None:
            if handle.pid is None:
                text = f"a worker for slot {handle.slot} could not be made"
            else:
                text = f"{handle} {_ended(status)} before it was ready ({_how(status)})"
            self._state.post(WorkerStartFailed(handle.slot, text))
        if self._state.is_new(handle.generation):
            if handle.pid is None:
                error = AppError("a worker of the new generation could not be made; the log says why")
            else:
                how = f"{_how(status)} {during(handle.phase())}"
                error = AppError(f"a worker of the new generation {_ended(status)} ({how}); its log says why")
            self._state.post(GenerationFailed(handle.generation, error))
            return
        self._count_crash(handle, status)

    def _count_crash(self, handle: WorkerHandle, status: ExitStatus | None) -> None:
        now = time.monotonic()
        restarts = self._state.restarts
        was_degraded = restarts.degraded
        wait = restarts.crashed(handle.slot, handle.uptime(now), now)
        if wait and self._state.phase is not MasterPhase.BOOTING:
            self._state.warn(f"slot {handle.slot} backs off: its next worker is made in {wait:.1f} s")
        if restarts.degraded and not was_degraded:
            self._on_degraded(handle, status, now)

    def forget(self, handle: WorkerHandle, status: ExitStatus | None = None) -> None:
        """Remove a worker that has ended, or that was never made because its zygote ended, which isn't a crash of its own."""
        if handle.state is WorkerState.DEAD:
            return
        log_directory = self._resources.log_directory
        if log_directory is not None and handle.pid is not None:
            log_directory.note_exit(handle.slot, handle.pid, _how(status), handle.exit_wanted)
        self.actions.apply(handle, lifecycle.WorkerEvent.EXITED, status)
        self._steering.release(handle.place)
        self._health_monitor.forget(handle)

    def _on_degraded(self, handle: WorkerHandle, status: ExitStatus | None, now: float) -> None:
        if self._state.phase is MasterPhase.BOOTING:
            how = f"{reason_of(handle, status)}: {_how(status)} {during(handle.phase())}"
            self._state.post(StartFailed(AppError(f"workers end before they are ready ({how}); their log says why")))
            return
        restarts = self._state.restarts
        crashes = restarts.crashes(now)
        logger.error("degraded: %d workers crashed within %.0f s; restarts back off", crashes, restarts.window)
        self._state.emit(
            events.Degraded(
                time=time.time(),
                crashes=crashes,
                ready=self._state.registry.ready(),
                wanted=self._state.wanted.slots,
            )
        )

    def on_timeout(self, handle: WorkerHandle, state: WorkerState) -> None:
        """Handle a worker that has been in a state for as long as it may."""
        if handle.state is not state:  # a message that was before this one in the inbox has ended that state
            return
        settings = self._state.settings
        if state in _STACKS_FIRST and handle.overdue is not state and handle.pidfd is not None:
            handle.overdue = state
            self._health_monitor.take_stacks(handle, StateTimeout(handle, state))
            return
        match state:
            case WorkerState.READY:
                self._state.restarts.settled(handle.slot)
            case WorkerState.SPAWNING | WorkerState.BOOTING:
                self._on_boot_timeout(handle, settings.boot_timeout)
            case WorkerState.DRAINING:
                bound = f"within drain_timeout ({settings.drain_timeout:g} s)"
                handle.cut = handle.cut or f"it did not leave {bound} and was killed"
                self._state.warn(f"{handle} hasn't left {bound}; it is killed")
                self.kill(handle, handle.reason)
            case WorkerState.DYING:
                self._state.warn(f"{handle} has not ended {KILL_TIMEOUT_S:g} s after SIGKILL; it is given up")
                self.on_exit_recorded(handle, None)
            case _:
                pass

    def _on_boot_timeout(self, handle: WorkerHandle, timeout_s: float) -> None:
        text = f"{handle} wasn't ready within boot_timeout ({timeout_s:g} s)"
        if self._state.is_on_trial(handle.generation):
            error = AppError(text, detail=handle.stacks or "")
            self._state.post(GenerationFailed(handle.generation, error))
        if self._state.phase is not MasterPhase.BOOTING:  # else the failure kills all workers
            self._state.warn(f"{text}; it is killed")
            self.kill(handle, "crash")

    # Orders

    async def spawn(self, slot: int, generation: int) -> None:
        """Order a worker. If the system refuses (descriptors, memory, processes), report that and try again later."""
        try:
            await self._order(slot, generation)
        except ConnectionError:
            return  # the zygote is ending just now, which the next message says
        except (OSError, ClusterError) as error:
            self._on_refused(slot, generation, error)

    async def _order(self, slot: int, generation: int) -> None:
        """Make all that a worker needs, and order it. After an error nothing is left of that.

        Raises:
            OSError, ClusterError: it can't be made now.
        """
        board = self._resources.board
        with contextlib.ExitStack() as undo:
            place = self._steering.take(generation)
            undo.callback(self._steering.release, place)
            row = board.claim()
            undo.callback(board.release, row)
            stacks_file = stacks.create()
            undo.callback(os.close, stacks_file)
            handle = WorkerHandle(
                incarnation=self._state.registry.next_incarnation(),
                slot=slot,
                generation=generation,
                row=row,
                born=time.monotonic(),
                place=place,
                stacks_file=stacks_file,
            )
            # The handle is SPAWNING until the pid is reported. The row says BOOTING from the start: later only the worker writes its
            # state, and its first value is BOOTING as well, so the readers of the scoreboard never see SPAWNING.
            cells = board.row(row)
            cells.slot, cells.generation, cells.started, cells.state = (
                slot,
                generation,
                handle.born,
                WorkerState.BOOTING,
            )
            undo.callback(setattr, handle, "state", WorkerState.DEAD)  # so messages still in its channel are ignored
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            app_forks.withhold(ours)
            with theirs:
                patience = self._state.settings.max_heartbeat_delay
                _, channel = await asyncio.get_running_loop().create_unix_connection(
                    lambda: WorkerChannel(handle, self._state.post, self._hub, patience), sock=ours
                )
                undo.callback(channel.close)
                source = self._source(generation)
                # The zygote may have ended while this coroutine waited, or the cluster may be ending: no crash of a worker.
                if source is None or self._state.ending:
                    return
                handle.executed = not source.forks
                with self._descriptors(handle, theirs) as descriptors:
                    source.spawn(self._fork_order(handle), descriptors)
            handle.link = channel
            undo.pop_all()
        self._state.registry.add(handle)
        self.actions.limit_time(handle)

    @contextlib.contextmanager
    def _descriptors(self, handle: WorkerHandle, channel: socket.socket) -> Iterator[WorkerDescriptors]:
        """Lend the descriptors of a new worker until it is ordered."""
        lifeline = self._resources.lifeline.twin()
        try:
            yield WorkerDescriptors(
                channel=channel.fileno(),
                stacks_file=handle.stacks_file,
                lifeline=lifeline,
                scoreboard=self._resources.board.descriptors,
                sockets=self._steering.descriptors(handle),
                queues=self._queues(),
            )
        finally:
            os.close(lifeline)

    def _queues(self) -> list[int]:
        return self._keeper.descriptors() if self._keeper is not None and self._keeper.serves else []

    def _fork_order(self, handle: WorkerHandle) -> messages.Fork:
        return messages.Fork(
            incarnation=handle.incarnation,
            slot=handle.slot,
            generation=handle.generation,
            row=handle.row,
            master=os.getpid(),
            sockets=[
                messages.Socket(app_index, str(listener.address), listener.owned)
                for app_index, listener in self._resources.listeners
            ],
            keeper=bool(self._queues()),
            logs=self._log_directory(handle.slot),
        )

    def _log_directory(self, slot: int) -> str:
        log_directory = self._resources.log_directory
        if log_directory is None:
            return ""
        log_directory.ensure_file(slot)
        return log_directory.directory

    def _on_refused(self, slot: int, generation: int, error: Exception) -> None:
        """Report that the system doesn't give what a worker needs, and put off the next attempt."""
        now = time.monotonic()
        self._state.restarts.refused(slot, now)
        self._refused_since = self._refused_since or now
        why = ClusterError(f"{_SPAWN_REFUSED}: {reason(error)}")
        if self._state.is_new(generation):
            self._state.post(GenerationFailed(generation, error if isinstance(error, ClusterError) else why))
        elif self._state.phase is MasterPhase.BOOTING and now - self._refused_since > _BOOT_REFUSAL_INTERVAL_S:
            self._state.post(StartFailed(why))
        else:
            self._state.guard.failed(_SPAWN_REFUSED, error)
            self._state.post(WorkerStartFailed(slot, why.message))

    # Ends

    def retire(self, incarnation: int) -> None:
        """Have a worker leave whose successor is ready, or whose slot isn't wanted any more."""
        handle = self._state.registry.find(incarnation)
        if handle is not None:
            how = lifecycle.WorkerEvent.DRAIN if handle.drain_first else lifecycle.WorkerEvent.KILL
            self.ask_to_leave(handle, how, handle.reason or self._retire_reason(handle))

    def _retire_reason(self, handle: WorkerHandle) -> events.Reason:
        if handle.slot >= self._state.wanted.slots:
            return "scale"
        return "recycle" if handle.replace is not None else "reload"

    def ask_to_leave(self, handle: WorkerHandle, event: lifecycle.WorkerEvent, because: events.Reason | None) -> None:
        """Have a worker leave, for this reason."""
        handle.reason = because
        self.actions.apply(handle, event)

    def kill(self, handle: WorkerHandle, because: events.Reason | None) -> None:
        """End a worker at once.

        One without a pid is forgotten. If it has a process all the same, that is killed when its pid is reported.
        """
        self.ask_to_leave(handle, lifecycle.WorkerEvent.KILL, because)
        if handle.pid is None:
            self.on_exit_recorded(handle, None)


def departure_fault(handle: WorkerHandle, status: ExitStatus | None) -> str | None:
    """Return what went wrong when a worker left that had to leave, for the command that wanted it; None: nothing.

    An old worker that crashes during a reload counts, although it had no order yet: its connections broke.

    Args:
        handle: as it was before it ended.
        status: how it ended; None: not known.
    """
    if handle.pid is None or handle.reason == "stop":
        return None
    if handle.ready_at is None:  # cancelled before it had a request to lose, however it ended
        return None
    if faults := [each for each in (handle.cut, handle.end_failed) if each is not None]:
        return f"{handle}: {'; '.join(faults)}"
    if status == ExitStatus(code=0) and handle.state not in lifecycle.LIVE_STATES:
        return None
    if handle.state in lifecycle.LIVE_STATES:
        # One that no command has named, and that had no order yet, concerns a reload only: that replaces each worker.
        unasked = handle.reason is None and handle.replace is None
        return f"{handle} {_ended(status)} {'during the reload' if unasked else 'instead of draining'} ({_how(status)})"
    if handle.reason == "hang" and not handle.drain_first:
        return f"{handle} was stuck and was killed"
    return f"{handle} {_ended(status)} while it drained ({_how(status)})"


def _ended(status: ExitStatus | None) -> str:
    """Return the verb for an end: a process that returns an exit code has not died."""
    return "exited" if status is not None and status.signal is None else "died"


def _how(status: ExitStatus | None) -> str:
    return "how isn't known" if status is None else str(status)
