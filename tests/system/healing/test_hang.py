"""A worker that is stuck is found, says where it is stuck, and is replaced; the others' clients notice nothing."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system.clients import Connection
from tests.system.conftest import Serve
from tests.system.harness import Running, stop, wait_until

APP = Path(__file__).parents[1] / "apps" / "hanging_app.py"
SOON = ("--max-heartbeat-delay", "1s", "--handoff-idle-after", "0")


def pids(running: Running) -> set[int]:
    """The workers that serve."""
    return {row["pid"] for row in running.workers()}


def replaced(running: Running, victims: set[int], workers: int) -> None:
    """Wait until they are gone, and so many serve."""
    wait_until(
        lambda: not victims & {row["pid"] for row in running.status()["workers"]} and len(pids(running)) == workers,
        lambda: f"{victims} are replaced:\n{running.stderr}",
    )


@pytest.mark.slow
def test_workers_that_are_stuck(run: Serve) -> None:
    """Stuck in pure Python, in C with the GIL, asleep on the loop, or stopped: each is found, shown, succeeded, then killed."""
    running = run(f"{APP}:app", *SOON, workers=5).ready(5)
    with ExitStack() as stack:
        hung = {}
        for how in ("spin", "compute", "sleep"):
            connection = hung[how] = stack.enter_context(Connection(running.address))
            connection.send(f"/{how}/{how}")
        victims = {running.held(how) for how in hung}
        stopped, healthy = sorted(pids(running) - victims)
        victims.add(stopped)
        stop(stopped)
        others = [stack.enter_context(Connection(running.address)) for _ in range(6)]
        for other in others:
            assert other.get().headers["x-worker"] == str(healthy), "who comes is served by the one that can"
        for connection in hung.values():
            assert connection.closed()
        replaced(running, victims, 5)
        assert healthy in pids(running)
        for other in others:
            assert other.get().body == b"hello"
    said = running.stderr
    for how in hung:
        assert f"in {how}_for_ever" in said
    assert f"process {stopped} doesn't react; it is stopped by a signal" in said
    lines = said.splitlines()
    for victim in victims:
        slot = re.search(rf"worker {victim} \(slot (\d)", said)
        assert slot is not None
        noticed = _line(lines, f"worker {victim} (slot {slot[1]}, generation 1) is replaced: its loop is stuck")
        shown = _line(lines, f"stacks of worker {victim}")
        gone = _line(lines, f"worker {victim} is gone (slot {slot[1]}, hang, SIGKILL while serving)")
        served = [n for n, line in enumerate(lines) if f"serves (slot {slot[1]}," in line]
        assert noticed < shown < served[1] < gone, "first its stacks, then its successor, then its end"


def _line(lines: list[str], text: str) -> int:
    return next(number for number, line in enumerate(lines) if text in line)


@pytest.mark.slow
def test_requests_that_never_end(run: Serve) -> None:
    """Past request_timeout the worker is replaced, its stacks logged; other requests there are finished first."""
    options = ("--request-timeout", "1s", "--drain-timeout", "2s", "--factory")
    targets = {"make": "app", "make_wsgi": "forever", "make_fastapi": "forever"}
    clusters = {name: run(f"{APP}:{name}", *options) for name in targets}
    with ExitStack() as stack:
        for running in clusters.values():
            stack.enter_context(Connection(running.ready().address)).send("/forever/a")
        for name, running in clusters.items():
            victim = running.held("a")
            others = [stack.enter_context(Connection(running.address)) for _ in range(6)]
            for number, other in enumerate(others):
                other.send(f"/held/{number}")
            for number in range(6):
                running.held(str(number))
            wait_until(lambda: "a request is older than request_timeout" in running.stderr, "it is noticed")  # noqa: B023
            running.release()
            assert [other.receive().body for other in others] == [b"released"] * 6, name
            replaced(running, {victim}, 2)
            assert f"stacks of worker {victim}" in running.stderr
            # Threads are shown where they are; a coroutine that waits isn't on any thread's stack.
            assert f"in {targets[name]}" in running.stderr or name == "make", running.stderr


def test_stacks(run: Serve) -> None:
    """`cluster2 stacks` shows all workers, or one, by pid or slot, stuck or not, and changes nothing."""
    running = run(f"{APP}:app").ready()
    before = pids(running)
    with Connection(running.address) as connection:
        connection.send("/spin/a")
        victim = running.held("a")
        done = running.cli("stacks")
        assert done.returncode == 0
        for row in running.workers():
            assert f"worker {row['pid']} (slot {row['slot']})" in done.stdout
        assert "in spin_for_ever" in done.stdout
        one = running.cli("stacks", str(victim))
        assert one.stdout.count("worker ") == 1
        assert "in spin_for_ever" in one.stdout
        assert pids(running) == before
        os.kill(victim, signal.SIGKILL)
        assert connection.closed()
    assert running.cli("stacks", "77").returncode == 2


@pytest.mark.slow
def test_a_suspended_cluster(run: Serve) -> None:
    """A stopped master stops nobody else; all stopped for long, then continued, the master first: it kills nobody."""
    running = run(f"{APP}:app", *SOON).ready()
    before = pids(running)
    with Connection(running.address) as connection:
        connection.get()
        stop(running.process.pid)
        assert connection.get().body == b"hello", "workers serve without their master"
        for pid in before:
            stop(pid)
        late = time.monotonic() + 3.2  # a heartbeat promises two seconds, and one more is allowed
        wait_until(lambda: time.monotonic() > late, "every heartbeat is late")
        running.signal(signal.SIGCONT)
        first = running.status()["master"]["uptime"]
        for pid in before:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: running.status()["master"]["uptime"] > first + 2.1, "the master has looked at them twice")
        assert pids(running) == before
        assert "stuck" not in running.stderr
        assert connection.get().body == b"hello"
