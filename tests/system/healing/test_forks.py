"""Forks that hang: each step of making a worker is bounded, and a cluster can be ended at each."""

from __future__ import annotations

import os
import shutil
import signal

import psutil
import pytest

from tests.system.clients import get
from tests.system.conftest import Serve
from tests.system.harness import ROOT, Running, descendants, wait_until

FORKING = "tests.system.apps.fork_app:app"
PLACES = ("zygote", "second fork", "zygote after", "worker")


def hanging(run: Serve, place: str, *options: str) -> Running:
    """Start a cluster with one worker, kill that, and wait until the fork of its successor hangs in that place."""
    running = run(FORKING, *options, workers=1, env={"PYTHONPATH": str(ROOT)}).ready(1)
    (running.directory / f"hang.{place}").touch()
    os.kill(running.workers()[0]["pid"], signal.SIGKILL)
    wait_until(
        lambda: list(running.directory.glob(f"hangs.{place}.*")), lambda: f"the fork hangs; log:\n{running.stderr}"
    )
    return running


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [place if place in ("zygote", "second fork") else pytest.param(place, marks=pytest.mark.soak) for place in PLACES],
)
def test_fork_that_hangs(run: Serve, place: str) -> None:
    """A fork that hangs in an at-fork handler is given up, its stacks are logged, and another attempt is made."""
    running = hanging(run, place, "--boot-timeout", "8")
    reason = {
        "worker": "wasn't ready within boot_timeout",
        "zygote": "SIGKILL while it forked a worker",
        "zygote after": "worker",
    }.get(place, "no worker can be made: a fork hung")
    wait_until(lambda: reason in running.stderr, lambda: f"it is given up; log:\n{running.stderr}")
    if place != "zygote after":  # the worker exists, though its zygote hangs: it serves
        wait_until(lambda: "in _hang" in running.stderr, lambda: f"stacks are logged; log:\n{running.stderr}")
    (running.directory / f"hang.{place}").unlink()
    running.ready(1)
    assert get(running.address).body == b"hello"
    for path in running.directory.glob("hangs.*"):
        pid = int(path.suffix[1:])
        if place != "zygote after":
            wait_until(lambda pid=pid: not psutil.pid_exists(pid), f"process {pid}, which hung, has ended")
    assert running.shutdown() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL], ids=lambda each: each.name)
@pytest.mark.parametrize(
    "place", ["second fork", *(pytest.param(place, marks=pytest.mark.soak) for place in ("zygote", "worker"))]
)
def test_the_end_while_a_fork_hangs(run: Serve, place: str, number: signal.Signals) -> None:
    """TERM and QUIT end a cluster in which a fork hangs; nothing of it outlives the master, even if that is killed."""
    running = hanging(run, place, "--drain-timeout", "0.1")
    running.signal(number)
    assert running.wait(10) == (0 if number is not signal.SIGKILL else -number)
    wait_until(lambda: not descendants() - running._before, running._who_is_left, timeout=10)
    if number is signal.SIGKILL:  # the next master removes what a killed one has left
        shutil.rmtree(running.pids)
    running.assert_gone()
