"""Processes that the app starts, at import and in its handlers: they are ordinary processes, and keep nothing of the cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.system.clients import Connection, get
from tests.system.conftest import Serve
from tests.system.harness import ROOT, Running, clean_environment, command, free_port, wait_until

APP = "tests.system.apps.children_app:"
FORKS = ("multiprocess", "fork")
PROGRAMS = ("popen", "preexec", "posix_spawn", "system")
GLIBC = {32, 33}
"""Signals that glibc keeps for itself: no program can change them."""
FAULTS = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}
"""PYTHONFAULTHANDLER handles them."""
ENVIRONMENT = {"PYTHONPATH": str(ROOT)}
SHAPES = {
    "asgi": ("app",),
    "wsgi": ("wsgi",),
    "wsgi inline": ("wsgi", "--threads", "0"),
    "no preload": ("app", "--no-preload"),
    "no keeper": ("app", "--no-keeper"),
    "granian asgi": ("app", "--engine", "granian"),
    "granian rsgi": ("rsgi", "--engine", "granian"),
    "granian wsgi": ("wsgi", "--engine", "granian"),
    "tcp": ("tcp",),
    "alone": ("app", "--no-cluster"),
}
STAYING = {"imported.session", "imported.daemon"}
"""Processes with a session of their own."""
IMPORTED = "multiprocess popen posix_spawn"
OFTEN = ("asgi", "granian rsgi", "tcp", "alone")


def mask(pid: int, name: str) -> set[int]:
    """The numbers of the signals that a process ignores (SigIgn), handles (SigCgt) or blocks (SigBlk)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            bits = int(line.split()[1], 16)
            return {number for number in range(1, 65) if bits >> (number - 1) & 1} - GLIBC
    raise AssertionError(name)


def special(pid: int) -> set[str]:
    """The sockets of a process, by the names that the kernel gives them."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            name = os.readlink(path)
            if name.startswith("socket:"):
                found.add(name)
    return found


def executed(pid: int) -> bool:
    """Whether a process is the program that it is to be."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return "sleep" in psutil.Process(pid).name()
    return False


@contextlib.contextmanager
def killing() -> Iterator[list[int]]:
    """Pids of processes that are killed at the end, if they are still there."""
    pids: list[int] = []
    try:
        yield pids
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def started(run: Serve, shape: str, port: int, **environment: str) -> Running:
    """The app of that shape, with one worker that serves."""
    target, *options = SHAPES[shape]
    options += ["--drain-timeout", "60"]
    bind, env = (f"127.0.0.1:{port}",), ENVIRONMENT | environment
    running = run(APP + target, *options, workers=1, env=env, bind=bind)
    if shape != "alone":
        return running.ready(1)
    wait_until(lambda: "serves (slot 0" in running.stderr, lambda: running.stderr)
    return running


def ask(address: tuple[str, int], path: str, tcp: bool) -> int:
    """Have the app start something, and return its pid when the server has ended the connection."""
    with Connection(address) as connection:
        if tcp:
            connection.socket.sendall(f"{path}\n".encode())
            with connection.socket.makefile("rb") as whole:
                return int(whole.read())
        answer = connection.get(path, headers="Connection: close\r\n")
        assert answer.status == 200, answer
        assert connection.closed()
        return int(answer.body)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [pytest.param(each, marks=() if each in OFTEN else pytest.mark.soak) for each in SHAPES]
)
def test_children_of_handlers(run: Serve, shape: str) -> None:
    """A forked child has no connection, listener or channel, and obeys TERM; its worker leaves at once, and the port is free."""
    port = free_port()
    tcp = shape == "tcp"

    running = started(run, shape, port)
    address = ("127.0.0.1", port)
    with killing() as pids:
        worker = ask(address, "/", tcp)
        for kind in FORKS:
            pids.append(pid := ask(address, f"/{kind}", tcp))
            wait_until(lambda pid=pid: (running.directory / f"forked.{pid}").exists(), f"the child of {kind} runs")
            shared = special(pid) & special(worker)
            wakers = 4 if "granian" in shape else 2  # sockets that wake event loops, and belong to nothing else
            assert len(shared) <= wakers, "sockets of the worker"
            assert mask(pid, "SigIgn") <= {signal.SIGPIPE, signal.SIGXFSZ}
            assert mask(pid, "SigCgt") <= {signal.SIGINT, *FAULTS}
            assert not mask(pid, "SigBlk")
        os.kill(pids[0], signal.SIGTERM)
        wait_until(lambda: not psutil.pid_exists(pids[0]) or psutil.Process(pids[0]).status() == "zombie", "it ends")
        pids.append(ask(address, "/multiprocess", tcp))  # for the worker to end
        assert ask(address, "/", tcp) == worker, "the worker goes on"
        if shape != "alone":
            done = running.cli("recycle")
            assert done.returncode == 0, done.stderr
            assert ask(address, "/", tcp) != worker
        assert running.shutdown() == 0
        assert psutil.pid_exists(pids[1]), "the fork that ends by nothing is still there"
        socket.create_server(("127.0.0.1", port)).close()  # the port is free
    assert "can only join" not in running.stderr


def masks(pid: int) -> dict[str, set[int]]:
    """All that a process inherits of signals."""
    return {name: mask(pid, name) for name in ("SigIgn", "SigCgt", "SigBlk")}


def programs(directory: Path, address: tuple[str, int], pids: list[int]) -> dict[str, object]:
    """The signals of the programs that an app has started: at import, and in a handler, by their kind."""
    found: dict[str, object] = {}
    assert int(get(address, "/").body), "the import is over"
    for path in directory.glob("imported.*"):
        pids.append(int(path.suffix[1:]))
        if "multiprocess" not in path.name:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a zygote's that isn't needed
                found[path.stem] = masks(pids[-1])
    for kind in PROGRAMS:
        pids.append(pid := int(get(address, f"/{kind}").body))
        wait_until(lambda pid=pid: executed(pid), f"{kind} has executed its program")
        found[kind] = masks(pid)
    return found


@pytest.fixture(scope="module")
def like_gunicorn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What programs inherit that are started under gunicorn."""
    directory = tmp_path_factory.mktemp("gunicorn")
    port = free_port()
    argv = [sys.executable, "-m", "gunicorn", "-b", f"127.0.0.1:{port}", "--no-control-socket", f"{APP}wsgi"]
    environment = clean_environment(ENVIRONMENT | {"CHILDREN_AT_IMPORT": IMPORTED})

    def accepts() -> bool:
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", port)) == 0

    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=directory, env=environment, stderr=log)
        try:
            with killing() as pids:  # a child of multiprocessing doesn't obey TERM there, and holds up its worker
                wait_until(accepts, "gunicorn listens")
                return programs(directory, ("127.0.0.1", port), pids)
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    ["asgi", "alone", *(pytest.param(each, marks=pytest.mark.soak) for each in ("wsgi", "no preload", "granian rsgi"))],
)
def test_programs_inherit_what_they_do_under_gunicorn(run: Serve, shape: str, like_gunicorn: dict[str, object]) -> None:
    """Programs that are started at import or in a handler ignore, handle and block the same signals as under gunicorn."""
    port = free_port()
    running = started(run, shape, port, CHILDREN_AT_IMPORT=IMPORTED)
    with killing() as pids:
        assert programs(running.directory, ("127.0.0.1", port), pids) == like_gunicorn
        if shape != "wsgi":
            pids.append(pid := int(get(("127.0.0.1", port), "/uvloops").body))
            wait_until(lambda: executed(pid), "the program is executed")
            assert mask(pid, "SigIgn") == set()
        assert running.shutdown() == 0
    assert "can only join" not in running.stderr


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "verb"), [("asgi", "reload"), pytest.param("no preload", "recycle", marks=pytest.mark.soak)]
)
def test_children_of_the_import_end_with_it(run: Serve, shape: str, verb: str) -> None:
    """What the import has started ends with the generation, or the worker, that imported; what a handler has started stays."""
    port = free_port()
    running = started(run, shape, port, CHILDREN_AT_IMPORT="multiprocess joined popen session system nested daemon")

    def imported() -> dict[int, str]:
        return {int(path.suffix[1:]): path.stem for path in running.directory.glob("imported.*")}

    with killing() as pids:
        first = imported()
        pids += first
        pids.append(of_handler := int(get(("127.0.0.1", port), "/popen").body))
        done = running.cli(verb)
        assert done.returncode == 0, done.stderr
        second = {pid: kind for pid, kind in imported().items() if pid not in first}
        pids += second
        for pid, kind in first.items():
            if kind not in STAYING:
                wait_until(lambda pid=pid: not is_running(pid), f"{kind} of the old code ends")
        living = {kind for pid, kind in second.items() if is_running(pid)}
        assert living == set(first.values()), "those of the new code go on"
        assert running.shutdown() == 0
        for pid, kind in second.items():
            if kind not in STAYING:
                wait_until(lambda pid=pid: not is_running(pid), f"{kind} of the new code ends")
        staying = [pid for pid, kind in (first | second).items() if kind in STAYING]
        assert all(map(is_running, [*staying, of_handler])), "these aren't ours to end"


@pytest.mark.slow
def test_children_of_the_masters_handlers(run: Serve, tmp_path: Path) -> None:
    """A process that a handler of the master's forks has no listener, channel or lock, and obeys TERM; the master goes on."""
    port = free_port()
    (tmp_path / "watch.py").write_text(
        "from tests.system.apps import children_app as app\n"
        "def setup(cluster):\n"
        "    started = []\n"
        "    @cluster.on('listening')\n"
        "    def start(event):\n"
        "        if not started:\n"
        "            started[:] = [app.multiprocess(), app.fork()]\n"
        "            print(*started, flush=True)\n"
    )

    def serve() -> Running:
        options = ("--setup", "watch:setup", "--chdir", str(tmp_path))
        return run(APP + "app", *options, workers=1, env=ENVIRONMENT, bind=(f"127.0.0.1:{port}",), directory=tmp_path)

    running = serve().ready(1)
    with killing() as pids:
        pids += map(int, wait_until(lambda: (tmp_path / "stdout").read_text().split(), "two children"))
        master = running.process.pid
        for pid in pids:
            wait_until(lambda pid=pid: (tmp_path / f"forked.{pid}").exists(), f"child {pid} runs")
            assert len(special(pid) & special(master)) <= 2, (
                "but for what wakes the event loop, which Python 3.12 forgets first"
            )
            assert mask(pid, "SigCgt") <= {signal.SIGINT, *FAULTS}
        os.kill(pids[0], signal.SIGTERM)
        wait_until(lambda: not is_running(pids[0]), "it ends")
        assert get(("127.0.0.1", port), "/").status == 200
        assert running.shutdown() == 0
        assert is_running(pids[1])
        again = serve().ready(1)  # the port is free, and the lock of the pids directory
        pids += map(int, wait_until(lambda: (tmp_path / "stdout").read_text().split()[2:], "two more"))
        assert again.shutdown() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("check",), ("run", "--no-cluster", "--bind", "unix:s", "--monitor-port", "0")], ids=" ".join
)
def test_children_of_one_process(start: Serve, arguments: tuple[str, ...]) -> None:
    """`check`, and a process without a master, end what the import has started."""
    verb, *options = arguments
    environment = ENVIRONMENT | {"CHILDREN_AT_IMPORT": "multiprocess popen session system nested"}
    running = start(command(verb, APP + "app", *options), env=environment)
    with killing() as pids:
        if verb == "run":
            wait_until(lambda: "serves (slot 0" in running.stderr, lambda: running.stderr)
            assert running.shutdown() == 0
        else:
            assert running.wait() == 0, running.stderr
        imported = {path.stem: int(path.suffix[1:]) for path in running.directory.glob("imported.*")}
        pids += imported.values()
        staying = imported.pop("imported.session")
        assert len(imported) == 4
        for kind, pid in imported.items():
            wait_until(lambda pid=pid: not is_running(pid), f"{kind} ends")
        assert is_running(staying)


@pytest.mark.slow
def test_processes_at_work(run: Serve) -> None:
    """Pools and processes of multiprocessing work in handlers, with an event loop of either kind, and ask the app itself."""
    running = run("tests.system.apps.pools_app:app", workers=1, env=ENVIRONMENT).ready(1)
    found = {kind: get(running.address, f"/{kind}").body for kind in ("pool", "executor")}
    assert found == {"pool": b"[0, 1, 4, 9]", "executor": b"49"}
    for kind in ("asyncio", "uvloop", "forkserver"):
        assert get(running.address, f"/{kind}").body == b"ok 0", kind
    assert running.cli("recycle").returncode == 0
    assert running.shutdown() == 0


EXECUTORS = """
import os, threading, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

threads, processes = ThreadPoolExecutor(1), ProcessPoolExecutor(1)

def note(name, seconds):
    time.sleep(seconds)
    Path(name).touch()

def app(environ, start_response):
    threads.submit(note, "submitted", 0.5)
    threading.Thread(target=note, args=("threaded", 1.0)).start()
    start_response("200 OK", [])
    return [b"%d" % processes.submit(os.getpid).result()]
"""


@pytest.mark.parametrize(
    "options",
    [(), ("--threads", "0"), ("--engine", "granian"), ("--no-preload",), ("--no-cluster",)],
    ids=lambda options: " ".join(options) or "threads",
)
def test_executors_finish(run: Serve, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Let the executors and threads of a handler finish at the worker's end, and end the pool's processes.

    A thread that a handler starts is no daemon, also where the handler itself runs in a thread of the engine's.
    """
    (tmp_path / "busy.py").write_text(EXECUTORS)
    address = ("127.0.0.1", free_port())
    bind = [f"{address[0]}:{address[1]}"]
    workers = None if "--no-cluster" in options else 1
    running = run("busy:app", *options, bind=bind, workers=workers, directory=tmp_path)
    wait_until(lambda: "serves (slot 0" in running.stderr, lambda: running.stderr)
    child = int(get(address).body)
    assert running.shutdown() == 0
    assert {"submitted", "threaded"} <= {path.name for path in tmp_path.iterdir()}
    assert not psutil.pid_exists(child)
    assert "killed" not in running.stderr


STUCK = """
import threading
from concurrent.futures import ThreadPoolExecutor

threads = ThreadPoolExecutor(1)
never = threading.Event()

def app(environ, start_response):
    threads.submit(never.wait)
    start_response("200 OK", [])
    return [b""]
"""


def test_an_executor_that_is_stuck(run: Serve, tmp_path: Path) -> None:
    """A thread that never ends keeps its worker for `drain_timeout`, and no longer: the worker leaves by itself, and says so."""
    (tmp_path / "stuck.py").write_text(STUCK)
    running = run("stuck:app", "--drain-timeout", "1s", workers=1, directory=tmp_path).ready(1)
    assert get(running.address).status == 200
    assert running.shutdown() == 0
    assert "threads of the app have not ended within drain_timeout" in running.stderr
    assert "killed" not in running.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("check",),
        ("run", "--bind", "unix:s", "--monitor-port", "0"),
        ("run", "--no-cluster", "--bind", "unix:s", "--monitor-port", "0"),
    ],
    ids=" ".join,
)
def test_children_of_an_import_that_fails(start: Serve, arguments: tuple[str, ...]) -> None:
    """Processes that a failed import has started end with the process that imported."""
    verb, *options = arguments
    environment = ENVIRONMENT | {"CHILDREN_AT_IMPORT": "multiprocess popen session nested", "CHILDREN_THEN_FAIL": "1"}
    running = start(command(verb, APP + "app", *options), env=environment)
    with killing() as pids:
        assert running.wait() == 3, running.stderr
        imported = {path.stem: int(path.suffix[1:]) for path in running.directory.glob("imported.*")}
        pids += imported.values()
        staying = imported.pop("imported.session")
        assert len(imported) == 3
        for kind, pid in imported.items():
            wait_until(lambda pid=pid: not is_running(pid), f"{kind} ends")
        assert is_running(staying)
