"""Commands that are answered later."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster2.errors import ClusterError, UsageError
from cluster2.processes.master.control.pending_commands import PendingCommand, PendingCommands
from cluster2.processes.master.state.handle import WorkerHandle
from cluster2.processes.master.state.inbox import Command

pytestmark = pytest.mark.anyio

Answers = list[dict[str, Any] | ClusterError]


def a_command(verb: str = "scale") -> tuple[Command, Answers, list[dict[str, Any]]]:
    """Return a command, its answers and its progress."""
    answers: Answers = []
    progress: list[dict[str, Any]] = []
    return Command(verb, {}, answers.append, progress.append), answers, progress


def test_a_condition() -> None:
    """Progress is reported until the outcome is there; then the command is answered once."""
    command, answers, progress = a_command()
    outcomes: list[dict[str, Any] | None] = [None, {"workers": 2}]
    pending = PendingCommands(dict)
    pending.add(PendingCommand(command, lambda: outcomes.pop(0), lambda: {"ready": 1}))
    pending.poll()
    assert (answers, progress) == ([], [{"ready": 1}])
    pending.poll()
    pending.poll()
    assert (answers, progress) == ([{"workers": 2}], [{"ready": 1}])


def test_a_fault_makes_the_outcome_an_error() -> None:
    """A worker of the command that leaves badly is named; one of another command isn't."""
    command, answers, _ = a_command()
    pending = PendingCommands(dict)
    pending.add(PendingCommand(command, lambda: {"workers": 1}, to_retire=[7]))
    pending.on_exit_failed(WorkerHandle(8, 0, 1, 0, 0.0), "worker 8 was lost")
    pending.on_exit_failed(WorkerHandle(7, 0, 1, 0, 0.0), "worker 7 was lost")
    pending.poll()
    assert [str(each) for each in answers] == ["scale is done, but worker 7 was lost"]


def test_failed_starts() -> None:
    """After three failed starts in its slots the command is answered, and only then."""
    command, answers, _ = a_command()
    pending = PendingCommands(dict)
    pending.add(PendingCommand(command, lambda: None, slots=[1]))
    for slot in (0, 1, 1):
        pending.on_start_failed(slot, "no memory")
    assert answers == []
    pending.on_start_failed(1, "no memory")
    assert [str(each) for each in answers] == ["scale isn't done yet: no memory; it is tried again"]


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (None, {"stacks": 1}),
        (ClusterError("no such component"), "no such component"),
        (KeyError("component"), "component: 'component' is missing"),
    ],
)
async def test_a_coroutine(error: Exception | None, answer: object) -> None:
    """The response is the value that a coroutine returns, or the error that it raises."""
    command, answers, _ = a_command("component")

    async def work() -> dict[str, Any]:
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return {"stacks": 1}

    pending = PendingCommands(dict)
    pending.run(command, work())
    while not answers:
        await asyncio.sleep(0)
    assert [str(answers[0]) if error else answers[0]] == [answer]
    assert isinstance(answers[0], UsageError) == isinstance(error, KeyError)


def test_the_end_of_the_cluster() -> None:
    """A command whose outcome is there gets it; the others get the one that is given."""
    done, done_answers, _ = a_command("reload")
    waiting, waiting_answers, _ = a_command("recycle")
    pending = PendingCommands(dict)
    pending.add(PendingCommand(done, lambda: {"generation": 2}))
    pending.add(PendingCommand(waiting, lambda: None))
    pending.close(lambda each: ClusterError(f"the cluster has ended before {each.command.verb!r} was done"))
    assert done_answers == [{"generation": 2}]
    assert [str(each) for each in waiting_answers] == ["the cluster has ended before 'recycle' was done"]
