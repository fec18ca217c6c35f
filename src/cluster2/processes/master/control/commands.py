"""What can be asked of a master: by a command on the control socket, or by a signal.

Each verb is one method. A command whose wish takes time to come true is answered when it has.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .... import events
from ....core.lifecycle import LIVE_STATES
from ....errors import ClusterError, UsageError
from ....runtime.step_guard import reason
from ..generations.reloader import summary
from ..inbox import Command
from ..resources import MasterPhase
from ..workers.handle import Handle

if TYPE_CHECKING:
    from ..master import Master

_MAX_WORKERS = 512
"""The scoreboard has a row for each, and for their successors."""
_MAX_FAILED_STARTS = 3
"""New workers that die, or can't be made, before the command that wants them is answered with the reason."""
SIGNAL_COMMANDS = {
    signal.SIGTERM: "shutdown",
    signal.SIGINT: "shutdown",
    signal.SIGQUIT: "stop",
    signal.SIGHUP: "reload",
    signal.SIGTTIN: "one worker more",
    signal.SIGTTOU: "one worker less",
    signal.SIGUSR1: "reopen logs",
    signal.SIGUSR2: "nothing",
}
"""What each signal asks for. A second TERM or INT ends a lame duck, another INT stops."""


@dataclass(slots=True)
class PendingCommand:
    """A command that is answered when something has come true.

    Attributes:
        result: the answer, unless a fault makes it an error.
        progress: what is told to who waits, meanwhile.
        leaving: incarnations of the workers that the command wants to leave.
        slots: those that the command wants to have new workers.
        faults: what went wrong when those left.
        failed_starts: how many new workers could not be made, or died before they were ready.
    """

    command: Command
    true: Callable[[], bool]
    result: dict[str, Any]
    progress: Callable[[], dict[str, Any]] | None = None
    leaving: Container[int] = ()
    slots: Container[int] = ()
    faults: list[str] = field(default_factory=list)
    failed_starts: int = 0

    def answer(self) -> None:
        """It has come true: say so, or what went wrong on the way."""
        if self.faults:
            self.command.answer(ClusterError(f"{self.command.verb} is done, but {summary(self.faults)}"))
        else:
            self.command.answer(self.result)


class CommandHandler:
    """Carries out commands and signals on a master."""

    def __init__(self, master: Master) -> None:
        """Nothing is asked yet."""
        self._master = master
        self._wishes: list[PendingCommand] = []
        self._asking: set[asyncio.Future[None]] = set()

    def command(self, command: Command) -> None:
        """Somebody asks for something."""
        verb: Callable[[Command], None] | None = getattr(self, f"_do_{command.verb.replace('-', '_')}", None)
        if verb is None:
            command.answer(UsageError(f"the master knows no command {command.verb!r}"))
            return
        try:
            verb(command)
        except Exception as error:
            command.answer(ClusterError(f"{command.verb!r} failed in the master: {reason(error)}"))
            raise

    def signal(self, number: int) -> None:
        """The master was sent a signal."""
        master = self._master
        action = SIGNAL_COMMANDS[signal.Signals(number)]
        terminal = master.estate.terminal
        if number == signal.SIGINT and master.phase is MasterPhase.DRAINING:
            action = "stop"
        elif number == signal.SIGHUP and terminal is not None and terminal.hung_up():
            ends = not terminal.outlived and master.phase in (MasterPhase.BOOTING, MasterPhase.SERVING)
            action = "shutdown" if ends else "nothing"
            master.warn(f"the terminal was closed: {'shutting down' if ends else 'going on'}")
        master.emit(events.Signalled(time=time.time(), signal=signal.Signals(number).name, action=action))
        match action:
            case "stop":
                master.departure.stop()
            case "shutdown":
                master.departure.shut_down()
            case "reload":
                if master.phase in (MasterPhase.BOOTING, MasterPhase.SERVING):
                    master.reloader.request(None)
                else:
                    master.warn(f"no reload: the cluster is {master.phase.value}")
            case "reopen logs":
                master.reopen_logs()
            case "nothing" if number == signal.SIGUSR2:  # gunicorn begins an upgrade
                master.warn("SIGUSR2 does nothing here: `cluster2 reload`, or SIGHUP, loads the code again")
            case "one worker more":
                master.resize(master.wanted.slots + 1)
            case "one worker less":
                master.resize(master.wanted.slots - 1)
            case _:
                pass

    def answer(self) -> None:
        """Something has happened: answer those whose wish has come true."""
        for wish in list(self._wishes):
            if wish.true():
                self._wishes.remove(wish)
                wish.answer()
            elif wish.progress is not None:
                wish.command.tell(wish.progress())

    def left_badly(self, handle: Handle, fault: str) -> None:
        """A worker did not leave as it was to."""
        for wish in self._wishes:
            if handle.incarnation in wish.leaving:
                wish.faults.append(fault)

    def start_failed(self, slot: int, reason: str) -> None:
        """A new worker could not be made for a slot, or died before it was ready; it is tried again."""
        for wish in [each for each in self._wishes if slot in each.slots]:
            wish.failed_starts += 1
            if wish.failed_starts >= _MAX_FAILED_STARTS:
                self._wishes.remove(wish)
                wish.command.answer(ClusterError(f"{wish.command.verb} isn't done yet: {reason}; it is tried again"))

    def give_up(self) -> None:
        """The cluster has ended: say how to those who wanted that, and to all others that it has."""
        wishes, self._wishes = self._wishes, []
        for wish in wishes:
            if wish.command.verb != "shutdown":
                wish.command.answer(ClusterError(f"the cluster has ended before {wish.command.verb!r} was done"))
            elif self._master.phase is MasterPhase.STOPPING:
                wish.command.answer(ClusterError("the cluster was stopped before it was shut down"))
            else:
                wish.faults = self._master.departure.faults
                wish.answer()

    def _do_status(self, command: Command) -> None:
        command.answer(self._master.status(memory=bool(command.params.get("memory", True))))

    def _do_options(self, command: Command) -> None:
        """Answer with the options of the generation that is wanted, and the sources of those that were set."""
        settings, sources, _ = self._master.generations.read_options(self._master.wanted.generation)
        command.answer({"options": settings.to_public(), "sources": dict(sources)})

    def _do_shutdown(self, command: Command) -> None:
        """Answered when all workers have left, by `give_up`: not before that is known whether they left as they were to."""
        master = self._master
        master.departure.shut_down()
        farewell = self._farewell()

        def left() -> dict[str, Any]:
            departure = master.departure
            if master.phase is MasterPhase.LEAVING:
                return {"leaving": f"serves on for {departure.lame_duck_left():.0f} s", **farewell}
            return {"gone": departure.workers - len(master.roster), "of": departure.workers, **farewell}

        self._wishes.append(PendingCommand(command, lambda: False, farewell, left))

    def _do_stop(self, command: Command) -> None:
        self._master.departure.stop()
        command.answer(self._farewell())

    def _do_reload(self, command: Command) -> None:
        """Change the generation; one that is asked for while the first workers start is carried out when they serve."""
        if self._master.phase is MasterPhase.BOOTING or self._serving(command):
            self._master.reloader.request(command)

    def _do_recycle(self, command: Command) -> None:
        """Replace one worker, named by pid or slot, or all in turn."""
        named = self._named(command, lambda handle: handle.state in LIVE_STATES)
        if not named or not self._serving(command):
            return
        now = time.monotonic()
        for handle in named:
            if handle.replace is None:
                handle.replace, handle.reason = now, "recycle"
        find = self._master.roster.find
        waiting = [handle.incarnation for handle in named]

        def progress() -> dict[str, Any]:
            return {"replaced": len(waiting) - sum(find(each) is not None for each in waiting), "of": len(waiting)}

        slots = {handle.slot for handle in named}
        done = {"replaced": len(waiting)}
        self._wishes.append(
            PendingCommand(command, lambda: not any(map(find, waiting)), done, progress, waiting, slots)
        )

    def _do_scale(self, command: Command) -> None:
        slots = command.params.get("workers")
        if not isinstance(slots, int) or not 1 <= slots <= _MAX_WORKERS:
            command.answer(UsageError(f"workers = {slots!r}: expected a whole number from 1 to {_MAX_WORKERS}"))
            return
        if not self._serving(command):
            return
        master = self._master
        if (why := master.scale_refusal(slots)) is not None:
            command.answer(ClusterError(why))
            return
        master.resize(slots)
        leaving = [handle.incarnation for handle in master.roster if handle.slot >= slots]

        def true() -> bool:
            if master.wanted.slots != slots:
                wish.faults.append(f"{master.wanted.slots} workers are wanted by now")
                return True
            return master.roster.ready() == slots == len(master.roster)

        def progress() -> dict[str, Any]:
            return {"ready": master.roster.ready(), "of": slots}

        wish = PendingCommand(command, true, {"workers": slots}, progress, leaving, range(slots))
        self._wishes.append(wish)

    def _do_enable(self, command: Command) -> None:
        self._master.set_traffic(True)
        command.answer({"traffic": "enabled"})

    def _do_disable(self, command: Command) -> None:
        self._master.set_traffic(False)
        command.answer({"traffic": "disabled"})

    def _do_stacks(self, command: Command) -> None:
        """The stacks of one worker, or of all."""
        named = self._named(command, lambda handle: handle.pidfd is not None)
        if named:
            self._master.watchman.tell_stacks(named, command)

    def _do_emit(self, command: Command) -> None:
        """An event for workers."""
        params = command.params
        self._try(command, lambda: self._master.switchboard.emit(params["event"], params["data"], params["targets"]))

    def _do_statuses(self, command: Command) -> None:
        command.answer({"names": self._master.switchboard.statuses.names()})

    def _do_set_status(self, command: Command) -> None:
        params = command.params
        update = self._master.switchboard.statuses.update
        self._try(command, lambda: {"workers": update(params["component"], params["value"], params.get("worker"))})

    def _do_component(self, command: Command) -> None:
        """The status of a component: it takes as long as workers take to answer."""
        params = command.params
        view = self._master.switchboard.statuses.view

        async def answer() -> None:
            try:
                name, worker = params["component"], params.get("worker")
                found = await view(name, worker, params.get("params"), params.get("reducer"))
                command.answer(found.plain())
            except Exception as error:
                command.answer(_as_error(command, error))

        task = asyncio.ensure_future(answer())
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    def _try(self, command: Command, act: Callable[[], dict[str, Any] | None]) -> None:
        try:
            command.answer(act() or {})
        except Exception as error:
            command.answer(_as_error(command, error))

    def _do_events(self, command: Command) -> None:
        """Tell what happens, until the client leaves."""
        try:
            self._master.followers.join(command)
        except UsageError as error:
            command.answer(error)
            return
        command.tell({"following": os.getpid()})

    def _named(self, command: Command, suits: Callable[[Handle], bool]) -> list[Handle]:
        """The workers that a command is about; if there are none it is answered."""
        which = command.params.get("worker")
        found = [each for each in self._master.roster if which in (None, each.pid, each.slot) and suits(each)]
        if not found:
            command.answer(
                UsageError("no worker is there" if which is None else f"no worker has the pid or slot {which}")
            )
        return found

    def _serving(self, command: Command) -> bool:
        """Whether something can be changed now; if not, the command is answered."""
        phase = self._master.phase
        if phase is not MasterPhase.SERVING:
            command.answer(ClusterError(f"the cluster is {phase.value}: {command.verb!r} can't be done now"))
        return phase is MasterPhase.SERVING

    def _farewell(self) -> dict[str, Any]:
        """Which process ends when the connection has; none where the master lives in somebody else's program."""
        return {"leaves": os.getpid() if self._master.estate.owns_process else None}


def _as_error(command: Command, error: Exception) -> ClusterError:
    """What a client did wrong, as what it is told."""
    if isinstance(error, ClusterError):
        return error
    what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return UsageError(f"{command.verb}: {what}")
