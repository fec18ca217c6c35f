"""A cluster inside of the test's own event loop, with real workers, its events, and a look from outside."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import psutil

from cluster2 import events
from cluster2.cluster import Cluster, Running
from cluster2.config.settings import Settings
from cluster2.linux.scoreboard import Header
from cluster2.processes.master.state.cluster_state import ClusterState
from tests.unit.waiting import PATIENCE, until

E = TypeVar("E", bound=events.Event)


def a_state(emit: Callable[[events.Event], None]) -> ClusterState:
    """Return the state of a cluster that has no processes and no scoreboard."""
    return ClusterState(Settings(), cast(Header, SimpleNamespace()), emit, lambda message: None)


APP = """
import asyncio, os, pathlib, socket

def talk():
    "Our end of the channel to the master: a stream whose other end is the master's."
    for name in os.listdir("/proc/self/fd"):
        try:
            twin = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        if twin.family == socket.AF_UNIX and twin.type == socket.SOCK_STREAM and twin.getsockname() == "":
            if int.from_bytes(twin.getsockopt(socket.SOL_SOCKET, 17, 12)[:4], "little") == os.getppid():
                return twin

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        if pathlib.Path("broken").exists():
            await send({"type": "lifespan.startup.failed", "message": "the database is away"})
            return
        if pathlib.Path("crashing").exists():
            os._exit(9)
        while pathlib.Path("hanging").exists():
            await asyncio.sleep(0.01)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/exit":
        os._exit(0)
    if scope["path"].startswith("/say/"):
        talk().sendall(bytes.fromhex(scope["path"][5:]))
    if scope["path"] == "/held":
        pathlib.Path(f"held.{os.getpid()}").touch()
        await asyncio.Event().wait()
    if scope["path"] == "/stuck":
        pathlib.Path(f"held.{os.getpid()}").touch()
        import threading
        threading.Event().wait()
    body = b"%d" % os.getpid()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


class Observed:
    """A cluster, what it has emitted, and requests to it."""

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        self.directory = directory
        self.cluster = cluster
        self.running: Running
        self.events: list[events.Event] = []
        cluster.on("*", self.events.append)

    def of(self, kind: type[E]) -> list[E]:
        """All events of a kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    async def event(self, kind: type[E], **fields: Any) -> E:
        """The first event of a kind with these fields; waits for it."""

        def found() -> E | None:
            fitting = (each for each in self.of(kind) if all(getattr(each, n) == v for n, v in fields.items()))
            return next(fitting, None)

        event = await until(found, lambda: f"{kind.__name__} {fields}; so far {self.events}")
        assert event is not None
        return event

    async def status(self) -> dict[str, Any]:
        return await asyncio.to_thread(self.cluster.status)

    async def workers(self) -> dict[int, int]:
        """The pid of the worker that serves, by slot."""
        rows = (await self.status())["workers"]
        return {row["slot"]: row["pid"] for row in rows if row["state"] == "ready"}

    async def whole(self, without: Iterable[int] = (), wanted: int = 2) -> dict[int, int]:
        """The same, when all slots are served, and none by these pids."""
        while True:
            found = await self.workers()
            if len(found) == wanted and not set(without) & set(found.values()):
                return found
            await asyncio.sleep(0.01)

    async def get(self, path: str = "/") -> bytes:
        """The body of an answer on a connection of its own; empty if it was closed instead."""
        host, _, port = self.running.addresses[0].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
            whole = await asyncio.wait_for(reader.read(), PATIENCE)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()
        return whole.partition(b"\r\n\r\n")[2]

    async def held(self) -> int:
        """The pid of the worker that holds a request."""
        mark = await until(lambda: next(self.directory.glob("held.*"), None), "a request is held")
        assert mark is not None
        return int(mark.suffix[1:])

    def zygote(self) -> int:
        """Its pid."""
        return next(pid for pid, title in processes().items() if "zygote" in title)


def processes() -> dict[int, str]:
    """Titles of all our descendants by pid; orphans that have ended are reaped, as a subreaper has to."""
    found = {}
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() == psutil.STATUS_ZOMBIE:
                if child.ppid() == os.getpid():
                    os.waitpid(child.pid, os.WNOHANG)
            else:
                found[child.pid] = " ".join(child.cmdline())
        except (psutil.NoSuchProcess, ChildProcessError):
            continue
    return found


async def nobody_is_left(before: set[int]) -> None:
    """Wait until all processes but those before are gone; kill what is left when that fails."""
    try:
        await until(lambda: not set(processes()) - before, lambda: f"left: {processes()}")
    finally:
        for pid in set(processes()) - before:
            os.kill(pid, signal.SIGKILL)


def options_for(directory: Path, **options: Any) -> dict[str, Any]:
    """Two workers on a free port of the loopback, everything else in a directory."""
    defaults = {
        "host": "127.0.0.1", "port": 0, "monitor_port": 0, "workers": 2, "chdir": str(directory),
        "pids": str(directory / "pids"), "logs": str(directory / "logs"),
    }  # fmt: skip
    return defaults | options


@asynccontextmanager
async def observed(directory: Path, text: str = APP, **options: Any) -> AsyncIterator[Observed]:
    """A cluster that serves `app` of this text for as long as the block lasts; nothing of it is left behind."""
    before = set(processes())
    (directory / "site_of_test.py").write_text(text)
    found = Observed(directory, Cluster(**options_for(directory, **options)))
    try:
        async with found.cluster.running(f"{directory}/site_of_test.py:app") as found.running:
            yield found
    finally:
        await nobody_is_left(before)
        assert not list((directory / "pids").glob("*"))
