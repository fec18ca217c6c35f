"""A client that leaves in the middle of a stream that has no end: its worker serves on, the app ends, no drain waits for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.clients import Connection, get
from tests.system.harness import Running, wait_until

Serve = Callable[..., Running]
APPS = Path(__file__).parents[1] / "apps" / "gone_app.py"
ENGINES = ("http", "granian")
DRAIN_TIMEOUT = 20.0


def leaves(running: Running, path: str) -> None:
    """Ask for a stream, and leave when it has begun and is counted."""
    with Connection(running.address) as connection:
        connection.send(path)
        assert connection.socket.recv(1000)
        wait_until(lambda: running.workers()[0]["in_flight"] == 1, "the worker has counted the request")


@pytest.mark.slow
@pytest.mark.parametrize("app", ["starlette_app", pytest.param("fastapi_app", marks=pytest.mark.soak)])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_app_ends(run: Serve, engine: str, app: str) -> None:
    """The loop turns, the framework hears that the client has gone, and ends the request."""
    running = run(f"{APPS}:{app}", "--engine", engine, workers=1).ready(1)
    leaves(running, "/stream")
    wait_until(lambda: running.workers()[0]["in_flight"] == 0, "the request has ended")
    assert get(running.address).status == 200
    assert running.shutdown() == 0


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/stream", pytest.param("/slow", marks=pytest.mark.soak)])
@pytest.mark.parametrize("engine", ENGINES)
def test_an_app_that_never_listens(run: Serve, engine: str, path: str) -> None:
    """Others are served beside it; a recycle cancels it soon, and says so, instead of waiting for `drain_timeout`."""
    options = ("--drain-idle", "200ms", "--drain-timeout", f"{DRAIN_TIMEOUT}s")
    running = run(f"{APPS}:deaf", "--engine", engine, *options, workers=1).ready(1)
    leaves(running, path)
    assert all(get(running.address).body == b"hello" for _ in range(10))
    wait_until(lambda: running.workers()[0]["in_flight"] == 1, "only the stream is under way")
    began = time.monotonic()
    assert running.cli("recycle").returncode == 0
    assert time.monotonic() - began < DRAIN_TIMEOUT / 2
    assert f"{path} still sends although its client has gone; it is cancelled" in running.stderr
    assert "Traceback" not in running.stderr


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_client_that_stays(run: Serve, engine: str) -> None:
    """A stream whose client is still there isn't taken for one: it goes on until `drain_timeout`."""
    running = run(
        f"{APPS}:deaf", "--engine", engine, "--drain-idle", "200ms", "--drain-timeout", "2s", workers=1
    ).ready(1)
    with Connection(running.address) as connection:
        connection.send("/slow")
        assert connection.socket.recv(1000)
        began = time.monotonic()
        assert running.cli("recycle").returncode in (0, 1)
        with contextlib.suppress(ConnectionResetError):  # it is cut
            while connection.socket.recv(1 << 16):
                pass
    assert time.monotonic() - began >= 1.5
    assert "still sends" not in running.stderr
