"""A worker that is stuck is found, says where it is stuck, and is replaced; the others' clients notice nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system.clients import Connection, get
from tests.system.conftest import Serve
from tests.system.harness import Running, wait_until

APP = Path(__file__).with_name("hanging_app.py")
SOON = ("--max-heartbeat-delay", "1s", "--rest-after", "0")


def pids(running: Running) -> set[int]:
    """The workers that serve."""
    return {row["pid"] for row in running.workers()}


def replaced(running: Running, victim: int) -> None:
    """Wait until it is gone, and two serve."""
    wait_until(
        lambda: victim not in {row["pid"] for row in running.status()["workers"]} and len(pids(running)) == 2,
        lambda: f"{victim} is replaced:\n{running.stderr}",
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["spin", "compute", "sleep"])
def test_a_loop_that_is_stuck(run: Serve, how: str) -> None:
    """In pure Python, in C with the GIL, or asleep: stacks name the function, a successor is made, then it is killed."""
    running = run(f"{APP}:app", *SOON).ready()
    with Connection(running.address) as connection, Connection(running.address) as other:
        connection.send(f"/{how}/a")
        victim = running.held("a")
        assert get(running.address).body == b"hello", "the other one serves"
        wait_until(lambda: "its loop is stuck" in running.stderr, "it is noticed")
        wait_until(lambda: f"in {how}_for_ever" in running.stderr, lambda: f"the function is named:\n{running.stderr}")
        assert connection.closed()
        replaced(running, victim)
        assert other.get().body == b"hello"
    lines = running.stderr.splitlines()
    killed = next(n for n, line in enumerate(lines) if f"worker {victim} is gone" in line)
    served = [n for n, line in enumerate(lines) if " serves (slot" in line]
    assert "hang, SIGKILL" in lines[killed]
    assert served[2] < killed, "the successor was ready first"
    assert f"worker {victim} (slot" in running.stderr


@pytest.mark.slow
def test_a_worker_that_is_stopped(run: Serve) -> None:
    """A SIGSTOPped worker can tell no stacks; that is said instead, and it is replaced."""
    running = run(f"{APP}:app", *SOON).ready()
    victim = running.workers()[0]["pid"]
    os.kill(victim, signal.SIGSTOP)
    with ExitStack() as stack:
        clients = [stack.enter_context(Connection(running.address)) for _ in range(6)]
        for client in clients:
            assert client.get().body == b"hello", "whoever comes is served by the other"
        replaced(running, victim)
        assert "it is stopped by a signal" in running.stderr
        for client in clients:
            assert client.get().body == b"hello"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("app", "options"), [("app", ()), ("wsgi", ()), ("fastapi", ("--factory",))], ids=["async", "wsgi", "def endpoint"]
)
def test_a_request_that_never_ends(run: Serve, app: str, options: tuple[str, ...]) -> None:
    """Past request_timeout its worker's stacks are logged and it is replaced; other requests there are finished first."""
    running = run(f"{APP}:{app}", *options, "--request-timeout", "1s", "--drain-timeout", "2s").ready()
    with ExitStack() as stack:
        stuck = stack.enter_context(Connection(running.address))
        stuck.send("/forever/a")
        victim = running.held("a")
        others = [stack.enter_context(Connection(running.address)) for _ in range(8)]
        wait_until(lambda: "a request is older than request_timeout" in running.stderr, "it is noticed")
        for number, other in enumerate(others):
            other.send(f"/held/{number}")
        marks = [running.held(str(number)) for number in range(8)]
        running.release()
        for mark, other in zip(marks, others, strict=True):
            assert other.receive().body == b"released", mark
        wait_until(lambda: "in forever" in running.stderr or app == "app", "the function is named")
        replaced(running, victim)
    assert f"stacks of worker {victim}" in running.stderr
    assert running.shutdown() == 0


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
    """Master and workers stopped for longer than max_heartbeat_delay, then continued, the master first: nobody is killed."""
    running = run(f"{APP}:app", *SOON).ready()
    before = pids(running)
    get(running.address)
    for pid in (running.process.pid, *before):
        os.kill(pid, signal.SIGSTOP)
    asleep = time.monotonic() + 3.5  # a heartbeat promises 2 s; what is past them is late
    wait_until(lambda: time.monotonic() > asleep, "it is late enough")
    running.signal(signal.SIGCONT)
    first = running.status()["master"]["uptime"]
    for pid in before:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: running.status()["master"]["uptime"] > first + 2.2, "the master has looked at them twice")
    assert pids(running) == before
    assert "stuck" not in running.stderr
    assert get(running.address).body == b"hello"


def test_a_stopped_master(run: Serve) -> None:
    """While the master is stopped its workers serve on; when it is continued it kills none of them."""
    running = run(f"{APP}:app", *SOON).ready()
    before = pids(running)
    running.signal(signal.SIGSTOP)
    with Connection(running.address) as connection:
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            assert connection.get().body == b"hello"
    running.signal(signal.SIGCONT)
    assert pids(running) == before
    assert running.shutdown() == 0


def test_several_at_once(run: Serve) -> None:
    """Of four workers three hang, each in its own way: all are replaced, one after the other, and the fourth serves."""
    running = run(f"{APP}:app", *SOON, workers=4).ready(4)
    with ExitStack() as stack:
        victims = set()
        for how in ("spin", "compute", "sleep"):
            connection = stack.enter_context(Connection(running.address))
            connection.send(f"/{how}/{how}")
            victims.add(running.held(how))
        assert len(victims) == 3
        answers: list[bytes] = []
        client = threading.Thread(target=lambda: answers.extend(get(running.address).body for _ in range(20)))
        client.start()
        client.join()
        assert answers == [b"hello"] * 20
        wait_until(
            lambda: len(pids(running)) == 4 and not pids(running) & victims,
            lambda: f"all are replaced:\n{running.stderr}",
        )
