"""Starts cluster2 as a user would, talks to it, and sees to it that it leaves nothing behind.

A `Running` is one `cluster2 run` (or a script) in a directory of its own. Whatever it is asked is asked from outside:
over its ports, its command line, its control socket. At the end `assert_gone` looks for processes (the test process is
a subreaper: see conftest), listening ports and files in the pids directory.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from cluster2.config.settings import OPTIONS

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SAMPLES = Path(__file__).parent / "apps" / "sample_apps.py"
PATIENCE = 30.0
"""Seconds that anything may take on a loaded machine."""

SHARED = tuple(option.shared_variable for option in OPTIONS.values() if option.shared_variable)
"""Variables that other servers read as well; a longer name that begins so isn't missed."""

_T = TypeVar("_T")
_never = threading.Event()


def wait_until(predicate: Callable[[], _T], why: str | Callable[[], str], timeout: float = PATIENCE) -> _T:
    """Wait until `predicate` is true and return what it returned; `why` says what was waited for when it never came."""
    deadline = time.monotonic() + timeout
    while not (found := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s: {why if isinstance(why, str) else why()}")
        _never.wait(0.01)
    return found


def accepts(path: str | Path) -> bool:
    """Whether somebody listens on a Unix socket. Its path is there a moment earlier, between bind(2) and listen(2)."""
    with socket.socket(socket.AF_UNIX) as trial:
        return trial.connect_ex(str(path)) == 0


def sample(name: str) -> str:
    """The target of one of the apps in sample_apps.py."""
    return f"{SAMPLES}:{name}"


def example(name: str) -> str:
    """The target of an example: `fastapi_app.py:app`."""
    return str(EXAMPLES / name)


def command(*arguments: str) -> list[str]:
    """The command line of cluster2 itself."""
    return [sys.executable, "-m", "cluster2", *arguments]


def stop(pid: int) -> None:
    """Stop a process, and wait until each of its threads has stopped: what it holds and what it has done no longer change."""
    os.kill(pid, signal.SIGSTOP)

    def stopped() -> bool:
        states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        return set(states) == {"T"}

    wait_until(stopped, f"process {pid} is stopped")


BESIDE: set[int] = set()
"""Pids of processes that a test keeps beside its clusters, as a browser is: what they start, no cluster has left behind."""


def descendants() -> set[int]:
    """Pids of all processes below this one, but for those beside; orphans that have ended are reaped on the way."""
    found = set()
    beside = BESIDE.copy()
    for process in psutil.Process().children(recursive=True):
        if process.pid in beside or _parent(process) in beside:  # parents come first
            beside.add(process.pid)
            continue
        try:
            if process.status() == psutil.STATUS_ZOMBIE and process.ppid() == os.getpid():
                os.waitpid(process.pid, os.WNOHANG)
            else:
                found.add(process.pid)
        except (psutil.NoSuchProcess, ChildProcessError):
            continue
    return found


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return 0


def listening_ports() -> set[int]:
    """TCP ports of this machine on which somebody listens."""
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = row.split()
            if state == "0A":
                ports.add(int(local.rpartition(":")[2], 16))
    return ports


def free_port() -> int:
    """A TCP port of the loopback that nobody uses, below those that the kernel gives to clients."""
    for port in random.sample(range(22000, 32000), 100):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without options of cluster2 that the developer may have set; an import path goes before theirs."""
    strange = ("CLUSTER2_", "LISTEN_", *SHARED)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    made = kept | {"PYTHONFAULTHANDLER": "1"} | dict(extra or {})
    if extra and "PYTHONPATH" in extra and "PYTHONPATH" in kept:
        made["PYTHONPATH"] = f"{extra['PYTHONPATH']}{os.pathsep}{kept['PYTHONPATH']}"
    return made


class Running:
    """One cluster, started in `directory`; its standard error goes to `stderr` there.

    `argv` is the whole command line; `cluster2_run` below makes the usual one. `listeners` are inherited by it.
    """

    def __init__(
        self,
        argv: Sequence[str],
        directory: Path,
        *,
        env: Mapping[str, str] | None = None,
        listeners: Sequence[socket.socket] = (),
    ) -> None:
        self.directory = directory
        self.pids = directory / "pids"
        self.argv = list(argv)
        self._before = descendants()
        self._ports: set[int] = set()
        self._env = clean_environment(env)
        with (directory / "stderr").open("ab") as log, (directory / "stdout").open("ab") as out:
            self.process = subprocess.Popen(
                self.argv,
                cwd=directory,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                pass_fds=[each.fileno() for each in listeners],
            )

    # What it says.

    @property
    def stderr(self) -> str:
        """All that it has written to standard error."""
        return (self.directory / "stderr").read_text(errors="replace")

    def ask(self, verb: str, **params: Any) -> dict[str, Any]:
        """The result of a verb, over the control socket; OSError if no master answers, AssertionError if it refuses."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(PATIENCE)
            # A Unix socket's path is limited to 107 bytes, a test's directory isn't.
            control.connect(f"/proc/self/fd/{self._pids_fd()}/master.sock")
            control.sendall(json.dumps({"verb": verb, "params": params}).encode() + b"\n")
            with control.makefile("rb") as lines:
                for line in lines:
                    answer = json.loads(line)
                    if "progress" not in answer:
                        assert answer["ok"], answer
                        result: dict[str, Any] = answer["result"]
                        return result
        raise ConnectionResetError("the master closed the control connection")

    def _pids_fd(self) -> int:
        if not hasattr(self, "_fd"):
            self._fd = os.open(self.pids, os.O_PATH | os.O_DIRECTORY)
        return self._fd

    def status(self) -> dict[str, Any]:
        """What `status` says."""
        return self.ask("status")

    def workers(self, state: str = "ready") -> list[dict[str, Any]]:
        """The workers in a state, by slot; none if no master answers."""
        try:
            rows = self.status()["workers"]
        except OSError:
            return []
        return sorted((row for row in rows if row["state"] == state), key=lambda row: row["slot"])

    # What it is told.

    def ready(self, workers: int = 2, *, background: bool = False) -> Running:
        """Wait until so many workers are ready; `background`: the process that was started may have ended with 0."""

        def enough() -> bool:
            code = self.process.poll()
            assert code is None or (background and code == 0), f"it ended with {code}:\n{self.stderr}"
            return len(self.workers()) == workers

        wait_until(enough, lambda: f"{workers} workers ready; standard error:\n{self.stderr}")
        self._ports |= {port for _, port in self.tcp_addresses()}
        return self

    def held(self, name: str) -> int:
        """Wait until a sample app has begun to handle `/held/NAME`; the pid of its worker."""
        why = f"request {name} is in its handler"
        path = wait_until(lambda: next(self.directory.glob(f"held.{name}.*"), None), why)
        return int(path.suffix[1:])

    def release(self) -> None:
        """Let the held requests go on."""
        (self.directory / "release").touch()

    def draining(self, workers: int = 1, *, pid: int = 0) -> None:
        """Wait until so many workers, or that of a pid, have heard that they are to drain: they take no connections any more."""

        def drain() -> bool:
            heard = [row["pid"] for row in self.workers("draining") if row["mode"] == "none"]
            return pid in heard if pid else len(heard) >= workers

        wait_until(drain, lambda: f"{pid or workers} drain; standard error:\n{self.stderr}")

    def ordered_to_drain(self, workers: int = 1) -> None:
        """Wait until the master has told so many workers to drain; one whose handler holds the loop hears it later."""
        wait_until(
            lambda: len(self.workers("draining")) >= workers, lambda: f"{workers} drain; standard error:\n{self.stderr}"
        )

    def addresses(self) -> list[str]:
        """Addresses that it listens on, as a user would write them."""
        found: list[str] = self.status()["addresses"]
        return found

    def tcp_addresses(self) -> list[tuple[str, int]]:
        """Host and port of each TCP address that it has opened."""
        opened = [each for each in self.addresses() if not each.startswith(("unix:", "fd:"))]
        return [(host.strip("[]"), int(port)) for host, _, port in (each.rpartition(":") for each in opened)]

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of its first TCP address."""
        return self.tcp_addresses()[0]

    def url(self, path: str = "/", scheme: str = "http") -> str:
        """The URL of a path."""
        host, port = self.address
        return f"{scheme}://{host}:{port}{path}"

    def cli(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command of cluster2 in its directory."""
        return subprocess.run(
            command(*arguments),
            cwd=self.directory,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def signal(self, number: signal.Signals) -> None:
        """Send the master a signal."""
        self.process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit code, when it has ended."""
        return self.process.wait(timeout)

    def shutdown(self) -> int:
        """Tell it to shut down, wait, and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    # What it left.

    def close(self) -> None:
        """End it the hard way if it still runs."""
        if self.process.poll() is None:
            self.signal(signal.SIGQUIT)
            try:
                self.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.wait()
        if hasattr(self, "_fd"):
            os.close(self._fd)
            del self._fd

    def assert_gone(self) -> None:
        """No process, listening port, socket or pid file is left. What is left is killed before this fails."""
        try:
            wait_until(lambda: not descendants() - self._before, self._who_is_left, timeout=10)
        finally:
            for pid in descendants() - self._before:
                os.kill(pid, signal.SIGKILL)
        assert not self._ports & listening_ports(), "it still listens"
        assert not self.pids.exists() or not list(self.pids.iterdir()), f"left in pids: {list(self.pids.iterdir())}"

    def _who_is_left(self) -> str:
        left = []
        for pid in descendants() - self._before:
            try:
                left.append(f"{pid} {' '.join(psutil.Process(pid).cmdline())}")
            except psutil.NoSuchProcess:
                continue
        return f"processes left: {left}; standard error:\n{self.stderr}"
