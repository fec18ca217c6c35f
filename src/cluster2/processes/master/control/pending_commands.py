"""Commands that are answered later: when a condition holds, or when a coroutine has returned.

This is the only place that answers a command, except for those that are answered at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ....errors import ClusterError, UsageError
from ..generations.reloader import summary
from ..state.handle import WorkerHandle
from ..state.inbox import Command

Outcome = dict[str, Any] | ClusterError
"""The response to a command."""

_MAX_FAILED_STARTS = 3
"""New workers that end early, or can't be made, before the command that wants them is answered with the reason."""


@dataclass(slots=True, eq=False)
class PendingCommand:
    """A command that is answered when its condition holds.

    Attributes:
        outcome: returns the response as soon as there is one.
        progress: returns the progress to report until then, or None.
        to_retire: incarnations of the workers that the command wants to leave.
        slots: the slots for which the command wants new workers.
        faults: what went wrong when those workers left. They make the response an error.
        failed_starts: number of new workers that could not be made, or ended before they were ready.
    """

    command: Command
    outcome: Callable[[], Outcome | None]
    progress: Callable[[], dict[str, Any] | None] | None = None
    to_retire: Container[int] = ()
    slots: Container[int] = ()
    faults: list[str] = field(default_factory=list)
    failed_starts: int = 0

    def finish(self, outcome: Outcome) -> None:
        """Answer with this outcome, or with what went wrong on the way."""
        if self.faults and not isinstance(outcome, ClusterError):
            outcome = ClusterError(f"{self.command.verb} is done, but {summary(self.faults)}")
        self.command.answer(outcome)


class PendingCommands:
    """The commands that wait."""

    def __init__(self, delays: Callable[[], dict[str, Any]]) -> None:
        """Make the list.

        Args:
            delays: returns the progress that is added to that of each command: why it takes long.
        """
        self._delays = delays
        self._pending: list[PendingCommand] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, pending: PendingCommand) -> None:
        """Answer a command when its condition holds."""
        self._pending.append(pending)

    def run(self, command: Command, work: Coroutine[Any, Any, dict[str, Any]]) -> None:
        """Answer a command with what a coroutine returns or raises."""

        async def answer() -> None:
            try:
                command.answer(await work)
            except Exception as error:
                command.answer(as_client_error(command, error))

        task = asyncio.get_running_loop().create_task(answer())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def poll(self) -> None:
        """Answer the commands whose condition holds now, and report the progress of the others."""
        for pending in list(self._pending):
            if (outcome := pending.outcome()) is not None:
                self._pending.remove(pending)
                pending.finish(outcome)
            elif pending.progress is not None and (progress := pending.progress()) is not None:
                pending.command.send_progress({**progress, **self._delays()})

    def on_exit_failed(self, handle: WorkerHandle, fault: str) -> None:
        """Record that a worker did not leave in order."""
        for pending in self._pending:
            if handle.incarnation in pending.to_retire:
                pending.faults.append(fault)

    def on_start_failed(self, slot: int, text: str) -> None:
        """Record that a new worker could not be made for a slot, or ended before it was ready."""
        for pending in [each for each in self._pending if slot in each.slots]:
            pending.failed_starts += 1
            if pending.failed_starts >= _MAX_FAILED_STARTS:
                self._pending.remove(pending)
                error = ClusterError(f"{pending.command.verb} isn't done yet: {text}; it is tried again")
                pending.command.answer(error)

    def close(self, outcome: Callable[[PendingCommand], Outcome]) -> None:
        """Answer all commands that still wait: the cluster has ended."""
        self.poll()
        pending, self._pending = self._pending, []
        for each in pending:
            each.finish(outcome(each))


def as_client_error(command: Command, error: Exception) -> ClusterError:
    """Return the error that a client gets for its mistake."""
    if isinstance(error, ClusterError):
        return error
    what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return UsageError(f"{command.verb}: {what}")
