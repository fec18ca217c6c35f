"""Starts and stops servers under test: real process trees on loopback.

A measurement is worth nothing if a server of the last one still answers, so a port that somebody listens on is
refused, and a tree is ended by the pids that were seen in it, the stragglers with SIGKILL. Should this process die,
its servers get SIGTERM from the kernel.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench import catalogue, proc
from bench.client import Target
from bench.errors import BenchError, NotAvailable
from bench.http import Garbage, parse, request

READY_TIMEOUT = 60.0
STOP_TIMEOUT = 15.0

# Below the range that the kernel takes for outgoing connections, so that no client can be sitting on one.
_ports = itertools.cycle(range(21000, 21100))
_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(slots=True)
class Running:
    """A server that runs.

    Attributes:
        directory: its own; cluster2 has its `pids` there, `output` is what it printed.
    """

    name: str
    workers: int
    port: int
    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The root of its process tree: the master."""
        return self.process.pid

    @property
    def processes(self) -> int:
        """How many of its processes serve."""
        return 1 if self.name in catalogue.THREADED else self.workers

    @property
    def target(self) -> Target:
        """Where it serves."""
        return Target("127.0.0.1", self.port)

    @property
    def pids(self) -> Path:
        """cluster2's pids directory."""
        return self.directory / "pids"

    def roll(self) -> None:
        """Tells it to replace its workers one by one: SIGHUP, to all of these servers."""
        self.process.send_signal(signal.SIGHUP)

    def add_worker(self) -> None:
        """Tells it to start one worker more: SIGTTIN, to those that can."""
        self.process.send_signal(signal.SIGTTIN)

    def output(self) -> str:
        """The end of what it printed, in one line."""
        lines = (self.directory / "output").read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:])


def free(port: int) -> bool:
    """Nobody listens on this port of loopback.

    `SO_REUSEADDR` lets the trial pass over connections in TIME_WAIT; a listener refuses it all the same.
    """
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def answers(target: Target) -> bool:
    """It answers a request, with a status below 500."""
    try:
        with socket.create_connection((target.host, target.port), timeout=1) as connection:
            connection.sendall(request(target.path, target.host, close=True))
            data = b""
            while (found := parse(data)) is None:
                more = connection.recv(65536)
                if not more:
                    return False
                data += more
    except (OSError, Garbage):
        return False
    return found[0].status < 500


def wait(condition: Callable[[], bool], seconds: float, every: float = 0.02) -> bool:
    """Looks until the condition holds; False when it didn't in so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True


def _settled(pid: int, processes: int) -> bool:
    """All processes are there, and none is busy starting: the whole tree uses next to no CPU for a while.

    One answer says only that one worker serves. This tells it of all, for every server alike.
    """
    for _ in range(3):
        used, began = proc.tree_cpu(pid), time.monotonic()
        time.sleep(0.15)
        if proc.tree_cpu(pid) - used > 0.04 * (time.monotonic() - began):
            return False
    return len(proc.tree(pid)) > processes


def _wait_ready(server: Running) -> None:
    end = time.monotonic() + READY_TIMEOUT

    def serves() -> bool:
        if server.process.poll() is not None:
            raise BenchError(f"{server.name} ended with {server.process.returncode}: {server.output()}")
        return answers(server.target)

    if not wait(serves, READY_TIMEOUT) or not wait(
        lambda: _settled(server.pid, server.processes), end - time.monotonic()
    ):
        raise BenchError(f"{server.name} was not ready within {READY_TIMEOUT:.0f} s: {server.output()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    members = {member.pid: member for member in proc.tree(process.pid)}
    if process.poll() is None:
        process.terminate()

    def ended() -> bool:
        members.update((member.pid, member) for member in proc.tree(process.pid))
        return process.poll() is not None and not any(map(proc.alive, members.values()))

    if not wait(ended, STOP_TIMEOUT):
        for member in members.values():
            if proc.alive(member):
                with suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)
    process.wait(STOP_TIMEOUT)


@contextmanager
def running(
    name: str, app: catalogue.App = catalogue.HELLO, workers: int = 4, *, env: dict[str, str] | None = None
) -> Iterator[Running]:
    """A server, ready, for as long as the context lasts.

    Args:
        name: of `catalogue.COMMANDS`.
        env: more of its environment.

    Raises:
        NotAvailable: it isn't installed.
        BenchError: somebody listens on its port, it ended, or wasn't ready in time.
    """
    port = next(_ports)
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as made:
        directory = Path(made)
        command = catalogue.command(name, catalogue.Setup(app, workers, port, directory))
        if not free(port):
            raise BenchError(f"port {port} of 127.0.0.1 is in use: end what listens there (ss -ltnp sport = :{port})")
        with open(directory / "output", "wb") as output:
            process = subprocess.Popen(
                command,
                cwd=catalogue.ROOT,
                env=catalogue.environment(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        server = Running(name, workers, port, directory, process)
        try:
            _wait_ready(server)
            yield server
        finally:
            _stop(process)


@contextmanager
def all_running(
    names: Sequence[str], app: catalogue.App = catalogue.HELLO, workers: int = 4, *, env: dict[str, str] | None = None
) -> Iterator[list[Running]]:
    """Several servers at a time, for interleaved measurements; those that don't start are left out, and told."""
    with ExitStack() as stack:
        servers = []
        for name in names:
            try:
                servers.append(stack.enter_context(running(name, app, workers, env=env)))
            except NotAvailable as why:
                print(f"{name}: not available: {why}", file=sys.stderr)
            except BenchError as why:
                print(f"{name}: failed: {why}", file=sys.stderr)
        yield servers
