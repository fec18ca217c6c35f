"""The parent-death timer: it ends a process that is stuck, and leaves an app's use of SIGALRM alone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from cluster2.linux import parent_death_timer
from cluster2.linux.parent_death_timer import Lifeline
from tests.linux.children import fork, wait

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def test_app_with_a_sigalrm_handler_keeps_its_timer() -> None:
    """A process that handles SIGALRM itself gets its own alarm at its own time when the master ends."""
    lifeline = Lifeline()
    fired: list[int] = []

    def child() -> int:
        signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
        assert parent_death_timer.arm(lifeline.twin(), 1.0) is None
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        lifeline.close()  # the last writing end: the master's end
        deadline = time.monotonic() + 10
        while not fired and time.monotonic() < deadline:
            time.sleep(0.01)
        return 0 if fired else 1

    pid = fork(child)
    lifeline.close()
    assert wait(pid) == 0


def test_alarm_of_the_lifeline_is_cancelled_by_disarm() -> None:
    """`disarm` cancels the alarm that the master's end has set; an app that sets one later gets that one."""
    lifeline = Lifeline()

    def child() -> int:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest-timeout's handler is inherited
        number = parent_death_timer.arm(lifeline.twin(), 1.0)
        assert number == signal.SIGRTMIN
        lifeline.close()
        while not signal.getitimer(signal.ITIMER_REAL)[0]:
            time.sleep(0.01)  # the test still has the other copy of the writing end
        parent_death_timer.disarm(number)
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
        os.kill(os.getpid(), number)
        return 1 if signal.getitimer(signal.ITIMER_REAL)[0] else 0

    pid = fork(child)
    lifeline.close()
    assert wait(pid) == 0


@pytest.mark.parametrize("blocked", [False, True])
def test_kill_after_ends_a_process_that_handles_every_signal(blocked: bool) -> None:
    """`kill_after` ends a process although it ignores or blocks SIGALRM; the handler of SIGALRM and its timer stay."""

    def child() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 50)
        parent_death_timer.kill_after(0.2)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 40
        assert signal.getsignal(signal.SIGALRM) == signal.SIG_IGN
        if blocked:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            time.sleep(1)

    assert wait(fork(child)) == -signal.SIGKILL


def test_a_fork_of_the_process_has_no_timer(tmp_path: Path) -> None:
    """A child that the process forks after `kill_after` outlives it."""
    mark = tmp_path / "mark"

    def grandchild() -> None:
        time.sleep(0.5)
        mark.touch()

    def child() -> None:
        parent_death_timer.kill_after(0.1)
        fork(grandchild)
        time.sleep(10)

    assert wait(fork(child)) == -signal.SIGKILL
    stray = os.waitpid(-1, 0)  # this process is a subreaper
    assert os.waitstatus_to_exitcode(stray[1]) == 0
    assert mark.exists()
