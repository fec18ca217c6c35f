"""WSGI apps as a user serves them: real processes, raw sockets."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system.clients import Connection, get
from tests.system.conftest import Serve
from tests.system.harness import Running, stop, wait_until

APP = f"{(Path(__file__).parents[1] / 'apps' / 'wsgi_app.py')}:app"


def row(running: Running, pid: int) -> dict[str, object]:
    return next(each for each in running.status()["workers"] if each["pid"] == pid)


@pytest.mark.slow
def test_nobody_waits_for_a_thread(run: Serve) -> None:
    """While a worker's only thread is held its sibling serves what comes, and what was idle at the first one, too."""
    running = run(APP, "--threads", "1").ready()
    with ExitStack() as stack:
        kept = [stack.enter_context(Connection(running.address)) for _ in range(8)]
        assert len({connection.get().headers["x-worker"] for connection in kept}) in (1, 2)
        held = stack.enter_context(Connection(running.address))
        held.send("/held/a")
        victim = running.held("a")
        wait_until(lambda: row(running, victim)["mode"] == "handoff", "it is seen that its thread is held")
        wait_until(lambda: row(running, victim)["connections"] == 1, "idle connections have left it")
        for connection in kept:
            assert connection.get().headers["x-worker"] != str(victim)
        for _ in range(8):
            assert get(running.address).headers["x-worker"] != str(victim)
        running.release()
        assert held.receive().body == b"hello"
        assert [connection.get().body for connection in kept] == [b"hello"] * 8, "none was closed"


@pytest.mark.slow
def test_a_fresh_worker_whose_threads_are_held(run: Serve) -> None:
    """The very first requests hold all threads of a worker: it notices, and what comes then is served by its sibling."""
    running = run(APP, "--threads", "4").ready()
    first, second = (worker["pid"] for worker in running.workers())
    stop(second)
    with ExitStack() as stack:
        held = [stack.enter_context(Connection(running.address)) for _ in range(4)]
        for number, connection in enumerate(held):
            connection.send(f"/held/{number}")
            assert running.held(str(number)) == first
        os.kill(second, signal.SIGCONT)
        wait_until(lambda: row(running, first)["mode"] == "handoff", "it is seen that its threads are held")
        for _ in range(8):
            assert get(running.address).headers["x-worker"] == str(second)
        running.release()
        assert [connection.receive().body for connection in held] == [b"hello"] * 4


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["0", "1"])
def test_handlers_that_sleep_park(run: Serve, threads: str) -> None:
    """Requests that hold the thread, or the loop, for long send their connections to the keeper, and none is closed."""
    running = run(APP, "--threads", threads).ready()
    with ExitStack() as stack:
        kept = [stack.enter_context(Connection(running.address)) for _ in range(4)]

        def parked() -> bool:
            for connection in kept:
                connection.send("/slow")
            assert all(connection.receive().status == 200 for connection in kept)
            return sum(each["parked"] for each in running.workers()) > 4

        wait_until(parked, "connections are parked")


@pytest.mark.slow
def test_draining_waits_for_threads(run: Serve) -> None:
    """A worker that retires finishes what its threads hold; one that is stuck is cut when drain_timeout is over."""
    running = run(APP, "--drain-timeout", "2s", workers=1).ready(1)
    with Connection(running.address) as first, Connection(running.address) as second:
        first.send("/held/a")
        old = running.held("a")
        running.signal(signal.SIGHUP)
        running.draining()
        assert get(running.address).headers["x-worker"] != str(old)
        running.release()
        assert first.receive().headers["x-worker"] == str(old)
        (running.directory / "release").unlink()
        second.send("/held/b")
        running.held("b")
        running.signal(signal.SIGTERM)
        running.wait()
        assert second.closed()


def test_environ(run: Serve) -> None:
    """The environ shows how the app is served: threads, processes, mount point, and the headers of a trusted proxy."""
    running = run(APP, "--threads", "1", "--root-path", "/mount", "--forwarded-allow-ips", "*").ready()
    said = "X-Forwarded-Proto: https\r\nX-Forwarded-For: 192.0.2.7\r\nX_Forwarded_For: 192.0.2.8\r\n"
    assert get(running.address, "/flags", headers=said).body.startswith(b"False|True|https|/mount|192.0.2.7|")


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["0", "2"])
def test_bad_apps_and_clients(run: Serve, threads: str) -> None:
    """An app that breaks the rules gets a 500 and one line in the log; a client that leaves ends its response; workers live."""
    running = run(APP, "--threads", threads, workers=1).ready(1)
    (worker,) = running.workers()
    assert get(running.address, "/broken").status == 500
    wait_until(lambda: running.stderr.count("GET /broken: ") == 1, lambda: f"it is logged:\n{running.stderr}")
    with Connection(running.address) as connection:
        connection.send("/stream")
        assert connection.socket.recv(1000).startswith(b"HTTP/1.1 200 OK")
    wait_until(lambda: next(running.directory.glob("closed.*"), None), "its body is closed")
    with Connection(running.address) as connection:
        connection.send("/", method="POST", headers="Transfer-Encoding: chunked\r\n")
        connection.socket.sendall(b"3\r\nabc\r\n")
        connection.socket.sendall(b"2\r\nde\r\n0\r\n\r\n")
        assert connection.receive().body == b"abcde"
        assert connection.get().body == b"hello"
    assert [each["pid"] for each in running.workers()] == [worker["pid"]]
    assert "Exception in ASGI application" not in running.stderr
