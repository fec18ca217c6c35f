"""The master killed between a question and its answer."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from tests.system.clients import get
from tests.system.harness import Running, wait_until

APP = """
from pathlib import Path
from cluster2 import worker
from cluster2.errors import DelegateError

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    try:
        body = await worker.delegate("hang", timeout=60)
    except DelegateError as error:
        body = f"{error.type}: {error}"
    body = body.encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})

def setup(cluster):
    @cluster.on_delegate("hang")
    def hang(message):
        Path("asked").touch()
        import threading
        threading.Event().wait(60)
"""


def test_the_master_is_killed(run: Callable[..., Running], tmp_path: Path) -> None:
    """Who waits for an answer gets an error at once, and the response still goes out; then the worker leaves."""
    (tmp_path / "hanging.py").write_text(APP)
    running = run("hanging:app", "--setup", "hanging:setup", workers=1, directory=tmp_path).ready(1)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asking = pool.submit(get, running.address)
        wait_until((tmp_path / "asked").exists, "the handler hangs")
        os.kill(running.process.pid, signal.SIGKILL)
        assert asking.result().body == b"ConnectionError: the master is gone: there is no handler"
    running.process.wait()
    shutil.rmtree(running.pids)  # a killed master clears nothing up; its successor would


def test_the_end_waits_for_no_thread(run: Callable[..., Running], tmp_path: Path) -> None:
    """A handler that hangs in a thread keeps the master neither from shutting down nor from stopping."""
    (tmp_path / "hanging.py").write_text(APP)
    running = run("hanging:app", "--setup", "hanging:setup", "--drain-timeout", "1s", workers=1, directory=tmp_path)
    running.ready(1)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asking = pool.submit(lambda: _body(running))
        wait_until((tmp_path / "asked").exists, "the handler hangs")
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
        asking.result()


def _body(running: Running) -> bytes:
    try:
        return get(running.address).body
    except (ConnectionError, OSError, ValueError, AssertionError):
        return b""
