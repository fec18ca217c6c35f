"""The keeper of a real cluster: killed, stopped, restarted, or not there at all."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster2.config.settings import Settings
from cluster2.linux.scoreboard import Scoreboard
from cluster2.processes.master.helpers.keeper import KeeperProcess
from cluster2.processes.master.state.inbox import HelperExited, InboxMessage
from tests.system.conftest import Serve
from tests.system.connections.test_moving import MOVING, PARKING, Wire, park
from tests.system.harness import Running, stop, wait_until


def resting(running: Running, count: int) -> None:
    """Wait until so many rest."""
    wait_until(lambda: (running.status()["keeper"] or {}).get("resting") == count, f"{count} rest")


def keeper(running: Running) -> int:
    """Its pid."""
    pid: int = wait_until(lambda: (running.status()["keeper"] or {}).get("pid"), "there is a keeper")
    return pid


def test_a_killed_keeper(run: Serve) -> None:
    """What rested there is lost, and told; connections of workers go on; another keeper does what the first one did."""
    running = run(MOVING, "--handoff-idle-after", "300ms").ready()
    with ExitStack() as stack:
        lost = [stack.enter_context(Wire(running)) for _ in range(5)]
        resting(running, 5)
        first = keeper(running)
        with Wire(running) as wire:
            wire.ask("a")
            os.kill(first, signal.SIGKILL)
            assert all(each.socket.recv(1) == b"" for each in lost)
            wire.ask("b")
            wait_until(lambda: keeper(running) != first, "there is another")
            assert "the keeper is gone (SIGKILL): 5 connections at rest are lost; another is started" in running.stderr
            assert running.status()["keeper"]["restarts"] == 1
            resting(running, 1)
            wire.ask("c")
            assert wire.quiet()


def test_killed_while_workers_park(run: Serve) -> None:
    """Again and again: workers serve on, and nobody who connects anew notices."""
    running = run(MOVING, *PARKING).ready()
    park(running)
    for turn in range(3):
        before = keeper(running)
        os.kill(before, signal.SIGKILL)
        wait_until(lambda before=before: keeper(running) != before, "there is another")  # type: ignore[misc]
        with Wire(running) as wire:
            for _ in range(5):
                wire.ask(f"a{turn}")
            assert wire.quiet()
    assert running.status()["keeper"]["restarts"] == 3
    assert running.shutdown() == 0


def test_a_stopped_keeper(run: Serve) -> None:
    """While it is stopped, what workers have is served; when it goes on all is well."""
    # What goes there waits until it goes on: so nothing is given away. Two workers would share, and on a busy machine
    # steps are long, and connections parked.
    running = run(MOVING, "--handoff-idle-after", "0", "--handoff-slow-above", "0", workers=1).ready(1)
    pid = keeper(running)
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(running)) for _ in range(10)]
        for wire in wires:
            wire.ask("a")
        stop(pid)
        try:
            for wire in wires:
                wire.ask("b")
        finally:
            os.kill(pid, signal.SIGCONT)
        for wire in wires:
            wire.ask("c")
            assert wire.quiet()


def test_shutdown_with_a_stopped_keeper(run: Serve) -> None:
    """A keeper that doesn't listen can't keep the cluster from ending."""
    running = run(MOVING, "--drain-timeout", "1s", "--drain-idle", "100ms").ready()
    pid = keeper(running)
    stop(pid)
    try:
        running.signal(signal.SIGTERM)
        running.wait(20)
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass  # as it should be


def test_no_keeper(run: Serve) -> None:
    """With `keeper = false` there is none: connections stay, idle ones of a worker that leaves are ended politely."""
    running = run(MOVING, "--no-keeper", "--drain-idle", "20s").ready()
    assert running.status()["keeper"] is None
    with Wire(running) as wire:
        for turn in range(20):
            holder = int(wire.ask(f"a{turn}")["x-worker"])
        assert wire.quiet()
        assert [row["mode"] for row in running.workers()].count("handoff") == 0
        before = {row["pid"] for row in running.workers()}
        for pid in before:
            os.kill(pid, signal.SIGTERM)
        running.draining(pid=holder)
        assert wire.ask("b")["connection"] == "close"
    assert running.shutdown() == 0


def test_of_no_use(run: Serve, certified: tuple[tuple[str, ...], ssl.SSLContext]) -> None:
    """No keeper is started where nothing could rest: where engines take connections themselves, and with TLS."""
    granian = run(f"{(Path(__file__).parents[1] / 'apps' / 'granian_app.py')}:rsgi").ready()
    encrypted = run(MOVING, *certified[0]).ready()
    mixed = run(MOVING, *certified[0], bind=["127.0.0.1:0", "unix:app.sock"]).ready()
    for running, there in ((granian, False), (encrypted, False), (mixed, True)):
        assert (running.status()["keeper"] is not None) == there
        assert running.shutdown() == 0


def test_no_cluster(run: Serve) -> None:
    """With `cluster = false` one process does it all: blocking handlers, idle connections, and a polite end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    running = run(MOVING, "--no-cluster", "--drain-idle", "20s", bind=[f"127.0.0.1:{address[1]}"], workers=None)
    wait_until(lambda: answers(address), lambda: running.stderr)
    with Wire(address) as wire:
        for turn in range(30):
            wire.ask(f"a{turn}")
        assert wire.quiet()
        running.signal(signal.SIGTERM)
        wait_until(lambda: wire.ask("b").get("connection") == "close", "it has heard")
        assert wire.socket.recv(1) == b""
    assert running.wait() == 0


def answers(address: tuple[str, int]) -> bool:
    try:
        with Wire(address) as wire:
            wire.ask("a")
            return True
    except OSError:
        return False


def test_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper without a heartbeat for `timeout_s` is stuck and killed. The message says how many connections are lost."""
    monkeypatch.setattr(KeeperProcess, "timeout_s", 0.3)
    facts: list[InboxMessage] = []

    async def main() -> None:
        board = Scoreboard.create()
        kept = KeeperProcess(board, 1, Settings(timeout=60.0), facts.append)
        kept.start()
        try:
            (pid,) = kept.pids()
            assert kept.kill_if_stuck(time.monotonic()) is None
            board.header.resting = 7
            os.kill(pid, signal.SIGSTOP)
            await until(lambda: "T" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
            board.header.resting = 7
            await until(
                lambda: kept.kill_if_stuck(time.monotonic()) == "the keeper has missed its heartbeats; it is killed"
            )
            await until(lambda: facts)
            assert not kept.alive()
            assert kept.kill_if_stuck(time.monotonic() + 100) is None
            kept.stop()  # of one that is gone: nothing
        finally:
            kept.close()
            board.close()

    asyncio.run(main())
    assert facts == [HelperExited("keeper", "is gone (SIGKILL): 7 connections at rest are lost")]


async def until(predicate: object) -> None:
    """Let the loop run until it is true."""
    deadline = time.monotonic() + 20
    assert callable(predicate)
    while not predicate():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
