"""Start and stop servers under test: real process trees on loopback.

A measurement is worth nothing if a server of the last one still answers. So a port with a listener is
refused, and a tree is ended by the pids that were seen in it, the remaining ones with SIGKILL. If this process dies,
the kernel sends SIGTERM to its servers.
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

_READY_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 15.0

# Below the range that the kernel uses for outgoing connections, so that no client can occupy one.
_ports = itertools.cycle(range(21000, 21100))
_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(slots=True)
class Running:
    """A server that runs.

    Attributes:
        directory: the server's own; it contains `output`, and the `pids` of cluster2.
    """

    name: str
    workers: int
    port: int
    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Return the root of the process tree, the master."""
        return self.process.pid

    @property
    def processes(self) -> int:
        """Return the number of processes that serve."""
        return 1 if self.name in catalogue.THREADED else self.workers

    @property
    def target(self) -> Target:
        """Return the target of the server."""
        return Target("127.0.0.1", self.port)

    @property
    def pids(self) -> Path:
        """Return cluster2's pids directory."""
        return self.directory / "pids"

    def roll(self) -> None:
        """Let the server replace its workers one by one, which SIGHUP does for all of these servers."""
        self.process.send_signal(signal.SIGHUP)

    def add_worker(self) -> None:
        """Let the server start one more worker, which SIGTTIN does for those that can."""
        self.process.send_signal(signal.SIGTTIN)

    def output(self) -> str:
        """Return the end of the server's output in one line."""
        lines = (self.directory / "output").read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:])


def free(port: int) -> bool:
    """Return whether no process listens on this port of loopback.

    `SO_REUSEADDR` lets the trial ignore connections in TIME_WAIT. A listener refuses it all the same.
    """
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def answers(target: Target) -> bool:
    """Return whether the server answers a request with a status below 500."""
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
    """Poll until the condition holds. Return false if it doesn't within this many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True


def _settled(pid: int, processes: int) -> bool:
    """Return whether all processes have started: the whole tree uses next to no CPU for a while.

    One response shows only that one worker serves. This covers all workers, for every server alike.
    """
    for _ in range(3):
        used, began = proc.tree_cpu(pid), time.monotonic()
        time.sleep(0.15)
        if proc.tree_cpu(pid) - used > 0.04 * (time.monotonic() - began):
            return False
    return len(proc.tree(pid)) > processes


def _wait_ready(server: Running) -> None:
    end = time.monotonic() + _READY_TIMEOUT_S

    def serves() -> bool:
        if server.process.poll() is not None:
            raise BenchError(f"{server.name} ended with {server.process.returncode}: {server.output()}")
        return answers(server.target)

    if not wait(serves, _READY_TIMEOUT_S) or not wait(
        lambda: _settled(server.pid, server.processes), end - time.monotonic()
    ):
        raise BenchError(f"{server.name} was not ready within {_READY_TIMEOUT_S:.0f} s: {server.output()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    members = {member.pid: member for member in proc.tree(process.pid)}
    if process.poll() is None:
        process.terminate()

    def ended() -> bool:
        members.update((member.pid, member) for member in proc.tree(process.pid))
        return process.poll() is not None and not any(map(proc.alive, members.values()))

    if not wait(ended, _STOP_TIMEOUT_S):
        for member in members.values():
            if proc.alive(member):
                with suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)
    process.wait(_STOP_TIMEOUT_S)


@contextmanager
def running(
    name: str, app: catalogue.App = catalogue.HELLO, workers: int = 4, *, env: dict[str, str] | None = None
) -> Iterator[Running]:
    """Run a server for as long as the context lasts. It is ready from the start.

    Args:
        name: a key of `catalogue.COMMANDS`.
        env: additional variables of its environment.

    Raises:
        NotAvailable: it isn't installed.
        BenchError: another process listens on its port, it ended, or it wasn't ready in time.
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
    """Run several servers at a time, for interleaved measurements. Leave out those that don't start, and report them."""
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
