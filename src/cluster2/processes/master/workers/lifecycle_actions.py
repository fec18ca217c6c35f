"""The actions of the lifecycle's table (`core.lifecycle`): one method for each."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

from .... import events
from ....core import lifecycle
from ....core.lifecycle import WorkerAction, WorkerState
from ....core.planning import SHORT_LIFE_S
from ....errors import ConfigError
from ....events import Reason
from ....linux import ledger, processes
from ....linux.pid_files import PidsDirectory
from ....linux.processes import ExitStatus
from ....linux.scoreboard import Scoreboard
from ....protocol import messages
from ..helpers.child import KILL_TIMEOUT_S
from ..state.cluster_state import ClusterState
from ..state.handle import WorkerHandle
from ..state.inbox import Exited, StateTimeout, WorkerVanished

DRAIN_MARGIN_S = 2.0
"""Seconds beyond `drain_timeout` for a worker to stop its engine and exit by itself, before it is killed."""


class LifecycleActions:
    """Carries out what the table says about a worker.

    Attributes:
        last_drain: workers that drain from now on give nothing to the keeper: the cluster ends.
        open_doors: a listener could not be shut, so clients still arrive while workers drain.
    """

    def __init__(
        self, state: ClusterState, board: Scoreboard, pids: PidsDirectory, on_change: Callable[[], None]
    ) -> None:
        """Make the actions.

        Args:
            on_change: called when a worker has entered another state, before any action of that step.
        """
        self._state = state
        self._board = board
        self._pids = pids
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self.last_drain = False
        self.open_doors = False

    def apply(self, handle: WorkerHandle, event: lifecycle.WorkerEvent, status: ExitStatus | None = None) -> None:
        """Move a worker to the state that follows from an event, and do what belongs to that step."""
        before, phase = handle.state, handle.phase()
        handle.state, actions = lifecycle.step(before, event)
        if handle.state in (WorkerState.DYING, WorkerState.DEAD):
            handle.ended_in = phase
        if handle.state is not before:
            self.limit_time(handle)
            self._on_change()
        for action in actions:
            match action:
                case WorkerAction.WATCH:
                    self._watch(handle)
                case WorkerAction.ANNOUNCE:
                    self._announce(handle)
                case WorkerAction.TELL_DRAIN:
                    self._send_drain(handle)
                case WorkerAction.SIGKILL:
                    self._kill(handle)
                case WorkerAction.BURY:
                    self._record_exit(handle, status)

    def limit_time(self, handle: WorkerHandle) -> None:
        """Bound the time that a worker may stay in its state."""
        if handle.timer is not None:
            handle.timer.cancel()
            handle.timer = None
        settings = self._state.settings
        bound = {
            WorkerState.SPAWNING: settings.boot_timeout,
            WorkerState.BOOTING: settings.boot_timeout,
            WorkerState.READY: SHORT_LIFE_S,
            WorkerState.DRAINING: settings.drain_timeout + DRAIN_MARGIN_S,
            WorkerState.DYING: KILL_TIMEOUT_S,
        }.get(handle.state)
        if bound is not None:
            handle.timer = self._loop.call_later(bound, self._state.post, StateTimeout(handle, handle.state))

    def watch_again(self, handle: WorkerHandle) -> None:
        """Open a pidfd of a worker, and have the end of the process posted from now on.

        Raises:
            ProcessLookupError: there is no such process.
            OSError: it can't be watched now.
        """
        assert handle.pid is not None
        pidfd = processes.open_pidfd(handle.pid)
        try:
            self._loop.add_reader(pidfd, self._state.post, Exited(handle))
        except OSError:
            os.close(pidfd)
            raise
        handle.pidfd = pidfd

    def _watch(self, handle: WorkerHandle) -> None:
        assert handle.pid is not None
        try:
            self.watch_again(handle)
        except ProcessLookupError:  # it has ended and was reaped elsewhere: it never was a child of this process
            self._state.post(WorkerVanished(handle))
            return
        except OSError as error:  # no descriptor is left: `PeriodicTasks` tries again
            self._state.warn(f"worker {handle.pid} can't be watched now: {error.strerror}; it is tried again")
        self._update_pid_file(self._pids.write_worker, handle.pid)
        self._state.emit(
            events.Forked(time=time.time(), pid=handle.pid, slot=handle.slot, generation=handle.generation)
        )

    def _announce(self, handle: WorkerHandle) -> None:
        handle.ready_at = time.monotonic()
        assert handle.pid is not None
        self._state.emit(
            events.Listening(
                time=time.time(),
                pid=handle.pid,
                slot=handle.slot,
                generation=handle.generation,
                boot=handle.ready_at - handle.born,
            )
        )

    def _send_drain(self, handle: WorkerHandle) -> None:
        handle.send(messages.Drain(self.last_drain, self.open_doors))

    def _kill(self, handle: WorkerHandle) -> None:
        if handle.pidfd is not None:
            processes.send_signal(handle.pidfd, signal.SIGKILL)
        elif handle.pid is not None:  # without a pidfd; the pid is still its own, since only this process reaps it
            processes.kill_child(handle.pid)

    def _record_exit(self, handle: WorkerHandle, status: ExitStatus | None) -> None:
        if handle.pidfd is not None:
            self._loop.remove_reader(handle.pidfd)
            os.close(handle.pidfd)
        if handle.link is not None:
            handle.link.finish()
        os.close(handle.stacks_file)
        crashed = handle.pid is not None and reason_of(handle, status) in ("crash", "hang")
        ledger.fold_life(self._board, handle.row, handle.slot, lived=handle.pid is not None, crashed=crashed)
        self._state.registry.remove(handle)
        if handle.pid is None:
            return
        self._update_pid_file(self._pids.remove_worker, handle.pid)
        self._state.emit(_died(handle, status))

    def _update_pid_file(self, change: Callable[[int], None], pid: int) -> None:
        """Write or remove the pid file of a worker.

        These files are for other programs to read. A full disk, or a directory that was removed, must not end the cluster.
        """
        try:
            change(pid)
        except (ConfigError, OSError) as error:
            self._state.warn(f"the pid file of worker {pid}: {error}")


def _died(handle: WorkerHandle, status: ExitStatus | None) -> events.Died:
    assert handle.pid is not None
    return events.Died(
        time=time.time(),
        pid=handle.pid,
        slot=handle.slot,
        generation=handle.generation,
        code=None if status is None else status.code,
        signal=None if status is None or status.signal is None else str(status),
        uptime=handle.uptime(time.monotonic()),
        reason=reason_of(handle, status),
        stacks=handle.stacks,
        phase=handle.phase(),
    )


def reason_of(handle: WorkerHandle, status: ExitStatus | None) -> Reason:
    """Return the reason for which a worker ended: the master's if it had one, else by its exit status."""
    if handle.reason is not None:
        return handle.reason
    return "exit" if status is not None and status.code == 0 else "crash"
