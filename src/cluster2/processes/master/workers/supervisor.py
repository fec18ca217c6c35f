"""What becomes of workers: from the order to make one to its burial.

Facts about a worker come here; the lifecycle's table says what follows (`lifecycle`), and `actions` does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from typing import TYPE_CHECKING

from .... import events
from ....core import lifecycle, planning
from ....core.lifecycle import WorkerState
from ....errors import AppError, ClusterError, by_exit_code
from ....events import during
from ....linux import app_forks, processes, stacks
from ....linux.processes import ExitStatus
from ....protocol import messages
from ....runtime.step_guard import reason
from ..helpers.child import KILL_TIMEOUT_S
from ..inbox import ProtocolViolation, StateTimeout
from ..resources import MasterPhase
from .handle import Handle
from .lifecycle_actions import Actions, reason_of
from .worker_channel import WorkerChannel

if TYPE_CHECKING:
    from ..master import Master

logger = logging.getLogger("cluster2.master")
_of_apps = logging.getLogger("cluster2.app")

SPAWN_REFUSED = "no worker can be made"
"""What is reported when the system refuses to make one."""
_BOOT_REFUSAL_INTERVAL_S = 1.0
"""Seconds for which the system may refuse all workers at the first start before that is given up."""
_STACKS_FIRST = frozenset({WorkerState.SPAWNING, WorkerState.BOOTING, WorkerState.DRAINING})
"""States in which a worker that has stayed for too long is killed, after its stacks have been logged."""


class WorkerSupervisor:
    """The workers of a master, as they come and go.

    Attributes:
        restarts: when a crashed one may be replaced.
        actions: what is done to them.
    """

    def __init__(self, master: Master) -> None:
        """There is no worker yet."""
        self._master = master
        estate = master.estate
        settings = estate.options[0]
        self.restarts = planning.Restarts(settings.restart_limit, settings.restart_window)
        self._refused_since: float | None = None
        self.actions = Actions(settings, estate.board, estate.pids, master.roster, master.post, master.emit, self.steer)

    def steer(self) -> None:
        """Who serves has changed: so does who gets new connections."""
        with self._master.guard("new connections can't be steered"):
            self._master.steering.steer(self._master.roster, time.monotonic())

    def on_forked(self, incarnation: int, pid: int) -> None:
        """A worker has a process, says its zygote or the worker itself; the first to say so counts."""
        handle = self._master.roster.find(incarnation)
        if handle is None:
            self._kill_unwanted(pid)
            return
        if handle.pid is not None:
            return  # told twice, by the zygote and by the worker itself
        handle.pid = self._master.estate.board.row(handle.row).pid = pid
        self._refused_since = None
        self.restarts.made(handle.slot)
        self._master.guard.worked(SPAWN_REFUSED)
        self.actions.apply(handle, lifecycle.WorkerEvent.FORKED)

    def _kill_unwanted(self, pid: int) -> None:
        """Kill a worker that was given up before it was forked. One that has come and gone isn't our child any more."""
        if pid not in self._master.children() and processes.is_running_child(pid):
            os.kill(pid, signal.SIGKILL)  # not reaped yet, so the pid is still its own

    def on_message(self, handle: Handle, message: messages.Talk) -> None:
        """A worker said something."""
        if handle.state is WorkerState.DEAD:
            return  # said before its end, read after it
        match message:
            case messages.Started():
                handle.started = True
                self.on_forked(handle.incarnation, message.pid)
                if message.version != messages.PROTOCOL_VERSION:
                    self._refuse(handle, message.version)
            case messages.Ready() if handle.pid is None:
                self._master.post(ProtocolViolation(handle, "it is ready, and was never born"))
            case messages.Ready():
                self.actions.apply(handle, lifecycle.WorkerEvent.READY)
                if self._master.reloader.rolling is not None:
                    self._master.reloader.rolling.ready(handle.generation, time.monotonic())
                self._master.one_more_serves()
            case messages.Leaving():
                if handle.reason is None and handle.state is WorkerState.READY:
                    logger.info("%s leaves by itself", handle)
                    self.ask_to_leave(handle, lifecycle.WorkerEvent.DRAIN, "exit")
            case messages.BootFailed():
                self._cant_serve(handle, by_exit_code(message.exit_code, message.message, detail=message.detail))
            case messages.SetTraffic():
                self._master.set_traffic(message.enabled)
                handle.send(messages.TrafficSet(message.enabled))
            case messages.Note():
                self._master.warn(f"{handle}: {message.text}")
            case messages.Cut():
                handle.cut = message.text
                self._master.warn(f"{handle}: {message.text}")
            case messages.EndFailed():
                handle.end_failed = message.text
                self._master.warn(f"{handle}: {message.text}")
            case _:
                _of_apps.warning("%s said what only a master says: %r", handle, message)

    def on_channel_closed(self, handle: Handle) -> None:
        """A worker's channel has ended."""
        handle.talk = None
        # With a pid its exit will tell. Without one the zygote's word is awaited, if there is one to give it.
        if (
            handle.pid is None
            and self._master.generations.nursery(handle.generation) is None
            and handle.state is not WorkerState.DEAD
        ):
            self.forget(handle)

    def _refuse(self, handle: Handle, version: int) -> None:
        """A worker that can't be talked to."""
        versions = f"its messages are of version {version}, the master's of version {messages.PROTOCOL_VERSION}"
        self._cant_serve(handle, ClusterError(f"{versions}: cluster2 was upgraded in place; restart the cluster"))
        self.ask_to_leave(handle, lifecycle.WorkerEvent.KILL, "crash")

    def _cant_serve(self, handle: Handle, error: ClusterError) -> None:
        """A new worker says why it won't become ready."""
        if self._master.phase is MasterPhase.BOOTING:
            self._master.departure.fail(error)
        elif self._master.reloader.proves(handle.generation):
            self._master.reloader.abandon(error)
        else:
            self._master.warn(f"{handle} can't serve: {error.message}")

    def on_exited(self, handle: Handle) -> None:
        """A worker's process has ended."""
        if handle.pidfd is None or handle.state is WorkerState.DEAD:
            return
        try:
            status = processes.exit_of(handle.pidfd)
        except ChildProcessError:  # reaped by the program that the master lives in; how it ended isn't known
            self.on_exit_recorded(handle, None)
            return
        if status is not None:
            self.on_exit_recorded(handle, status)

    def on_exit_recorded(self, handle: Handle, status: ExitStatus | None) -> None:
        """A worker is over; None: it never came to be. If it wasn't meant to be, that counts as a crash."""
        if handle.state is WorkerState.DEAD:
            return  # recorded before: one that vanishes before it can be watched is found at each tick until this is handled
        if handle.reason == "recycle" and handle.state in lifecycle.LIVE_STATES:
            handle.reason = None  # it was to be replaced, but hadn't been told to leave: it has died by itself
        meant = handle.reason not in (None, "crash")
        fault = departure_fault(handle, status)
        self.forget(handle, status)
        if fault is not None:
            self._master.left_badly(handle, fault)
        if meant or self._master.ending():
            return
        if handle.ready_at is None:
            died = f"{handle} died before it was ready ({status or 'it could not be made'})"
            self._master.verbs.start_failed(handle.slot, died)
        if self._master.reloader.proves(handle.generation):
            how = f"{status} {during(handle.phase())}" if status else "it could not be made"
            self._master.reloader.abandon(AppError(f"a worker of the new generation died ({how}); its log says why"))
            return
        now = time.monotonic()
        was_degraded = self.restarts.degraded
        wait = self.restarts.crashed(handle.slot, handle.uptime(now), now)
        if wait and self._master.phase is not MasterPhase.BOOTING:
            self._master.warn(f"slot {handle.slot} backs off: its next worker is made in {wait:.1f} s")
        if self.restarts.degraded and not was_degraded:
            self._degraded(handle, status, now)

    def forget(self, handle: Handle, status: ExitStatus | None = None) -> None:
        """Remove a worker that has ended, or that never came to be because its zygote ended, which isn't a crash of its own."""
        if handle.state is WorkerState.DEAD:
            return
        logbook = self._master.estate.logbook
        if logbook is not None and handle.pid is not None:
            meant = handle.reason not in (None, "crash")
            logbook.note_exit(handle.slot, handle.pid, str(status or "how isn't known"), meant)
        self.actions.apply(handle, lifecycle.WorkerEvent.EXITED, status)
        self._master.steering.release(handle.place)
        self._master.watchman.forget(handle)

    def _degraded(self, handle: Handle, status: ExitStatus | None, now: float) -> None:
        if self._master.phase is MasterPhase.BOOTING:
            self._master.departure.fail(
                AppError(
                    f"workers die before they are ready ({reason_of(handle, status)}: {status} "
                    f"{during(handle.phase())}); their log says why"
                )
            )
            return
        crashes = self.restarts.crashes(now)
        logger.error("degraded: %d workers crashed within %.0f s; restarts back off", crashes, self.restarts.window)
        self._master.emit(
            events.Degraded(
                time=time.time(), crashes=crashes, ready=self._master.roster.ready(), wanted=self._master.wanted.slots
            )
        )

    def on_timeout(self, handle: Handle, state: WorkerState) -> None:
        """A worker has been in a state for as long as it may."""
        if handle.state is not state:  # another fact that was in the queue before has ended it
            return
        settings = self._master.settings
        if state in _STACKS_FIRST and handle.overdue is not state and handle.pidfd is not None:
            handle.overdue = state
            self._master.watchman.take_stacks(handle, StateTimeout(handle, state))
            return
        match state:
            case WorkerState.READY:
                self.restarts.settled(handle.slot)
            case WorkerState.SPAWNING | WorkerState.BOOTING:
                text = f"{handle} wasn't ready within boot_timeout ({settings.boot_timeout:g} s)"
                error = AppError(text, detail=handle.stacks or "")
                if self._master.phase is MasterPhase.BOOTING:
                    self._master.departure.fail(error)
                    return
                if self._master.reloader.proves(handle.generation):
                    self._master.reloader.abandon(error)
                self._master.warn(f"{text}; it is killed")
                self.kill(handle, "crash")
            case WorkerState.DRAINING:
                killed = f"it did not leave within drain_timeout ({settings.drain_timeout:g} s) and was killed"
                handle.cut = handle.cut or killed
                self._master.warn(
                    f"{handle} hasn't left within drain_timeout ({settings.drain_timeout:g} s); it is killed"
                )
                self.kill(handle, handle.reason)
            case WorkerState.DYING:
                self._master.warn(f"{handle} has not ended {KILL_TIMEOUT_S:g} s after SIGKILL; it is given up")
                self.on_exit_recorded(handle, None)
            case _:
                pass

    def retire(self, incarnation: int) -> None:
        """A worker's successor serves, or nobody wants its slot any more."""
        handle = self._master.roster.find(incarnation)
        if handle is not None:
            how = lifecycle.WorkerEvent.DRAIN if handle.drain_first else lifecycle.WorkerEvent.KILL
            self.ask_to_leave(handle, how, handle.reason or self._why_retired(handle))

    def _why_retired(self, handle: Handle) -> events.Reason:
        if handle.slot >= self._master.wanted.slots:
            return "scale"
        return "recycle" if handle.replace is not None else "reload"

    async def spawn(self, slot: int, generation: int) -> None:
        """Order a worker. What the system refuses (descriptors, memory, processes) is reported, and tried again later."""
        try:
            await self._order(slot, generation)
        except ConnectionError:
            return  # the zygote is dying just now, which the next fact tells
        except (OSError, ClusterError) as error:
            self._refused(slot, generation, error)

    async def _order(self, slot: int, generation: int) -> None:
        """Make all that a worker needs, and order it. After an error nothing is left of that.

        Raises:
            OSError, ClusterError: it can't be made now.
        """
        master = self._master
        with contextlib.ExitStack() as undo:
            place = master.steering.take(generation)
            undo.callback(master.steering.release, place)
            row = master.estate.board.claim()
            undo.callback(master.estate.board.release, row)
            file = stacks.create()
            undo.callback(os.close, file)
            handle = Handle(
                incarnation=master.roster.next_incarnation(),
                slot=slot,
                generation=generation,
                row=row,
                born=time.monotonic(),
                place=place,
                stacks_file=file,
            )
            seen = master.estate.board.row(row)
            seen.slot, seen.generation, seen.started, seen.state = slot, generation, handle.born, WorkerState.BOOTING
            undo.callback(setattr, handle, "state", WorkerState.DEAD)  # what its channel still says is of no interest
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            app_forks.withhold(ours)
            with theirs:
                _, talk = await asyncio.get_running_loop().create_unix_connection(
                    lambda: WorkerChannel(handle, master.post, master.switchboard, master.settings.max_heartbeat_delay),
                    sock=ours,
                )
                undo.callback(talk.close)
                nursery = master.generations.nursery(generation)
                # Meanwhile the zygote may have died, or the cluster been told to end: that is no crash of a worker.
                if nursery is None or master.ending():
                    return
                handle.executed = nursery.executes
                order, descriptors = self._orders(handle)
                line = master.estate.lifeline.twin()
                try:
                    nursery.spawn(order, [theirs.fileno(), file, line, *master.estate.board.descriptors, *descriptors])
                finally:
                    os.close(line)
            handle.talk = talk
            undo.pop_all()
        master.roster.add(handle)
        self.actions.limit(handle)

    def _orders(self, handle: Handle) -> tuple[messages.Fork, list[int]]:
        """The order for a worker, and the descriptors of what it listens on and of the ways to the keeper."""
        master = self._master
        sockets = [
            messages.Socket(site, str(listener.address), listener.owned) for site, listener in master.estate.listeners
        ]
        keeping = master.keeping
        ways = keeping.descriptors() if keeping is not None and keeping.serves else []
        order = messages.Fork(
            incarnation=handle.incarnation,
            slot=handle.slot,
            generation=handle.generation,
            row=handle.row,
            master=os.getpid(),
            sockets=sockets,
            keeper=bool(ways),
            logs=self._logs(handle.slot),
        )
        return order, [*master.steering.descriptors(handle), *ways]

    def _refused(self, slot: int, generation: int, error: Exception) -> None:
        """The system doesn't give what a worker needs: report it, and try again later."""
        master = self._master
        now = time.monotonic()
        self.restarts.refused(slot, now)
        self._refused_since = self._refused_since or now
        why = ClusterError(f"{SPAWN_REFUSED}: {reason(error)}")
        if master.reloader.proves(generation):
            master.reloader.abandon(error if isinstance(error, ClusterError) else why)
        elif master.phase is MasterPhase.BOOTING and now - self._refused_since > _BOOT_REFUSAL_INTERVAL_S:
            master.departure.fail(why)
        else:
            master.guard.failed(SPAWN_REFUSED, error)
            master.verbs.start_failed(slot, why.message)

    def on_fork_failed(self, incarnation: int, reason: str) -> None:
        """The zygote could not fork a worker that was ordered."""
        handle = self._master.roster.find(incarnation)
        if handle is not None and handle.pid is None:
            self.forget(handle)
            self._refused(handle.slot, handle.generation, OSError(reason))

    def _logs(self, slot: int) -> str:
        logbook = self._master.estate.logbook
        if logbook is None:
            return ""
        logbook.ensure_file(slot)
        return logbook.directory

    def ask_to_leave(self, handle: Handle, event: lifecycle.WorkerEvent, reason: events.Reason | None) -> None:
        """A worker is to leave, for this reason."""
        handle.reason = reason
        self.actions.apply(handle, event)

    def kill(self, handle: Handle, reason: events.Reason | None) -> None:
        """End a worker at once. One without a pid is forgotten: if there is a process, it is killed when its pid is reported."""
        self.ask_to_leave(handle, lifecycle.WorkerEvent.KILL, reason)
        if handle.pid is None:
            self.on_exit_recorded(handle, None)


def departure_fault(handle: Handle, status: ExitStatus | None) -> str | None:
    """Return what went wrong when a worker left that was to leave, for the command that wanted it; None: nothing.

    Args:
        handle: as it was before it ended.
        status: how it ended; None: not known.
    """
    if handle.pid is None or handle.reason == "stop":
        return None
    if handle.ready_at is None:  # cancelled before it had a request to lose, however it ended
        return None
    if told := [each for each in (handle.cut, handle.end_failed) if each is not None]:
        return f"{handle}: {'; '.join(told)}"
    if status == ExitStatus(code=0) and handle.state not in lifecycle.LIVE_STATES:
        return None
    how = status or "how isn't known"
    if handle.state in lifecycle.LIVE_STATES:
        return f"{handle} died instead of leaving ({how})"
    if handle.reason == "hang" and not handle.drain_first:
        return f"{handle} was stuck and was killed"
    return f"{handle} died while it drained ({how})"
