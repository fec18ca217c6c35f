"""Start the servers that answer the calls: a cluster whose workers call, Redis, a Manager, gunicorn's dirty workers."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench import catalogue
from bench.driving import VALUE
from bench.errors import BenchError, NotAvailable
from bench.servers import _end_with_parent, _ports, _stop, wait
from cluster2 import Cluster
from cluster2.errors import ClusterError

READY = 60.0


class _Store:
    """The object that a Manager serves."""

    def get(self, key: str) -> str:
        """Return the value of any key."""
        return VALUE


@contextmanager
def _process(command: list[str], directory: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    with open(directory / f"{name}.output", "wb") as output:
        process = subprocess.Popen(
            command, cwd=catalogue.ROOT, env=catalogue.environment({}), stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip
    try:
        yield process
    finally:
        _stop(process)


@contextmanager
def redis(directory: Path) -> Iterator[tuple[str, int]]:
    """Run a Redis server on a Unix socket, and yield its path and pid. Raise NotAvailable."""
    program = shutil.which("redis-server")
    if program is None or find_spec("hiredis") is None:
        raise NotAvailable("redis-server, or redis-py with hiredis, is not installed: make bench")
    path = directory / "redis.sock"
    command = [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
    with _process(command, directory, "redis") as process:
        if not wait(path.exists, READY):
            raise BenchError("redis-server was not ready in time")
        yield str(path), process.pid


@contextmanager
def _manager(directory: Path) -> Iterator[tuple[str, int]]:
    """Run a Manager on a Unix socket, and yield its path and pid."""
    path = directory / "manager.sock"
    with _process([sys.executable, "-m", "bench.talking", str(path)], directory, "manager") as process:
        if not wait(path.exists, READY):
            raise BenchError("the Manager was not ready in time")
        yield str(path), process.pid


@contextmanager
def dirty(directory: Path) -> Iterator[tuple[str, int]]:
    """Run gunicorn with one dirty worker, and yield its URL and pid. Raise NotAvailable."""
    gunicorn = catalogue.PEERS / "gunicorn"
    if not gunicorn.exists():
        raise NotAvailable("gunicorn is not installed: python -m bench peers")
    url = f"http://127.0.0.1:{(port := next(_ports))}"
    command = [str(gunicorn), "bench.dirty_app:app", "-k", "asgi", "-w", "1", "-b", f"127.0.0.1:{port}"]
    command += ["--dirty-app", "bench.dirty_app:Get", "--dirty-workers", "1", "--no-control-socket"]
    with _process([*command, "--worker-tmp-dir", "/dev/shm", "--log-level", "warning"], directory, "dirty") as process:

        def answers() -> bool:
            try:
                return drive_dirty(url, 1, 0.01)["calls"] > 0
            except (OSError, ValueError, KeyError):
                return False

        if not wait(answers, READY):
            raise BenchError(f"gunicorn's dirty workers: {(directory / 'dirty.output').read_text()[-300:]}")
        yield url, process.pid


def drive_dirty(url: str, lanes: int, seconds: float) -> dict[str, Any]:
    """Let gunicorn's worker call its dirty worker."""
    with urllib.request.urlopen(f"{url}/drive?lanes={lanes}&seconds={seconds}", timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


class Talkers:
    """A cluster whose workers make calls on demand.

    Attributes:
        cluster: the handle that sends them events.
        pid: the master's pid.
        port: the port on which it serves.
    """

    def __init__(self, cluster: Cluster, pid: int, port: int) -> None:
        self.cluster = cluster
        self.pid = pid
        self.port = port
        self._runs = itertools.count(1)

    def pids(self) -> list[int]:
        """Return the pids of the workers."""
        return [row["pid"] for row in self.cluster.status()["workers"] if row["state"] == "ready"]

    def ask(self, component: str, params: object = None) -> Any:
        """Return a component's value."""
        return asyncio.run(self.cluster.status(component, params=params)).value

    def drive(self, pids: list[int], **asked: Any) -> list[dict[str, Any]]:
        """Let these workers call at the same time. Return the results of each. Raise BenchError."""
        run = next(self._runs)
        self.cluster.emit("drive", {"run": run, **asked}, pids)
        found: list[dict[str, Any]] = []

        def all_have_told() -> bool:
            nonlocal found
            found = self.ask("found", run)
            return len(found) == len(pids)

        if not wait(all_have_told, asked.get("seconds", 0) + READY, every=0.2):
            raise BenchError(f"{asked}: {len(found)} of {len(pids)} workers have told")
        return found


@contextmanager
def talkers(directory: Path, workers: int) -> Iterator[Talkers]:
    """Run a cluster of this many workers that call."""
    port = next(_ports)
    pids = directory / "pids"
    command = [sys.executable, "-m", "cluster2", "run", "bench.talk_app:app", "--setup", "bench.talk_setup:setup"]
    command += ["--workers", str(workers), "--bind", f"127.0.0.1:{port}", "--monitor-port", "0", "--pids", str(pids)]
    command += ["--logs", str(directory / "logs"), "--log-level", "warning"]
    with _process(command, directory, "cluster2") as process:
        found = Talkers(Cluster(pids=str(pids)), process.pid, port)

        def ready() -> bool:
            try:
                return len(found.pids()) == workers
            except ClusterError:
                return False

        if not wait(ready, READY):
            raise BenchError(f"cluster2: {(directory / 'cluster2.output').read_text()[-300:]}")
        yield found


@contextmanager
def call_servers(workers: int) -> Iterator[tuple[Talkers, dict[str, tuple[str, int]]]]:
    """Run the cluster, and yield it with the place and pid of each other server that is available."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-talk-")))
        places: dict[str, tuple[str, int]] = {}
        for name, start in (("redis", redis), ("manager", _manager), ("gunicorn-dirty", dirty)):
            try:
                places[name] = stack.enter_context(start(directory))
            except BenchError as why:
                print(f"{name}: {why}", file=sys.stderr)
        yield stack.enter_context(talkers(directory, workers)), places


if __name__ == "__main__":
    from bench.talk_app import Manager

    Manager.register("get", callable=_Store)
    Manager(sys.argv[1], authkey=b"bench").get_server().serve_forever()
