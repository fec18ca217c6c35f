"""Carry out commands from the control socket, and signals.

Each command is one method. It returns the response, a condition to wait for (`PendingCommand`), or a coroutine; an error that it
raises is the response. `CommandHandler.on_command` answers in all cases.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

from .... import events
from ....config.value_types import MAX_WORKERS
from ....core.lifecycle import LIVE_STATES
from ....errors import ClusterError, UsageError
from ....protocol import messages
from ....runtime.step_guard import reason
from ..generations.generations import GenerationTable
from ..generations.loader import GenerationLoader
from ..generations.reloader import Reloader
from ..messaging.hub import MessageHub
from ..resources import MasterResources
from ..shutdown import Shutdown
from ..state.cluster_state import ClusterState, MasterPhase
from ..state.handle import WorkerHandle
from ..state.inbox import Command
from ..workers.health_monitor import stacks_of
from .cluster_status import StatusBuilder
from .pending_commands import Outcome, PendingCommand, PendingCommands, as_client_error
from .subscribers import EventSubscribers

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
"""The action of each signal. A second TERM or INT ends a lame duck; another INT stops."""

Response = dict[str, Any] | PendingCommand | Coroutine[Any, Any, dict[str, Any]] | None
"""The result of a command's method. None: the command stays open, and another part has taken it over."""


class CommandHandler:
    """Carries out commands and signals."""

    def __init__(
        self,
        state: ClusterState,
        resources: MasterResources,
        *,
        loader: GenerationLoader,
        generations: GenerationTable,
        reloader: Reloader,
        shutdown: Shutdown,
        hub: MessageHub,
        status: StatusBuilder,
        subscribers: EventSubscribers,
    ) -> None:
        self._state = state
        self._resources = resources
        self._loader = loader
        self._generations = generations
        self._reloader = reloader
        self._shutdown = shutdown
        self._hub = hub
        self._status = status
        self._subscribers = subscribers
        self.pending = PendingCommands(self._delays)

    def on_command(self, command: Command) -> None:
        """Carry out a command and answer it, now or later."""
        method: Callable[[Command], Response] | None = getattr(self, f"_do_{command.verb.replace('-', '_')}", None)
        if method is None:
            command.answer(UsageError(f"the master knows no command {command.verb!r}"))
            return
        try:
            response = method(command)
        except ClusterError as error:
            command.answer(error)
            return
        except Exception as error:
            command.answer(ClusterError(f"{command.verb!r} failed in the master: {reason(error)}"))
            raise
        match response:
            case None:
                pass
            case dict():
                command.answer(response)
            case PendingCommand():
                self.pending.add(response)
            case _:
                self.pending.run(command, response)

    def on_signal(self, number: int) -> None:
        """Carry out the action of a signal."""
        state = self._state
        action = SIGNAL_COMMANDS[signal.Signals(number)]
        terminal = self._resources.terminal
        if number == signal.SIGINT and state.phase is MasterPhase.DRAINING:
            action = "stop"
        elif number == signal.SIGHUP and terminal is not None and terminal.hung_up():
            ends = not terminal.outlived and state.phase in (MasterPhase.BOOTING, MasterPhase.SERVING)
            action = "shutdown" if ends else "nothing"
            state.warn(f"the terminal was closed: {'shutting down' if ends else 'going on'}")
        state.emit(events.Signalled(time=time.time(), signal=signal.Signals(number).name, action=action))
        match action:
            case "stop":
                self._shutdown.stop()
            case "shutdown":
                self._shutdown.shut_down()
            case "reload":
                if state.phase in (MasterPhase.BOOTING, MasterPhase.SERVING):
                    self._reloader.request()
                else:
                    state.warn(f"no reload: the cluster is {state.phase.value}")
            case "reopen logs":
                self._reopen_logs()
            case "nothing" if number == signal.SIGUSR2:  # with this signal an operator of gunicorn begins an upgrade
                state.warn("SIGUSR2 does nothing here: `cluster2 reload`, or SIGHUP, loads the code again")
            case "one worker more":
                state.resize(state.wanted.slots + 1)
            case "one worker less":
                state.resize(state.wanted.slots - 1)
            case _:
                pass

    def close(self) -> None:
        """Answer all commands that still wait: the cluster has ended."""

        def outcome(pending: PendingCommand) -> Outcome:
            if pending.command.verb != "shutdown":
                return ClusterError(f"the cluster has ended before {pending.command.verb!r} was done")
            if self._state.phase is MasterPhase.STOPPING:
                return ClusterError("the cluster was stopped before it was shut down")
            pending.faults = self._shutdown.faults
            return self._farewell()

        self.pending.close(outcome)

    def _delays(self) -> dict[str, Any]:
        """Return the processes of the app that workers wait for, for the progress of commands."""
        waiting = [each for each in self._state.registry if each.waits_for]
        if not waiting:
            return {}
        more = f"; {len(waiting) - 1} more workers wait" if len(waiting) > 1 else ""
        return {"waiting": f"for child processes of {waiting[0]}: {waiting[0].waits_for}{more}"}

    def _reopen_logs(self) -> None:
        """Have all processes open their log files again. They also check once a second whether a file was renamed."""
        if self._resources.log_directory is not None:
            self._resources.log_directory.poll()
            self._generations.reopen_logs()
            for handle in self._state.registry:
                handle.send(messages.Reopen())

    # Commands

    def _do_status(self, command: Command) -> Response:
        return self._status.build(memory=bool(command.params.get("memory", True)))

    def _do_options(self, command: Command) -> Response:
        """Return the options of the wanted generation, and the sources of those that were set."""
        settings, sources, _ = self._generations.read_options(self._state.wanted.generation)
        return {"options": settings.to_public(), "sources": dict(sources)}

    def _do_shutdown(self, command: Command) -> Response:
        """Shut down. The response is sent by `close`: only then is it known whether all workers have left in order."""
        self._shutdown.shut_down()
        farewell = self._farewell()

        def progress() -> dict[str, Any]:
            if self._state.phase is MasterPhase.LAME_DUCK:
                return {"leaving": f"serves on for {self._shutdown.lame_duck_left():.0f} s", **farewell}
            workers = self._shutdown.workers
            return {"gone": workers - len(self._state.registry), "of": workers, **farewell}

        return PendingCommand(command, lambda: None, progress)

    def _do_stop(self, command: Command) -> Response:
        self._shutdown.stop()
        return self._farewell()

    def _do_reload(self, command: Command) -> Response:
        """Change the generation. A reload that is requested while the first workers start begins when they serve."""
        if self._state.phase is not MasterPhase.BOOTING:
            self._check_serving(command)
        request = self._reloader.request()
        return PendingCommand(command, lambda: request.outcome, lambda: request.progress)

    def _do_recycle(self, command: Command) -> Response:
        """Replace one worker, named by pid or slot, or all in turn."""
        named = self._named(command, lambda handle: handle.state in LIVE_STATES)
        self._check_serving(command)
        now = time.monotonic()
        for handle in named:
            handle.mark_for_replacement("recycle", now)
        find = self._state.registry.find
        waiting = [handle.incarnation for handle in named]

        def progress() -> dict[str, Any]:
            return {"replaced": len(waiting) - sum(find(each) is not None for each in waiting), "of": len(waiting)}

        def outcome() -> Outcome | None:
            return None if any(map(find, waiting)) else {"replaced": len(waiting)}

        return PendingCommand(command, outcome, progress, waiting, {handle.slot for handle in named})

    def _do_scale(self, command: Command) -> Response:
        slots = command.params.get("workers")
        if not isinstance(slots, int) or not 1 <= slots <= MAX_WORKERS:
            raise UsageError(f"workers = {slots!r}: expected a whole number from 1 to {MAX_WORKERS}")
        self._check_serving(command)
        if (why := self._loader.scale_refusal(slots)) is not None:
            raise ClusterError(why)
        state = self._state
        state.resize(slots)
        to_retire = [handle.incarnation for handle in state.registry if handle.slot >= slots]

        def outcome() -> Outcome | None:
            if state.wanted.slots != slots:
                return ClusterError(f"scale was overtaken: {state.wanted.slots} workers are wanted by now")
            return {"workers": slots} if state.registry.ready() == slots == len(state.registry) else None

        def progress() -> dict[str, Any]:
            return {"ready": state.registry.ready(), "of": slots}

        return PendingCommand(command, outcome, progress, to_retire, range(slots))

    def _do_enable(self, command: Command) -> Response:
        self._state.set_traffic(True)
        return {"traffic": "enabled"}

    def _do_disable(self, command: Command) -> Response:
        self._state.set_traffic(False)
        return {"traffic": "disabled"}

    def _do_stacks(self, command: Command) -> Response:
        """Return the stacks of one worker, or of all."""
        workers = self._named(command, lambda handle: handle.pidfd is not None)

        async def take() -> dict[str, Any]:
            found = [{"pid": each.pid, "slot": each.slot, "stacks": await stacks_of(each)} for each in workers]
            return {"workers": found}

        return take()

    def _do_emit(self, command: Command) -> Response:
        """Send an event to workers."""
        params = command.params
        return _checked(command, lambda: self._hub.emit(params["event"], params["data"], params["targets"]))

    def _do_statuses(self, command: Command) -> Response:
        return {"names": self._hub.statuses.names()}

    def _do_set_status(self, command: Command) -> Response:
        params = command.params
        update = self._hub.statuses.update
        return _checked(
            command, lambda: {"workers": update(params["component"], params["value"], params.get("worker"))}
        )

    def _do_component(self, command: Command) -> Response:
        """Return the status of a component, which the workers are asked for."""
        params = command.params

        async def view() -> dict[str, Any]:
            name, worker = params["component"], params.get("worker")
            found = await self._hub.statuses.view(name, worker, params.get("params"), params.get("reducer"))
            return found.plain()

        return view()

    def _do_events(self, command: Command) -> Response:
        """Send events until the client leaves."""
        self._subscribers.join(command)
        command.send_progress({"following": os.getpid()})
        return None

    def _named(self, command: Command, matches: Callable[[WorkerHandle], bool]) -> list[WorkerHandle]:
        """Return the workers that a command names. Raises UsageError if there are none."""
        which = command.params.get("worker")
        found = [each for each in self._state.registry if which in (None, each.pid, each.slot) and matches(each)]
        if not found:
            raise UsageError("no worker is there" if which is None else f"no worker has the pid or slot {which}")
        return found

    def _check_serving(self, command: Command) -> None:
        """Raise ClusterError if the cluster can't be changed now."""
        phase = self._state.phase
        if phase is not MasterPhase.SERVING:
            raise ClusterError(f"the cluster is {phase.value}: {command.verb!r} can't be done now")

    def _farewell(self) -> dict[str, Any]:
        """Return the process that ends when the connection has closed; None where the master runs inside another program."""
        return {"leaves": os.getpid() if self._resources.owns_process else None}


def _checked(command: Command, act: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
    """Return what `act` returns. Raises ClusterError for any error: the parameters are the client's."""
    try:
        return act() or {}
    except Exception as error:
        raise as_client_error(command, error) from error
