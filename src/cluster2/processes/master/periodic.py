"""What is looked at although nothing has happened: once a second, and when something is due.

Signs of life (of workers by the `watchman`, of helpers), strays to reap, the aggregated heartbeat, zygotes to be started again.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from ... import events
from ...core.lifecycle import WorkerState
from ...linux import processes
from ...linux.cells import UNKNOWN_VALUE
from .control.heartbeat_event import Heartbeats
from .inbox import Tick, WorkerVanished

if TYPE_CHECKING:
    from .master import Master

TICK_INTERVAL_S = 1.0
"""Seconds between two looks."""


class PeriodicTasks:
    """The regular look around of a master."""

    def __init__(self, master: Master) -> None:
        """The first look isn't due yet."""
        self._master = master
        self._loop = asyncio.get_running_loop()
        self._heartbeats = Heartbeats(master.estate.board, time.monotonic())
        self._looked_at = 0.0
        self._ticker: asyncio.TimerHandle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        # A watchdog wants to hear of us twice in its time, however short that is.
        self._every = min(TICK_INTERVAL_S, master.estate.notifier.watchdog / 2 or TICK_INTERVAL_S)

    def start(self) -> None:
        """From now on there is a fact `Tick` at least once a second."""
        self._master.post(Tick())
        self._ticker = self._loop.call_later(self._every, self.start)

    def wake_at(self, when: float | None) -> None:
        """There is to be one at that time, too: a slot that backs off is looked at again in time, not only at the next tick."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if when is not None:
            self._alarm = self._loop.call_later(max(0.0, when - time.monotonic()), self._master.post, Tick())

    def stop(self) -> None:
        """No more."""
        for timer in (self._alarm, self._ticker):
            if timer is not None:
                timer.cancel()

    def run_due(self) -> None:
        """Look around. What fails for a moment is tried again at the next look."""
        master = self._master
        guard = master.guard
        master.estate.notifier.alive()
        if master.estate.terminal is not None:
            master.estate.terminal.check_hangup()
        now = time.monotonic()
        with guard("workers can't be watched"):
            self._watch_unwatched()
        # Who was suspended or starved saw nothing for a while: that the others gave no sign then proves nothing.
        if now - self._looked_at < 2 * TICK_INTERVAL_S:
            self._check_health(now)
        self._looked_at = master.estate.board.header.beat = now
        with guard("the accept queues can't be looked at"):
            waiting = master.steering.queued()
            master.estate.board.header.waiting = UNKNOWN_VALUE if waiting is None else waiting
        with guard("the heartbeat event"):
            if (
                beat := self._heartbeats.event_if_due(master.roster, now, master.settings.heartbeat_interval)
            ) is not None:
                master.emit(beat)
        with guard("stray processes can't be reaped"):
            self._reap_strays()
        with guard("the app can't be loaded again"):
            master.loading.load_if_due(now)
        if master.roster.ready() >= master.wanted.slots and master.lives.restarts.recovered(now):
            master.emit(events.Recovered(time=time.time(), ready=master.roster.ready()))

    def _reap_strays(self) -> None:
        """Reap children that the app has left behind.

        Not while the pid of a worker is awaited: if that worker has ended already, it would be taken for a stray, and its exit
        code would be lost.
        """
        master = self._master
        if master.estate.owns_process and all(handle.pid is not None for handle in master.roster):
            processes.reap_strays(master.children())

    def _watch_unwatched(self) -> None:
        """Watch the workers for which there was no descriptor when they were made."""
        for handle in self._master.roster:
            if handle.pid is not None and handle.pidfd is None:
                try:
                    self._master.lives.actions.watch_again(handle)
                except ProcessLookupError:
                    self._master.post(WorkerVanished(handle))

    def _check_health(self, now: float) -> None:
        master = self._master
        for helper in master.helpers():
            with master.guard(f"the {helper.name} can't be looked at"):
                if (said := helper.kill_if_stuck(now)) is not None:
                    master.warn(said)
        if master.phase.serves:
            with master.guard("workers can't be looked at"):
                master.watchman.check_all(master.roster, now)
            master.lives.steer()
            with master.guard("connections that wait where no worker accepts"):
                self._see_to_stranded(now)

    def _see_to_stranded(self, now: float) -> None:
        """Somebody waits where nobody accepts: the successor of one of the workers will."""
        roster = self._master.roster
        if not self._master.steering.has_stranded_clients() or any(handle.replace is not None for handle in roster):
            return
        serving = [handle for handle in roster if handle.state is WorkerState.READY]
        if serving and len(serving) == len(roster):
            oldest = min(serving, key=lambda handle: handle.born)
            oldest.replace, oldest.reason = now, "recycle"
