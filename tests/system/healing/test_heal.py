"""Workers that die come back."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.system.clients import Connection, Load, get
from tests.system.conftest import Serve
from tests.system.harness import Running, descendants, sample, wait_until


def replaced(running: Running, old: int, workers: int = 2) -> bool:
    """Whether a worker is gone and all slots are served again."""
    pids = {row["pid"] for row in running.workers()}
    return old not in pids and len(pids) == workers


@pytest.mark.slow
@pytest.mark.parametrize("keep_alive", [True, False], ids=["keep-alive", "connection-per-request"])
def test_killed_under_load(run: Serve, keep_alive: bool) -> None:
    """A worker killed under load comes back in its slot; only what was under way fails, and nothing is refused."""
    running = run(sample("plain")).ready()
    victim = running.workers()[0]
    with Load(running.address, clients=12, keep_alive=keep_alive) as load:
        wait_until(lambda: load.counts.answered > 200, "the load runs")
        os.kill(victim["pid"], signal.SIGKILL)
        wait_until(lambda: replaced(running, victim["pid"]), lambda: f"a successor is ready: {running.status()}")
        before = load.counts.answered
        successor = next(row for row in running.workers() if row["slot"] == victim["slot"])
        wait_until(lambda: load.counts.answered > before + 200, "the load goes on")
        if not keep_alive:
            wait_until(lambda: successor["pid"] in load.counts.workers, "the successor answers as well")
    assert len(load.counts.failed) + load.counts.closed <= 12
    assert load.counts.refused == []
    assert successor["generation"] == victim["generation"]


def test_pid_files_that_cannot_be_written(run: Serve) -> None:
    """A file takes the place of the directory of pid files: the cluster says so, and goes on to replace workers that die."""
    running = run(sample("plain"), workers=1).ready(1)
    victim, address = running.workers()[0]["pid"], running.address
    shutil.rmtree(running.pids)
    running.pids.touch()  # a directory that is only missing is soon there again
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(re.findall(r"worker \d+ serves", running.stderr)) == 2, lambda: f"another: {running.stderr}")
    assert get(address).body == b"hello"
    assert "the pid file of worker" in running.stderr
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
    running.pids.unlink()


def test_only_the_killed_workers_requests_fail(run: Serve) -> None:
    """Exactly the requests that the killed worker was working on fail; those of the other are answered."""
    running = run(sample("plain")).ready()
    connections: list[Connection] = []
    marks: dict[int, int] = {}
    while len(set(marks.values())) < 2:  # nothing keeps the kernel from giving a dozen to one worker
        assert len(connections) < 240, f"one worker has all: {Counter(marks.values())}"
        connections += [Connection(running.address) for _ in range(12)]
        for number in range(len(connections) - 12, len(connections)):
            connections[number].send(f"/held/{number}")
        wanted = len(connections)
        marks = wait_until(lambda wanted=wanted: _held(running.directory, wanted), "all are in their handlers")  # type: ignore[misc]
    assert set(marks.values()) == {row["pid"] for row in running.workers()}
    victim = running.workers()[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: replaced(running, victim), "a successor is ready")
    running.release()
    for number, connection in enumerate(connections):
        with connection:
            if marks[number] == victim:
                assert connection.closed()
            else:
                assert connection.receive().body == b"released"


def _held(directory: Path, wanted: int) -> dict[int, int]:
    """Pid by request, once all wanted requests are in their handlers."""
    marks = {int(path.name.split(".")[1]): int(path.name.split(".")[2]) for path in directory.glob("held.*")}
    return marks if len(marks) == wanted else {}


def test_worker_that_exits(run: Serve) -> None:
    """A worker that exits by itself, mid-request, is replaced, and the master says so."""
    running = run(sample("plain")).ready()
    pids = {row["pid"] for row in running.workers()}
    with Connection(running.address) as connection:
        connection.send("/crash")
        assert connection.closed()
    wait_until(lambda: len({row["pid"] for row in running.workers()} - pids) == 1, "a successor is ready")
    assert len(running.workers()) == 2
    assert get(running.address).body == b"hello"
    assert any(str(pid) in running.stderr for pid in pids)


def test_worker_told_to_leave(run: Serve) -> None:
    """A worker that receives TERM drains, leaves and is replaced."""
    running = run(sample("plain")).ready()
    victim = running.workers()[1]["pid"]
    os.kill(victim, signal.SIGTERM)
    wait_until(lambda: replaced(running, victim), "a successor is ready")


def test_executed_worker_comes_back(run: Serve) -> None:
    """With preload=false a killed worker is replaced as well."""
    running = run(sample("plain"), "--no-preload").ready()
    victim = running.workers()[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: replaced(running, victim), "a successor is ready")


def test_zygote_is_replaceable(run: Serve) -> None:
    """A killed zygote costs nothing: workers serve on, and a worker that is killed afterwards still comes back."""
    running = run(sample("plain")).ready()
    workers = {row["pid"] for row in running.workers()}
    for pid in descendants() - workers - {running.process.pid}:
        os.kill(pid, signal.SIGKILL)
    assert get(running.address).body == b"hello"
    victim = min(workers)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: replaced(running, victim), lambda: f"a successor is ready:\n{running.stderr}")


@pytest.mark.slow
def test_crash_loop_degrades(run: Serve, tmp_path: Path) -> None:
    """Workers that crash too often make the cluster degraded: it says so, backs off, and serves with what it has."""
    (tmp_path / "crashing.py").write_text(
        "import os, pathlib\n"
        "from tests.system.apps.sample_apps import answer\n"
        "async def app(scope, receive, send):\n"
        "    if scope['type'] == 'lifespan':\n"
        "        await receive()\n"
        "        if pathlib.Path('broken').exists():\n"
        "            os._exit(9)\n"
        "        await send({'type': 'lifespan.startup.complete'})\n"
        "        await receive()\n"
        "        await send({'type': 'lifespan.shutdown.complete'})\n"
        "    else:\n"
        "        await answer(send, b'hello')\n"
    )
    root = str(Path(__file__).parents[3])
    running = run("crashing:app", "--restart-limit", "3", directory=tmp_path, env={"PYTHONPATH": root}).ready()
    (tmp_path / "broken").touch()
    victim = running.workers()[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: "degraded" in running.stderr, "the master says that it is degraded")
    wait_until(lambda: [each["slot"] for each in running.status()["backoffs"]] == [0], "the status names the slot")
    wait_until(lambda: "slot 0  backs off, next worker in" in running.cli("status").stdout, "so does the table")
    assert "slot 0 backs off: its next worker is made in" in running.stderr
    assert get(running.address).body == b"hello"
    assert running.shutdown() == 0


def test_killed_master_orphans_nobody(run: Serve) -> None:
    """When the master is killed all its processes leave by themselves."""
    running = run(sample("plain")).ready()
    with Connection(running.address) as connection:
        connection.get()
        running.process.kill()
        running.wait()
        wait_until(lambda: not descendants() - running._before, "workers and zygote have left")
        assert connection.closed()
    # The next master on this directory clears what the killed one could not.
    successor = run(sample("plain"), directory=running.directory).ready()
    assert successor.shutdown() == 0


@pytest.mark.parametrize("options", [(), ("--no-preload",)], ids=["forked", "executed"])
def test_killed_master_leaves_no_stopped_process(run: Serve, options: tuple[str, ...]) -> None:
    """A worker, zygote, keeper or monitor that is stopped when the master is killed ends all the same."""
    running = run(sample("plain"), "--drain-timeout", "1", *options, workers=1).ready(1)
    ours = descendants() - running._before - {running.process.pid}
    assert len(ours) == (3 if not options else 2), [psutil.Process(pid).cmdline() for pid in ours]
    for pid in ours:
        wait_until(lambda pid=pid: _has_begun(pid), f"{pid} has begun")
        os.kill(pid, signal.SIGSTOP)
    for pid in ours:
        wait_until(lambda pid=pid: psutil.Process(pid).status() == psutil.STATUS_STOPPED, f"{pid} is stopped")
    running.process.kill()
    running.wait()
    wait_until(lambda: not descendants() - running._before, "all processes have ended")
    shutil.rmtree(running.pids)


STUCK = """
import asyncio, collections, ctypes, itertools, os, pathlib

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    pathlib.Path(f"stuck{scope['path'].replace('/', '.')}").write_text(str(os.getpid()))
    if scope["path"] == "/gil":
        collections.deque(itertools.repeat(None), maxlen=0)  # C code that has the GIL, and never looks for signals
    mutex = (ctypes.c_char * 64)()
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)  # the second time for ever, without the GIL
"""


@pytest.mark.soak
@pytest.mark.parametrize("options", [(), ("--no-preload", "--no-keeper")], ids=["forked", "executed"])
def test_killed_master_leaves_no_worker_in_c(run: Serve, tmp_path: Path, options: tuple[str, ...]) -> None:
    """A worker whose main thread is in C code for ever, with the GIL or without, ends some time after a master that is killed."""
    (tmp_path / "stuck.py").write_text(STUCK)
    running = run("stuck.py:app", "--drain-timeout", "1", *options, directory=tmp_path).ready()
    with ExitStack() as clients:
        pids = set()
        for path in ("gil", "lock"):
            client = clients.enter_context(Connection(running.address))
            client.send(f"/{path}")
            mark = tmp_path / f"stuck.{path}"
            pids.add(int(wait_until(lambda mark=mark: mark.exists() and mark.read_text(), "it is stuck")))  # type: ignore[misc]
        assert len(pids) == 2, "one worker each"
        running.process.kill()
        running.wait()
        wait_until(lambda: descendants() - running._before == pids, "all others have left")
        # 34 s each; the end of one may set the time of the other anew (`linux.parent_death_timer`).
        wait_until(lambda: not descendants() - running._before, "they have ended", timeout=100)
    shutil.rmtree(running.pids)


def _has_begun(pid: int) -> bool:
    """Whether a process has taken the steps of `linux.exec_start`: it handles SIGUSR1."""
    (handled,) = re.findall(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(handled, 16) >> (signal.SIGUSR1 - 1) & 1)


TIMED = """
import asyncio, os, pathlib, signal, time

def late(*_):
    raise TimeoutError

signal.signal(signal.SIGALRM, late)

def app(environ, start_response):
    master = os.getppid()
    pathlib.Path("begun").touch()
    while os.getppid() == master:
        time.sleep(0.01)
    time.sleep(0.2)  # the signals of the master's end have come
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        time.sleep(20)
        body = b"not interrupted"
    except TimeoutError:
        body = b"timed out"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def test_app_that_uses_sigalrm_when_the_master_is_killed(run: Serve, tmp_path: Path) -> None:
    """A request that bounds its own time by SIGALRM is answered by a worker whose master was killed."""
    (tmp_path / "timed.py").write_text(TIMED)
    running = run("timed.py:app", "--threads", "0", directory=tmp_path, workers=1).ready(1)
    with Connection(running.address) as connection:
        connection.send("/")
        wait_until((tmp_path / "begun").exists, "the app is called")
        running.process.kill()
        running.wait()
        assert connection.receive().body == b"timed out"
    wait_until(lambda: not descendants() - running._before, "the worker has left")
    shutil.rmtree(running.pids)
