"""Tasks that are due although nothing has happened: once a second, and when a timer asks for it.

They check heartbeats (of workers in `HealthMonitor`, of keeper and monitor in `HelperProcess`), reap stray processes, emit the
`heartbeat` event, and start zygotes again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ... import events
from ...core.lifecycle import WorkerState
from ...linux import processes
from ...linux.cells import UNKNOWN_VALUE
from .control.heartbeat_event import Heartbeats
from .generations.loader import GenerationLoader
from .helpers.helper import HelperProcess
from .resources import MasterResources
from .state.cluster_state import ClusterState
from .state.inbox import Tick, WorkerVanished
from .workers.health_monitor import HealthMonitor
from .workers.steering import Steering
from .workers.supervisor import WorkerSupervisor

logger = logging.getLogger("cluster2.master")

_MAX_PROCESSES_NAMED = 5
"""Child processes of a worker that are named in a line."""
_TICK_INTERVAL_S = 1.0
"""Seconds between two ticks."""


class PeriodicTasks:
    """The tasks of a tick, and its timer."""

    def __init__(
        self,
        state: ClusterState,
        resources: MasterResources,
        *,
        loader: GenerationLoader,
        supervisor: WorkerSupervisor,
        steering: Steering,
        health_monitor: HealthMonitor,
        helpers: Sequence[HelperProcess],
        children: Callable[[], set[int]],
    ) -> None:
        """Make the tasks; none runs before `start`.

        Args:
            children: returns the pids of the children that other parts of the master reap.
        """
        self._state = state
        self._resources = resources
        self._loader = loader
        self._supervisor = supervisor
        self._steering = steering
        self._health_monitor = health_monitor
        self._helpers = helpers
        self._children = children
        self._loop = asyncio.get_running_loop()
        self._heartbeats = Heartbeats(resources.board, time.monotonic())
        self._last_run = 0.0
        self._ticker: asyncio.TimerHandle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        # systemd asks for two notifications within the watchdog's time, however short that is (sd_watchdog_enabled(3)).
        self._interval_s = min(_TICK_INTERVAL_S, resources.notifier.watchdog / 2 or _TICK_INTERVAL_S)

    def start(self) -> None:
        """Post a `Tick` now, and again at least once a second."""
        self._state.post(Tick())
        self._ticker = self._loop.call_later(self._interval_s, self.start)

    def tick_at(self, when: float | None) -> None:
        """Post another `Tick` at that time, for a slot that backs off: the next regular one may come too late for it."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if when is not None:
            self._alarm = self._loop.call_later(max(0.0, when - time.monotonic()), self._state.post, Tick())

    def stop(self) -> None:
        """Post no more ticks."""
        for timer in (self._alarm, self._ticker):
            if timer is not None:
                timer.cancel()

    def run_due(self) -> None:
        """Run what is due. A task that fails is reported, and tried again at the next tick."""
        state, resources = self._state, self._resources
        guard = state.guard
        resources.notifier.alive()
        if resources.terminal is not None:
            resources.terminal.check_hangup()
        now = time.monotonic()
        with guard("workers can't be watched"):
            self._watch_unwatched()
        # After a suspend, or when this process was starved, the heartbeats of the others are late as well. That proves nothing.
        if now - self._last_run < 2 * _TICK_INTERVAL_S:
            self._check_health(now)
        self._last_run = state.header.beat = now
        with guard("child processes of workers can't be found"):
            self._note_child_processes()
        with guard("the accept queues can't be read"):
            waiting = self._steering.queued()
            state.header.waiting = UNKNOWN_VALUE if waiting is None else waiting
        with guard("the heartbeat event"):
            beat = self._heartbeats.event_if_due(state.registry, now, state.settings.heartbeat_interval)
            if beat is not None:
                state.emit(beat)
        with guard("stray processes can't be reaped"):
            self._reap_strays()
        with guard("the app can't be loaded again"):
            self._loader.load_if_due(now)
        if state.registry.ready() >= state.wanted.slots and state.restarts.recovered(now):
            state.emit(events.Recovered(time=time.time(), ready=state.registry.ready()))

    def _reap_strays(self) -> None:
        """Reap children that the app has left behind.

        Not while the pid of a worker is awaited: if that worker has ended already, it would be taken for a stray, and its exit
        code would be lost.
        """
        if self._resources.owns_process and all(handle.pid is not None for handle in self._state.registry):
            processes.reap_strays(self._children())

    def _note_child_processes(self) -> None:
        """Find the processes of the app for which workers wait that have drained, and log them once.

        The interpreter of such a worker joins the processes of `multiprocessing`, and an executor's. `drain_timeout` bounds that.
        """
        for handle in self._state.registry:
            # A worker closes its channel when it has drained. It exits within milliseconds then, unless it waits.
            if handle.state is not WorkerState.DRAINING or handle.link is not None or handle.pid is None:
                continue
            own = _program(handle.pid)
            names = {pid: _program(pid) for pid in processes.children(handle.pid)}
            found = [f"{pid} ({'a fork' if name == own else name})" for pid, name in names.items()]
            known, handle.waits_for = handle.waits_for, _summary(found)
            if found and not known:
                logger.info("%s has drained, and waits for its child processes: %s", handle, handle.waits_for)

    def _watch_unwatched(self) -> None:
        """Watch the workers for which there was no descriptor when they were made."""
        for handle in self._state.registry:
            if handle.pid is not None and handle.pidfd is None:
                try:
                    self._supervisor.actions.watch_again(handle)
                except ProcessLookupError:
                    self._state.post(WorkerVanished(handle))

    def _check_health(self, now: float) -> None:
        guard = self._state.guard
        for helper in self._helpers:
            with guard(f"the {helper.name} can't be checked"):
                if (report := helper.kill_if_stuck(now)) is not None:
                    self._state.warn(report)
        if self._state.phase.serves:
            with guard("workers can't be checked"):
                self._health_monitor.check_all(self._state.registry, now)
            self._supervisor.steer()
            with guard("connections that wait where no worker accepts"):
                self._serve_stranded_clients(now)

    def _serve_stranded_clients(self, now: float) -> None:
        """Recycle the oldest worker if clients wait in an accept queue that no worker has: its successor takes that queue."""
        workers = list(self._state.registry)
        if not self._steering.has_stranded_clients() or any(handle.replace is not None for handle in workers):
            return
        serving = [handle for handle in workers if handle.state is WorkerState.READY]
        if serving and len(serving) == len(workers):
            min(serving, key=lambda handle: handle.born).mark_for_replacement("recycle", now)


def _program(pid: int) -> str:
    """Return the name of a process, as `ps -o comm` shows it."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return "has ended"


def _summary(found: Sequence[str]) -> str:
    more = f" and {len(found) - _MAX_PROCESSES_NAMED} more" if len(found) > _MAX_PROCESSES_NAMED else ""
    return ", ".join(found[:_MAX_PROCESSES_NAMED]) + more
