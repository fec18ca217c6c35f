"""What systemd is told, and when: a notify socket of the test's own hears every message."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.system.clients import Connection
from tests.system.conftest import Serve
from tests.system.harness import descendants, sample
from tests.system.notified import Manager

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


@pytest.mark.slow
def test_a_life(run: Serve, tmp_path: Path) -> None:
    """READY=1 when all serve; RELOADING=1 with the time, then READY=1; STOPPING=1 before the drain; a STATUS with each."""
    with Manager(tmp_path / "notify") as manager:
        running = run(sample("plain"), env={"NOTIFY_SOCKET": manager.address})
        assert manager.next() == {"READY": "1", "STATUS": "serving with 2 workers"}
        assert len(running.workers()) == 2
        before = time.monotonic_ns() // 1000
        running.signal(signal.SIGHUP)
        reloading = manager.next()
        assert before <= int(reloading.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
        assert reloading == {"RELOADING": "1", "STATUS": "loading generation 2"}
        assert manager.next() == {"READY": "1", "STATUS": "generation 2 serves"}
        assert {row["generation"] for row in running.workers()} == {2}
        with Connection(running.address) as connection:
            connection.send("/held/a")
            running.held("a")
            running.signal(signal.SIGTERM)
            assert manager.next() == {"STOPPING": "1", "STATUS": "draining"}
            running.release()
            assert connection.receive().status == 200
        assert running.wait() == 0


def test_a_reload_that_fails(run: Serve, tmp_path: Path) -> None:
    """A reload that is abandoned ends with READY=1 as well, since the old generation serves; the status tells why."""
    app = tmp_path / "app.py"
    app.write_text("async def app(scope, receive, send):\n    pass\n")
    with Manager(None) as manager:
        running = run(f"{app}:app", env={"NOTIFY_SOCKET": manager.address})
        assert manager.next()["READY"] == "1"
        app.write_text("raise RuntimeError('no\\nline breaks')\n")
        running.signal(signal.SIGHUP)
        assert manager.next()["RELOADING"] == "1"
        failed = manager.next()
        assert failed["READY"] == "1"
        assert failed["STATUS"].startswith("reload abandoned, the old generation goes on: ")
        assert running.shutdown() == 0


def test_signs_of_life_and_an_environment_without_secrets(run: Serve) -> None:
    """Within WATCHDOG_USEC come two WATCHDOG=1, as long as the master's loop turns; no process inherits the variables."""
    with Manager(None) as manager:
        before = descendants()
        running = run(sample("plain"), env={"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}).ready()
        for _ in range(5):
            while "WATCHDOG" not in manager.next():
                pass
        for pid in descendants() - before - {running.process.pid}:
            assert not set(VARIABLES) & psutil.Process(pid).environ().keys(), psutil.Process(pid).cmdline()
        assert running.shutdown() == 0


@pytest.mark.parametrize(
    ("address", "says"),
    [("/no/such/socket", None), ("vsock:2:1234", "NOTIFY_SOCKET=vsock:2:1234: neither a path nor an abstract name")],
)
def test_a_manager_that_is_not_there(run: Serve, address: str, says: str | None) -> None:
    """Whatever is wrong with the socket, the cluster serves."""
    running = run(sample("plain"), env={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "0.2 s"}).ready()
    assert running.shutdown() == 0
    assert says is None or says in running.stderr
    assert "WATCHDOG_USEC=0.2 s: not a number" in running.stderr


def test_in_the_background(run: Serve, start: Serve, tmp_path: Path) -> None:
    """A master that isn't the process that systemd has started says who it is."""
    with Manager(None) as manager:
        running = run(
            sample("plain"),
            env={"NOTIFY_SOCKET": manager.address, "SYSTEMD_EXEC_PID": str(os.getpid()), "WATCHDOG_PID": "1"},
        )
        assert manager.next()["MAINPID"] == str(running.process.pid)
        assert running.ready().shutdown() == 0


def test_without_a_master(run: Serve) -> None:
    """With cluster = false the one process says the same."""
    with Manager(None) as manager:
        environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
        running = run(sample("plain"), "--no-cluster", env=environment)
        assert manager.next() == {"READY": "1", "STATUS": "serving with 1 worker"}
        for _ in range(3):
            assert manager.next() == {"WATCHDOG": "1"}
        running.signal(signal.SIGTERM)
        assert manager.next(but="WATCHDOG") == {"STOPPING": "1", "STATUS": "draining"}
        assert running.wait() == 0
