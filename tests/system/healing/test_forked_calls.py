"""A child that the app forks in a call, and that returns from the call, ends at once and leaves one line in the log."""

from __future__ import annotations

import pytest
from websockets.sync.client import connect

from tests.system.clients import Connection, get
from tests.system.conftest import Serve
from tests.system.harness import ROOT, free_port, wait_until

APP = "tests.system.apps.forked_app:"
SHAPES = {
    "asgi": ("app",),
    "wsgi": ("wsgi",),
    "wsgi inline": ("wsgi", "--threads", "0"),
    "granian asgi": ("app", "--engine", "granian"),
    "granian rsgi": ("rsgi", "--engine", "granian"),
    "granian wsgi": ("wsgi", "--engine", "granian"),
    "alone": ("app", "--no-cluster"),
}
ENDED = "returned from the call in which the app forked it"


@pytest.mark.parametrize("shape", SHAPES)
def test_forked_child_that_returns(run: Serve, shape: str) -> None:
    """However the child leaves the call, it exits with 70, the log names it once, and its parent serves on."""
    name, *options = SHAPES[shape]
    address = "127.0.0.1", free_port()
    running = run(APP + name, *options, workers=1, env={"PYTHONPATH": str(ROOT)}, bind=[f"127.0.0.1:{address[1]}"])
    wait_until(lambda: "serves (slot 0" in running.stderr, lambda: running.stderr)
    paths = ["/return", "/raise", "/stream"]
    for path in paths:
        lines = get(address, path).body.decode().splitlines()
        pid, fate = next(line for line in lines if line[0].isdecimal()).split()
        assert fate == "70", (path, fate, running.stderr)
        assert lines[-1] == "end"
        wait_until(lambda pid=pid: pid in running.stderr, lambda: f"one line a child:\n{running.stderr}")
        (line,) = [line for line in running.stderr.splitlines() if ENDED in line and pid in line]
        assert path in line


@pytest.mark.parametrize("engine", ["http", "granian"])
def test_forked_child_of_a_thread_beside_the_loop(run: Serve, engine: str) -> None:
    """A child forked in a thread of anyio's or the executor's, or that yields to the loop, is ended as well."""
    running = run(APP + "app", "--engine", engine, workers=1, env={"PYTHONPATH": str(ROOT)}).ready(1)
    for number, path in enumerate(("/anyio", "/executor", "/yield"), 1):
        lines = get(running.address, path).body.decode().splitlines()
        assert lines[0].split()[1] == "70", (path, lines, running.stderr)
        wait_until(lambda number=number: running.stderr.count(ENDED) == number, lambda: running.stderr)


def test_forked_child_of_a_websocket(run: Serve) -> None:
    """A child forked while a websocket is open ends when it sends."""
    running = run(APP + "app", workers=1, env={"PYTHONPATH": str(ROOT)}).ready(1)
    with connect(running.url("/socket", "ws")) as websocket:
        assert str(websocket.recv()).split()[1] == "70", running.stderr
    wait_until(lambda: running.stderr.count(ENDED) == 1, lambda: running.stderr)


@pytest.mark.parametrize("path", ["/return", "/raise"])
def test_forked_child_of_a_tcp_handler(run: Serve, path: str) -> None:
    """A child forked in a handler of raw TCP ends when it leaves the handler, and its parent serves on."""
    running = run(APP + "tcp", workers=1, env={"PYTHONPATH": str(ROOT)}).ready(1)
    for number in (1, 2):
        with Connection(running.address) as connection:
            connection.socket.sendall(f"{path}\n".encode())
            with connection.socket.makefile("rb") as stream:
                lines = stream.read().decode().splitlines()
        assert lines[0].split()[1] == "70", (lines, running.stderr)
        assert lines[-1] == "end"
        wait_until(lambda number=number: running.stderr.count(ENDED) == number, lambda: running.stderr)
