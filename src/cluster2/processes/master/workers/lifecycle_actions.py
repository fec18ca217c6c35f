"""Carries out what the lifecycle's table says. Each action of the table is one method here."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable

from .... import events
from ....config.settings import Settings
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
from ..inbox import Exited, Fact, StateTimeout, WorkerVanished
from .handle import Handle
from .worker_registry import WorkerRegistry

logger = logging.getLogger("cluster2.master")

DRAIN_MARGIN_S = 2.0
"""Seconds beyond `drain_timeout` for a worker to stop its engine and leave by itself, before it is killed."""


class Actions:
    """What the master does to workers."""

    def __init__(
        self,
        settings: Settings,
        board: Scoreboard,
        pids: PidsDirectory,
        roster: WorkerRegistry,
        put: Callable[[Fact], None],
        emit: Callable[[events.Event], None],
        moved: Callable[[], None],
    ) -> None:
        """Nothing is done yet.

        Args:
            moved: called when a worker has come into another state, before anything else follows from that.
        """
        self._settings = settings
        self._board = board
        self._pids = pids
        self._roster = roster
        self._put = put
        self._emit = emit
        self._moved = moved
        self._loop = asyncio.get_running_loop()
        self.last_drain = False
        self.open_doors = False

    def apply_settings(self, settings: Settings) -> None:
        """These options count from now on."""
        self._settings = settings

    def apply(self, handle: Handle, event: lifecycle.WorkerEvent, status: ExitStatus | None = None) -> None:
        """Something happened to a worker: go to the next state and do what belongs to it."""
        before, doing = handle.state, handle.phase()
        handle.state, actions = lifecycle.step(before, event)
        if handle.state in (WorkerState.DYING, WorkerState.DEAD):
            handle.ended_in = doing
        if handle.state is not before:
            self.limit(handle)
            self._moved()
        for action in actions:
            match action:
                case WorkerAction.WATCH:
                    self._watch(handle)
                case WorkerAction.ANNOUNCE:
                    self._announce(handle)
                case WorkerAction.TELL_DRAIN:
                    self._tell_drain(handle)
                case WorkerAction.SIGKILL:
                    self._kill(handle)
                case WorkerAction.BURY:
                    self._record_exit(handle, status)

    def limit(self, handle: Handle) -> None:
        """Bound the time that a worker may stay in its state."""
        if handle.timer is not None:
            handle.timer.cancel()
            handle.timer = None
        bound = {
            WorkerState.SPAWNING: self._settings.boot_timeout,
            WorkerState.BOOTING: self._settings.boot_timeout,
            WorkerState.READY: SHORT_LIFE_S,
            WorkerState.DRAINING: self._settings.drain_timeout + DRAIN_MARGIN_S,
            WorkerState.DYING: KILL_TIMEOUT_S,
        }.get(handle.state)
        if bound is not None:
            handle.timer = self._loop.call_later(bound, self._put, StateTimeout(handle, handle.state))

    def _watch(self, handle: Handle) -> None:
        assert handle.pid is not None
        try:
            self.watch_again(handle)
        except ProcessLookupError:  # gone, and reaped by somebody else: it never was a child of ours
            self._put(WorkerVanished(handle))
            return
        except OSError as error:  # no descriptor is left: the next look tries again
            self._warn(f"worker {handle.pid} can't be watched now: {error.strerror}; it is tried again")
        self._note(self._pids.write_worker, handle.pid)
        self._emit(events.Forked(time=time.time(), pid=handle.pid, slot=handle.slot, generation=handle.generation))

    def watch_again(self, handle: Handle) -> None:
        """Be told of the end of a worker's process from now on.

        Raises:
            ProcessLookupError: there is no such process.
            OSError: it can't be watched now.
        """
        assert handle.pid is not None
        pidfd = processes.open_pidfd(handle.pid)
        try:
            self._loop.add_reader(pidfd, self._put, Exited(handle))
        except OSError:
            os.close(pidfd)
            raise
        handle.pidfd = pidfd

    def _announce(self, handle: Handle) -> None:
        handle.ready_at = time.monotonic()
        assert handle.pid is not None
        self._emit(
            events.Listening(
                time=time.time(),
                pid=handle.pid,
                slot=handle.slot,
                generation=handle.generation,
                boot=handle.ready_at - handle.born,
            )
        )

    def _tell_drain(self, handle: Handle) -> None:
        handle.send(messages.Drain(self.last_drain, self.open_doors))

    def _kill(self, handle: Handle) -> None:
        if handle.pidfd is not None:
            processes.send_signal(handle.pidfd, signal.SIGKILL)
        elif handle.pid is not None:  # it can't be watched
            processes.kill_child(handle.pid)

    def _record_exit(self, handle: Handle, status: ExitStatus | None) -> None:
        if handle.pidfd is not None:
            self._loop.remove_reader(handle.pidfd)
            os.close(handle.pidfd)
        if handle.talk is not None:
            handle.talk.finish()
        os.close(handle.stacks_file)
        crashed = handle.pid is not None and reason_of(handle, status) in ("crash", "hang")
        ledger.fold_life(self._board, handle.row, handle.slot, lived=handle.pid is not None, crashed=crashed)
        self._roster.remove(handle)
        if handle.pid is None:
            return
        self._note(self._pids.remove_worker, handle.pid)
        self._emit(_died(handle, status))

    def _note(self, change: Callable[[int], None], pid: int) -> None:
        """Pid files of workers are for others to read: a full disk, or a directory that was removed, ends no cluster."""
        try:
            change(pid)
        except (ConfigError, OSError) as error:
            self._warn(f"the pid file of worker {pid}: {error}")

    def _warn(self, text: str) -> None:
        logger.warning("%s", text)
        self._emit(events.Warned(time=time.time(), text=text))


def _died(handle: Handle, status: ExitStatus | None) -> events.Died:
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


def reason_of(handle: Handle, status: ExitStatus | None) -> Reason:
    """Why a worker ended: the master's reason if it had one, else what its exit tells."""
    if handle.reason is not None:
        return handle.reason
    return "exit" if status is not None and status.code == 0 else "crash"
