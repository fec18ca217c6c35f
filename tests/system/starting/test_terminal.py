"""A terminal that is closed ends what runs in its foreground; HUP without that is a request to reload."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.harness import Running, command, sample, wait_until

Start = Callable[..., Running]
LEADER = """
import os, signal, sys
os.setsid()
terminal = os.open(sys.argv[1], os.O_RDWR)
for stream in (0,) if "keeps output" in sys.argv[2] else (0, 1, 2):
    os.dup2(terminal, stream)
if "nohup" in sys.argv[2]:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
if "job" in sys.argv[2]:
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        sys.exit()
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Opens the terminal of that path, which becomes that of the session, and executes the rest, as its leader or as a job of it."""


class Terminal:
    """One whose window is this object."""

    def __init__(self) -> None:
        self.window, self._other = os.openpty()
        self.path = os.ttyname(self._other)
        os.close(self._other)

    def close(self) -> None:
        """Hang it up."""
        if self.window >= 0:
            os.close(self.window)
            self.window = -1


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def run(start: Start, terminal: Terminal, how: str, *options: str) -> Running:
    """Start a cluster in that terminal."""
    cluster = command("run", sample("plain"), "--bind", "127.0.0.1:0", "--monitor-port", "0", *options)
    return start([sys.executable, "-c", LEADER, terminal.path, how, *cluster])


@pytest.mark.parametrize("how", ["leader", "leader, keeps output", "job, keeps output"])
def test_a_terminal_that_is_closed(start: Start, terminal: Terminal, how: str) -> None:
    """The cluster ends, whether HUP comes from the kernel alone or to a job of a shell, and wherever its output goes."""
    running = run(start, terminal, how, "--workers", "1").ready(1)
    terminal.close()
    code = running.wait()
    assert code == (-signal.SIGHUP if "job" in how else 0)
    running.assert_gone()
    if "keeps output" in how:
        assert "the terminal was closed: shutting down" in running.stderr
    assert "reload" not in running.stderr
    assert "reload" not in (running.directory / "logs" / "master.log").read_text()


def test_a_terminal_that_is_closed_without_a_master(start: Start, terminal: Terminal) -> None:
    """The same with `cluster = false`."""
    running = run(start, terminal, "leader, keeps output", "--no-cluster")
    wait_until(lambda: "logs in" in running.stderr, lambda: running.stderr)
    running.signal(signal.SIGHUP)
    wait_until(lambda: "SIGHUP has no effect with cluster = false" in running.stderr, lambda: running.stderr)
    terminal.close()
    assert running.wait() == 0
    assert "the terminal was closed: shutting down" in running.stderr


def test_a_request_in_a_terminal(start: Start, terminal: Terminal) -> None:
    """HUP means reload while the terminal is there."""
    running = run(start, terminal, "leader, keeps output", "--workers", "1").ready(1)
    running.signal(signal.SIGHUP)
    wait_until(lambda: running.status()["generation"] == 2, lambda: running.stderr)
    terminal.close()
    assert running.wait() == 0


def test_nohup(start: Start, terminal: Terminal) -> None:
    """Whoever has ignored HUP before wants it to go on; then HUP is a request again."""
    running = run(start, terminal, "leader, nohup, keeps output", "--workers", "1").ready(1)
    terminal.close()
    wait_until(lambda: "the terminal was closed: going on" in running.stderr, lambda: running.stderr)
    assert running.status()["generation"] == 1

    def reloaded() -> bool:
        running.signal(signal.SIGHUP)
        return bool(running.status()["generation"] > 1)

    wait_until(reloaded, lambda: running.stderr)
    assert running.shutdown() == 0


JOB = """
import os, sys, time
os.setsid()
os.open(sys.argv[1], os.O_RDWR)
if os.fork() == 0:
    os.setpgid(0, 0)
    os.execv(sys.argv[2], sys.argv[2:])
while not os.path.exists("leave"):
    time.sleep(0.01)
"""
"""Executes the rest as a job in the background of a session that ends when there is a file `leave`."""


@pytest.mark.slow
def test_a_job_that_outlives_its_session(start: Start, terminal: Terminal) -> None:
    """The terminal goes without a HUP: one that comes later is a request to reload."""
    cluster = command("run", sample("plain"), "--bind", "127.0.0.1:0", "--monitor-port", "0", "--workers", "1")
    running = start([sys.executable, "-c", JOB, terminal.path, *cluster, "--heartbeat-interval", "1s"])
    running.ready(1)
    master = int(running.status()["master"]["pid"])
    (running.directory / "leave").touch()
    assert running.wait() == 0
    wait_until(lambda: Path(f"/proc/{master}/stat").read_text().rpartition(")")[2].split()[4] == "0", "it has gone")
    with subprocess.Popen(
        command("events", "--json"), cwd=running.directory, stdout=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        for _ in range(4):  # it has been noticed, and a second has passed
            assert any('"heartbeat"' in line for line in iter(following.stdout.readline, ""))
        following.terminate()
    os.kill(master, signal.SIGHUP)
    wait_until(lambda: running.status()["generation"] == 2, lambda: running.stderr)
    assert running.cli("shutdown").returncode == 0
