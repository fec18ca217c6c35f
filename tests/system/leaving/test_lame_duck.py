"""A cluster that leaves as a lame duck: health checks fail first, serving goes on, then it drains."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from tests.system.clients import Connection, get
from tests.system.conftest import Serve
from tests.system.harness import Running, accepts, command, sample, wait_until
from tests.system.notified import Manager


def leaving(running: Running) -> None:
    wait_until(lambda: running.status()["master"]["state"] == "leaving", "it is a lame duck")


@pytest.mark.slow
def test_the_end(run: Serve) -> None:
    """When its time is over it drains and leaves."""
    running = run(sample("plain"), "--lame-duck", "1500ms").ready()
    began = time.monotonic()
    assert running.shutdown() == 0
    assert time.monotonic() - began >= 1.5
    assert "shutting down gracefully, serving on for 1.5 s first" in running.stderr


@pytest.mark.slow
def test_until_the_end(run: Serve) -> None:
    """After TERM ECV says DISABLED while all else goes on: connections are taken, a killed worker is replaced."""
    with Manager(None) as manager:
        running = run(sample("plain"), "--lame-duck", "1h", env={"NOTIFY_SOCKET": manager.address}).ready()
        assert get(running.address, "/ecv").status == 200
        running.signal(signal.SIGTERM)
        leaving(running)
        assert manager.next(but="READY") == {"STOPPING": "1", "STATUS": "leaving: serves on for 3600 s"}
        answer = get(running.address, "/ecv")
        assert (answer.status, answer.body[:30]) == (400, b"status=DISABLED&ServeTraffic=f")
        with Connection(running.address) as connection:
            for _ in range(2):
                answer = connection.get()
                assert (answer.status, answer.body) == (200, b"hello")
                assert "connection" not in answer.headers, "it stays open"
        killed = running.workers()[0]["pid"]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: killed not in [row["pid"] for row in running.workers()], "it is dead")
        wait_until(lambda: len(running.workers()) == 2, "its successor serves")
        assert running.shutdown() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_cut_short(run: Serve, number: signal.Signals) -> None:
    """A second TERM or INT cuts the time short; requests under way are finished all the same."""
    running = run(sample("plain"), "--lame-duck", "1h").ready()
    with Connection(running.address) as connection:
        connection.send("/held/a")
        running.held("a")
        running.signal(number)
        leaving(running)
        running.signal(number)
        running.draining()
        running.release()
        assert connection.receive().body == b"released"
    assert running.wait() == 0


def test_stop_waits_for_nothing(run: Serve) -> None:
    """QUIT ends a lame duck at once."""
    running = run(sample("plain"), "--lame-duck", "1h").ready()
    running.signal(signal.SIGTERM)
    leaving(running)
    running.signal(signal.SIGQUIT)
    assert running.wait() == 0


def test_what_can_not_be_asked_of_it(run: Serve) -> None:
    """Nothing is begun any more: a reload is refused; `enable` doesn't bring the traffic back."""
    running = run(sample("plain"), "--lame-duck", "1h").ready()
    running.signal(signal.SIGTERM)
    leaving(running)
    refused = running.cli("reload")
    assert (refused.returncode, refused.stderr) == (
        1,
        "cluster2: error: the cluster is leaving: 'reload' can't be done now\n",
    )
    running.cli("enable")
    assert get(running.address, "/ecv").status == 400
    running.signal(signal.SIGTERM)
    assert running.wait() == 0


def test_the_command(run: Serve) -> None:
    """`cluster2 shutdown` tells of the time that is left, and returns when all is over; a second one cuts it short."""
    running = run(sample("plain"), "--lame-duck", "1h").ready()
    asking = subprocess.Popen(command("shutdown"), cwd=running.directory)
    leaving(running)
    assert asking.poll() is None
    with Connection(str(running.pids / "master.sock")) as control:
        control.socket.sendall(b'{"verb": "shutdown"}\n')
        assert running.wait() == 0
    assert asking.wait(30) == 0


def test_before_it_serves(run: Serve) -> None:
    """A cluster that isn't ready yet has no traffic to be taken from it: it leaves at once."""
    running = run(sample("never_starts"), "--lame-duck", "1h", "--boot-timeout", "1h")
    wait_until(lambda: len(running.workers("booting")) == 2 if running.pids.exists() else False, "it boots")
    assert running.shutdown() == 0


def test_without_a_master(run: Serve) -> None:
    """The same with cluster = false: it serves on, ECV says DISABLED, a second TERM cuts it short."""
    running = run(sample("plain"), "--no-cluster", "--lame-duck", "1h", bind=["unix:app.sock"])
    path = str(running.directory / "app.sock")
    wait_until(lambda: accepts(path), lambda: f"it listens: {running.stderr}")
    wait_until(lambda: get(path, "/ecv").status == 200, "it serves")
    running.signal(signal.SIGTERM)
    wait_until(lambda: get(path, "/ecv").status == 400, "health checks fail")
    assert get(path).body == b"hello"
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
