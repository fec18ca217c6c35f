"""Each signal has its declared effect on each kind of process."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster2.core.signal_table import SIGNAL_EFFECTS, SIGNAL_ROLES, Disposition, Role
from cluster2.linux.signals import numbers
from tests.system.clients import get
from tests.system.conftest import Serve
from tests.system.harness import Running, command, free_port, sample, wait_until

FAULTS = {"ABRT", "BUS", "FPE", "ILL", "SEGV"}
HARMLESS = {"USR1", "USR2", "CONT", "CHLD", "URG", "WINCH"}
"""Signals that are not ignored, and have no effect on any process that serves."""


def started(start: Serve) -> Running:
    """A cluster with one process of each kind."""
    argv = command(
        "run", sample("plain"), "--monitor-port", str(free_port()), "--bind", "127.0.0.1:0", "--workers", "1"
    )
    return start(argv).ready(1)


def process(running: Running, role: Role) -> int:
    """The pid of the cluster's process of a kind; 0: there is none now."""
    if role == "master":
        return running.process.pid
    for child in psutil.Process(running.process.pid).children():
        try:
            if role in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                return child.pid
        except psutil.NoSuchProcess:
            continue
    return 0


def masks(pid: int) -> dict[str, int]:
    """The signals that a process blocks, ignores and handles, a bit each."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {
        name: int(value, 16)
        for name, _, value in (line.partition(":\t") for line in lines)
        if name[:3] == "Sig" and name != "SigQ"
    }


def declared(role: Role, disposition: Disposition) -> set[str]:
    """The names of the signals with this disposition."""
    return {name for name, effects in SIGNAL_EFFECTS.items() if effects[role].disposition is disposition}


def as_declared(role: Role, pid: int) -> bool:
    """Whether a process blocks, ignores and handles what it is declared to; PYTHONFAULTHANDLER handles faults as well."""
    found = masks(pid)
    ignored, handled = (
        {name for name in SIGNAL_EFFECTS if any(found[mask] >> (number - 1) & 1 for number in numbers(name))}
        for mask in ("SigIgn", "SigCgt")
    )
    return (
        not found["SigBlk"]
        and ignored == declared(role, Disposition.IGNORED)
        and handled - FAULTS == declared(role, Disposition.HANDLED) | declared(role, Disposition.DROPPED)
    )


def settled(running: Running) -> dict[Role, int]:
    """The pid of each kind of process, when all have settled their signals."""
    pids: dict[Role, int] = {}
    for role in SIGNAL_ROLES:
        pids[role] = wait_until(lambda role=role: process(running, role), f"there is a {role}")
        wait_until(
            lambda role=role: as_declared(role, pids[role]),
            lambda role=role: f"the {role}'s signals are as declared: {masks(pids[role])}",
            timeout=10,
        )
    return pids


def test_what_is_ignored(start: Serve) -> None:
    """Each process blocks, ignores and handles what it is declared to, and outlives each signal that has no effect on it."""
    running = started(start)
    pids = settled(running)
    for role in SIGNAL_ROLES:
        for name in declared(role, Disposition.IGNORED) | declared(role, Disposition.DROPPED) | HARMLESS:
            for number in numbers(name):
                os.kill(pids[role], number)
    wait_until(lambda: "SIGUSR2 does nothing here" in running.stderr, "the master has heard of all")
    assert get(running.address).body == b"hello"
    assert {role: process(running, role) for role in SIGNAL_ROLES} == pids
    assert len(running.workers()) == 1
    assert running.shutdown() == 0


@pytest.mark.slow
def test_what_ends_a_process(start: Serve) -> None:
    """A process that a signal ends is replaced."""
    running = started(start)
    for number in (signal.SIGALRM, signal.SIGSEGV):
        before = {role: pid for role, pid in settled(running).items() if role != "master"}
        for pid in before.values():
            os.kill(pid, number)
        for role, pid in before.items():
            wait_until(
                lambda role=role, pid=pid: process(running, role) not in (0, pid),
                lambda role=role: f"another {role}; log:\n{running.stderr}",
            )
    running.ready(1)
    assert get(running.address).body == b"hello"
    assert running.shutdown() == 0


def test_what_a_master_inherits(start: Serve) -> None:
    """A master whose parent ignores CHLD and blocks TERM learns how its workers end, and hears TERM."""
    deaf = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); os.execv(sys.argv[1], sys.argv[1:])"
    )
    argv = command("run", sample("plain"), "--monitor-port", "0", "--bind", "127.0.0.1:0", "--workers", "1")
    running = start([sys.executable, "-c", deaf, *argv]).ready(1)
    os.kill(running.workers()[0]["pid"], signal.SIGKILL)
    wait_until(lambda: "(slot 0, crash, SIGKILL while serving)" in running.stderr, lambda: f"told: {running.stderr}")
    running.ready(1)
    assert running.shutdown() == 0


@pytest.mark.parametrize("cluster", ["--cluster", "--no-cluster"])
def test_signals_in_the_last_moments(start: Serve, cluster: str) -> None:
    """Signals that come again and again until the process is gone don't change its exit code, which is 0."""
    options = (cluster, "--monitor-port", "0", "--bind", "unix:s", "--workers", "1")
    running = start(command("run", sample("plain"), *options))
    wait_until(lambda: "serves (slot 0" in running.stderr, lambda: running.stderr)
    while running.process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            running.signal(number)
        time.sleep(0.0005)
    assert running.process.returncode == 0, running.stderr


@pytest.mark.parametrize("cluster", [True, False])
def test_signals_behind_listen(start: Serve, tmp_path: Path, cluster: bool) -> None:
    """When `listen` has returned, signals do what they did before it: ^C interrupts the script, TERM ends it."""
    (tmp_path / "main.py").write_text(
        "import signal, time\n"
        "from cluster2 import Cluster\n"
        "signal.signal(signal.SIGHUP, print)\n"
        f"Cluster(bind='unix:s', workers=1, monitor_port=0, cluster={cluster}).listen({sample('plain')!r})\n"
        "assert signal.getsignal(signal.SIGHUP) is print\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "print('returned', flush=True)\n"
        "time.sleep(60)\n"
    )
    running = start([sys.executable, "main.py"], directory=tmp_path)
    wait_until(lambda: "serving on unix:s" in running.stderr, lambda: running.stderr)
    running.signal(signal.SIGTERM)
    wait_until(lambda: "returned" in (running.directory / "stdout").read_text(), lambda: running.stderr)
    assert running.shutdown() == -signal.SIGTERM
