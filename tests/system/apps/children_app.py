"""An app that starts processes: at import, and in its handlers. A request for `/KIND` starts one and answers its pid.

A line of the TCP app is such a path. What the import has started is noted in files `imported.KIND.PID`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cluster2 import worker
from cluster2.errors import NotAWorker
from tests.system.apps.sample_apps import answer

SLEEP = ["/bin/sleep", "1000"]
_kept: list[object] = []


def _wait() -> None:
    try:
        worker.emit("forked-by-the-app")
    except NotAWorker:
        Path(f"forked.{os.getpid()}").touch()  # it can't talk for the worker
    while True:
        signal.pause()


def multiprocess() -> int:
    """A daemon of multiprocessing."""
    child = multiprocessing.get_context("fork").Process(target=_wait, daemon=True)
    child.start()
    assert child.pid is not None
    return child.pid


def joined() -> int:
    """A process of multiprocessing that is no daemon: whoever started it waits for it at its own exit."""
    child = multiprocessing.get_context("fork").Process(target=_wait)
    child.start()
    assert child.pid is not None
    return child.pid


def fork() -> int:
    """A fork that never ends by itself."""
    if (pid := os.fork()) == 0:
        try:
            _wait()
        finally:
            os._exit(1)
    return pid


def popen() -> int:
    """A program."""
    _kept.append(child := subprocess.Popen(SLEEP))
    return child.pid


def session() -> int:
    """A program in a session of its own, which is to stay."""
    _kept.append(child := subprocess.Popen(SLEEP, start_new_session=True))
    return child.pid


def preexec() -> int:
    """A program, started in the way that runs at-fork handlers."""
    _kept.append(child := subprocess.Popen(SLEEP, preexec_fn=_nothing))
    return child.pid


def posix_spawn() -> int:
    """A program, started by a function that restores no signals by itself."""
    return os.posix_spawn(SLEEP[0], SLEEP, os.environ)


def system() -> int:
    """A program behind a shell."""
    os.system("sleep 1000 & echo $! > system.pid")
    return int(Path("system.pid").read_text())


def nested() -> int:
    """A program that a helper has started, and that the helper doesn't end when it ends itself."""
    Path("nested.pid").unlink(missing_ok=True)  # of the last import
    _kept.append(subprocess.Popen("sleep 1000 & echo $! > nested.new; mv nested.new nested.pid; wait", shell=True))
    while not (found := Path("nested.pid")).exists():
        time.sleep(0.01)
    return int(found.read_text())


def daemon() -> int:
    """A program that has left the session of its parent, which has ended: it is to stay."""
    os.system("setsid sleep 1000 & echo $! > daemon.pid")
    return int(Path("daemon.pid").read_text())


async def uvloops() -> int:
    """A program, started by the event loop."""
    _kept.append(child := await asyncio.create_subprocess_exec(*SLEEP))
    return child.pid


def _nothing() -> None:
    pass


FORKS = (multiprocess, fork)
PROGRAMS = (popen, preexec, posix_spawn, system)
KINDS: dict[str, Callable[[], int]] = {each.__name__: each for each in (*FORKS, *PROGRAMS)}


async def _do(path: str) -> bytes:
    name = path.strip("/")
    if name == "uvloops":
        return b"%d" % await uvloops()
    return b"%d" % (KINDS[name]() if name else os.getpid())


async def app(scope: Any, receive: Any, send: Any) -> None:
    """ASGI."""
    if scope["type"] == "http":
        await answer(send, await _do(scope["path"]))


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """WSGI."""
    name = environ["PATH_INFO"].strip("/")
    body = b"%d" % (KINDS[name]() if name else os.getpid())
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def rsgi(scope: Any, protocol: Any) -> None:
    """RSGI."""
    protocol.response_bytes(200, [], await _do(scope.path))


async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A line is a path; the answer ends the connection."""
    line = await reader.readline()
    writer.write(await _do(line.decode().strip()))
    writer.close()


for _kind in (multiprocess, joined, popen, posix_spawn, session, system, nested, daemon):
    if _kind.__name__ in os.environ.get("CHILDREN_AT_IMPORT", "").split():
        Path(f"imported.{_kind.__name__}.{_kind()}").touch()
if "CHILDREN_THEN_FAIL" in os.environ:
    raise RuntimeError("the import fails")
