"""A helper of the cluster with real processes: it exits, it fails, it can't be started, it is stuck, it is renewed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import psutil
import pytest

from cluster2.core.planning import RestartBackoff
from cluster2.linux.scoreboard import Scoreboard
from cluster2.processes.master.helpers.child import ChildProcess
from cluster2.processes.master.helpers.helper import HelperProcess
from cluster2.processes.master.state.inbox import HelperExited, InboxMessage
from tests.unit.waiting import until

pytestmark = pytest.mark.anyio

FAITHFUL = "import os; os.read(3, 1)"
STUBBORN = "import time; print(flush=True); time.sleep(1000)"


class Clerk(HelperProcess):
    """A monitor that is another program."""

    name = "monitor"
    timeout_s = 5.0

    def __init__(self, board: Scoreboard, program: str) -> None:
        self.facts: list[InboxMessage] = []
        super().__init__(board.header, RestartBackoff(10.0, 0.05, 0.1), self.facts.append)
        self.argv: Sequence[str] = [sys.executable, "-I", "-S", "-c", program]

    def _execute(self) -> ChildProcess:
        return ChildProcess(self.argv)

    @property
    def pid(self) -> int:
        (pid,) = self.pids()
        return pid


@asynccontextmanager
async def clerk(program: str) -> AsyncIterator[tuple[Clerk, Scoreboard]]:
    """Yield a helper that has been started. Nothing of it is left afterwards."""
    board = Scoreboard.create()
    before = set(os.listdir("/proc/self/fd"))
    helper = Clerk(board, program)
    helper.start()
    try:
        yield helper, board
    finally:
        await helper.wait_closed(0.0)
        await asyncio.sleep(0)
        assert not helper.alive()
        assert set(os.listdir("/proc/self/fd")) <= before
        board.close()


async def test_one_that_ends_is_told_of_and_started_again() -> None:
    """The exit of a helper is posted; on request it is started again at once, and counted."""
    async with clerk(FAITHFUL) as (helper, board):
        first = helper.pid
        board.header.monitor_pid = first
        os.kill(first, signal.SIGKILL)
        await until(lambda: helper.facts, "it is told")
        assert helper.facts == [HelperExited("monitor", "is gone (SIGKILL)")]
        assert (helper.alive(), board.header.monitor_pid) == (False, 0)
        assert helper.schedule_start() == 0.0
        await until(helper.alive, "another")
        assert helper.pid != first
        assert board.header.monitor_restarts == 1


async def test_one_that_can_not_live_is_started_later_each_time() -> None:
    """The pauses grow up to their bound; the reason is reported each time."""
    async with clerk("raise SystemExit(9)") as (helper, board):
        pauses = []
        for turn in range(4):
            await until(lambda turn=turn: len(helper.facts) > turn, "it has ended")  # type: ignore[misc]
            pauses.append(helper.schedule_start())
        assert pauses == [0.0, 0.05, 0.1, 0.1]
        assert helper.facts[0] == HelperExited("monitor", "is gone (exit code 9)")
        assert board.header.monitor_restarts == 4


async def test_one_that_can_not_be_started() -> None:
    """No program, no process: a fact like any other, and it is started as soon as it can be."""
    async with clerk(FAITHFUL) as (helper, _):
        argv, helper.argv = helper.argv, ["/nowhere/at/all"]
        os.kill(helper.pid, signal.SIGKILL)
        await until(lambda: helper.facts, "it has ended")
        helper.schedule_start()
        await until(lambda: len(helper.facts) == 2, "it can't be started")
        assert "can't be started: " in str(helper.facts[1])
        assert not helper.alive()
        helper.argv = argv
        helper.schedule_start()
        await until(helper.alive, "it is there again")


async def test_a_stuck_one_is_killed() -> None:
    """A helper without a heartbeat for longer than its timeout is killed; one with heartbeats is left alone."""
    async with clerk(STUBBORN) as (helper, board):
        now = time.monotonic()
        assert helper.kill_if_stuck(now) is None
        board.header.monitor_beat = now + 100
        assert helper.kill_if_stuck(now + 104) is None
        assert helper.kill_if_stuck(now + 106) == "the monitor has missed its heartbeats; it is killed"
        await until(lambda: helper.facts, "it is gone")
        assert helper.kill_if_stuck(now + 1000) is None


async def test_another_takes_its_place() -> None:
    """A helper that is renewed exits by itself and another is started; that exit isn't posted."""
    async with clerk(FAITHFUL) as (helper, board):
        first = helper.pid
        helper.renew()
        await until(lambda: helper.alive() and helper.pid != first, "another")
        assert (helper.facts, board.header.monitor_restarts) == ([], 0)


async def test_it_ends_for_good() -> None:
    """A helper that doesn't exit in time is killed, a start that is due is cancelled, and a second end does nothing."""
    async with clerk(STUBBORN) as (helper, _):
        pid = helper.pid
        await helper.wait_closed(0.05)
        assert not psutil.pid_exists(pid)
        await until(lambda: helper.facts, "it is told")
        helper.schedule_start()
        helper.stop()
        await asyncio.sleep(0.02)
        assert not helper.alive()
        await helper.wait_closed(0.0)


def test_pauses() -> None:
    """The first end costs nothing, nor does one after a long life; the others cost twice as much as the one before."""
    pauses = RestartBackoff(settled=30.0, first=1.0, longest=5.0)
    assert [pauses.after(0.1) for _ in range(5)] == [0.0, 1.0, 2.0, 4.0, 5.0]
    assert pauses.after(30.0) == 0.0
    assert pauses.after(0.1) == 1.0
