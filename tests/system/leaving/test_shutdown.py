"""Graceful shutdown drops nothing, stop is at once, and neither leaves anything behind."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system import forbidding
from tests.system.clients import Connection, Load, get
from tests.system.conftest import Serve
from tests.system.forbidding import SETSOCKOPT
from tests.system.harness import PATIENCE, command, free_port, listening_ports, sample, stop, wait_until


@pytest.mark.parametrize("name", ["plain", "wsgi"])
def test_request_in_flight_is_finished(run: Serve, name: str) -> None:
    """A request that is under way at TERM is answered, with `connection: close`; then all leave with 0."""
    running = run(sample(name)).ready()
    with Connection(running.address) as connection:
        connection.send("/held/a")
        pid = running.held("a")
        running.signal(signal.SIGTERM)
        running.draining(pid=pid)
        running.release()
        answer = connection.receive()
        assert (answer.status, answer.body) == (200, b"released")
        assert answer.headers["connection"] == "close"
        assert connection.closed()
    assert running.wait() == 0


@pytest.mark.parametrize("name", ["plain", "wsgi"])
def test_idle_connection_may_ask_once_more(run: Serve, name: str) -> None:
    """A kept-alive connection that asks within drain_idle after TERM is answered, with `connection: close`."""
    running = run(sample(name), "--drain-idle", "20s").ready()
    with Connection(running.address) as connection:
        pid = int(connection.get().headers["x-worker"])
        running.signal(signal.SIGTERM)
        running.draining(pid=pid)
        answer = connection.get()
        assert (answer.status, answer.body) == (200, b"hello")
        assert answer.headers["connection"] == "close"
        assert connection.closed()
        answered = time.monotonic()
        assert running.wait() == 0
    assert time.monotonic() - answered < 15, "nothing was left to wait for"


def test_idle_connections_are_closed_after_drain_idle(run: Serve) -> None:
    """Connections that stay silent are closed after drain_idle, whether they have sent a request before or not."""
    running = run(sample("plain"), "--drain-idle", "500ms").ready()
    with Connection(running.address) as silent, Connection(running.address) as served:
        served.get()
        running.signal(signal.SIGTERM)
        assert silent.closed()
        assert served.closed()
    assert running.wait() == 0


def test_no_connections_no_waiting(run: Serve) -> None:
    """With no connection open a shutdown waits for nothing."""
    running = run(sample("plain"), "--drain-idle", "30s").ready()
    get(running.address, headers="Connection: close\r\n")
    began = time.monotonic()
    assert running.shutdown() == 0
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("name", ["plain", "wsgi"])
def test_accept_queue_is_served(run: Serve, name: str) -> None:
    """Clients that connected before TERM but wait in the accept queue are answered."""
    running = run(sample(name)).ready()
    pids = [row["pid"] for row in running.workers()]
    for pid in pids:
        stop(pid)
    with ExitStack() as stack:
        waiting = [stack.enter_context(Connection(running.address)) for _ in range(30)]
        for connection in waiting:
            connection.send()
        running.signal(signal.SIGTERM)
        running.ordered_to_drain(2)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        answers = [connection.receive() for connection in waiting]
    assert [each.status for each in answers] == [200] * 30
    assert running.wait() == 0


def read_to_the_end(connection: Connection) -> bytes:
    """All that comes."""
    read = b""
    while more := connection.socket.recv(1 << 16):
        read += more
    return read


@pytest.mark.parametrize("verb", ["shutdown", "reload"])
def test_drain_timeout_bounds_it(run: Serve, verb: str) -> None:
    """What doesn't end is cut off after drain_timeout: cancelled, its connection reset; one warning says what it was."""
    running = run(sample("unending"), "--drain-timeout", "1s").ready()
    with ExitStack() as stack:
        silent, streaming, old = (stack.enter_context(Connection(running.address)) for _ in range(3))
        silent.send("/held/a?password=b%0A")
        streaming.send("/stream/%0Ab")
        old.socket.sendall(b"GET /stream/c HTTP/1.0\r\n\r\n")
        for number in ("a", "b", "c"):
            running.held(number)
        for begun in (streaming, old):
            assert begun.socket.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        began = time.monotonic()
        told: list[subprocess.CompletedProcess[str]] = []
        asked = threading.Thread(target=lambda: told.append(running.cli(verb)))
        asked.start()
        for connection in (silent, streaming, old):
            # Never a FIN: without a length or chunks that would be the proper end of a body.
            with pytest.raises(ConnectionResetError):
                read_to_the_end(connection)
        asked.join()
        assert 0.9 < time.monotonic() - began < 15
        assert told[0].returncode == 1
        assert "drain_timeout (1 s) is over: " in told[0].stderr
    assert (running.wait() if verb == "shutdown" else running.shutdown()) == 0
    assert sorted(path.name for path in running.directory.glob("cancelled.*")) == [
        "cancelled.a",
        "cancelled.b",
        "cancelled.c",
    ]
    said = [line for line in running.stderr.splitlines() if " warning " in line or " error " in line]
    assert all("drain_timeout (1 s) is over: " in line for line in said), said
    assert sum(int(number) for line in said for number in re.findall(r"reset (\d+) connections? with", line)) == 3
    for path in ("/held/a", "/stream/%0Ab", "/stream/c"):
        assert sum(path in line for line in said) == 1, said
    assert "password" not in running.stderr
    assert "Traceback" not in running.stderr


def test_drain_timeout_bounds_a_blocked_worker(run: Serve) -> None:
    """A worker that is stopped altogether doesn't hold up a shutdown for longer than drain_timeout."""
    running = run(sample("plain"), "--drain-timeout", "1s").ready()
    stop(running.workers()[0]["pid"])
    began = time.monotonic()
    assert running.shutdown() == 0
    assert time.monotonic() - began < 15


def test_tcp_in_flight_is_finished(run: Serve) -> None:
    """A TCP handler that works at TERM sends its answer before its worker leaves."""
    running = run(sample("tcp"), "--drain-timeout", "10s").ready()
    with socket.create_connection(running.address, 30) as client, client.makefile("rb") as lines:
        client.sendall(b"hold a\n")
        pid = running.held("a")
        running.signal(signal.SIGTERM)
        running.draining()
        running.release()
        assert lines.readline() == b"%d hold a\n" % pid
        client.shutdown(socket.SHUT_WR)
        assert lines.read() == b""
    assert running.wait() == 0


def test_tcp_accept_queue_is_served(run: Serve) -> None:
    """TCP clients in the accept queue are served at a shutdown as well."""
    running = run(sample("tcp")).ready()
    pids = [row["pid"] for row in running.workers()]
    for pid in pids:
        stop(pid)
    with ExitStack() as stack:
        waiting = [stack.enter_context(socket.create_connection(running.address, 30)) for _ in range(10)]
        for client in waiting:
            client.sendall(b"ping\n")
            client.shutdown(socket.SHUT_WR)
        running.signal(signal.SIGTERM)
        running.ordered_to_drain(2)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        for client in waiting:
            with client.makefile("rb") as lines:
                assert lines.read().endswith(b" ping\n")
    assert running.wait() == 0


def test_tcp_drain_timeout(run: Serve) -> None:
    """A TCP handler that doesn't end is cut off after drain_timeout: its connection is reset, and a warning says so."""
    running = run(sample("tcp"), "--drain-timeout", "1s").ready()
    with socket.create_connection(running.address, 30) as client:
        client.sendall(b"hold a\n")
        running.held("a")
        running.signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            client.recv(100)
        assert running.wait() == 0
    assert "drain_timeout (1 s) is over: reset 1 connection with 1 request under way" in running.stderr
    assert "Traceback" not in running.stderr


@pytest.mark.slow
def test_shutdown_under_load(run: Serve) -> None:
    """Under load over kept-alive connections no request fails: each client is told to close, none is cut off."""
    running = run(sample("plain")).ready()
    with Load(running.address, clients=12, reconnect=False) as load:
        wait_until(lambda: load.counts.answered > 500, "the load runs")
        assert running.shutdown() == 0
    assert load.counts.failed == []
    assert load.counts.closed == 0


@pytest.mark.slow
def test_shutdown_under_new_connections(run: Serve) -> None:
    """Under load with a connection for each request none fails either: who has connected is answered."""
    running = run(sample("plain")).ready()
    with Load(running.address, clients=12, keep_alive=False) as load:
        wait_until(lambda: load.counts.answered > 500, "the load runs")
        assert running.shutdown() == 0
    assert load.counts.failed == []


@pytest.mark.skipif(platform.machine() not in SETSOCKOPT, reason="the number of a system call isn't known")
@pytest.mark.parametrize("options", [("--workers", "2"), ("--no-cluster",)], ids=["cluster", "single"])
def test_doors_that_cannot_be_shut(start: Serve, options: tuple[str, ...]) -> None:
    """Where the kernel refuses what shuts a door, a warning says so; what is under way is answered, newcomers until the end."""
    port = free_port()
    forbidden = [sys.executable, str(Path(forbidding.__file__))]
    bind = ("--monitor-port", "0", "--bind", f"127.0.0.1:{port}", "--drain-idle", "1s", *options)
    running = start([*forbidden, *command("run", sample("plain"), *bind)])
    wait_until(lambda: port in listening_ports(), lambda: f"it listens:\n{running.stderr}")
    with Connection(("127.0.0.1", port)) as connection:
        connection.send("/held/a")
        running.held("a")
        running.signal(signal.SIGTERM)
        wait_until(lambda: "can't be held back" in running.stderr, lambda: f"a warning:\n{running.stderr}")
        assert get(("127.0.0.1", port)).body == b"hello"
        wait_until(lambda: port not in listening_ports(), "newcomers are refused when drain_idle is over")
        running.release()
        assert connection.receive().body == b"released"
    assert running.wait() == 0
    assert "Traceback" not in running.stderr


def test_new_connections_without_a_master(run: Serve) -> None:
    """Under load with a connection for each request, a single process shuts its door as a cluster does: none fails."""
    port = free_port()
    running = run(sample("plain"), "--no-cluster", bind=(f"127.0.0.1:{port}",), workers=None)
    wait_until(lambda: port in listening_ports(), lambda: f"it listens:\n{running.stderr}")
    with Load(("127.0.0.1", port), clients=12, keep_alive=False) as load:
        wait_until(lambda: load.counts.answered > 100, "the load runs")
        assert running.shutdown() == 0
    assert load.counts.failed == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_shuts_down(run: Serve, number: signal.Signals) -> None:
    """INT and TERM shut down gracefully, with exit code 0."""
    running = run(sample("plain")).ready()
    running.signal(number)
    assert running.wait() == 0


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGQUIT])
def test_second_signal_stops_at_once(run: Serve, second: signal.Signals) -> None:
    """A second INT, or a QUIT, ends a shutdown that waits for a request."""
    running = run(sample("plain")).ready()
    with Connection(running.address) as connection:
        connection.send("/held/a")
        running.held("a")
        running.signal(signal.SIGINT)
        running.draining()
        running.signal(second)
        running.wait()
        assert connection.closed()


def test_quit_stops_at_once(run: Serve) -> None:
    """QUIT doesn't wait for requests."""
    running = run(sample("plain")).ready()
    with Connection(running.address) as connection:
        connection.send("/held/a")
        running.held("a")
        running.signal(signal.SIGQUIT)
        running.wait()
        assert connection.closed()


def test_term_while_booting(run: Serve) -> None:
    """TERM that arrives while workers start ends it as well."""
    running = run(sample("never_starts"))
    wait_until(lambda: running.workers("booting"), lambda: f"workers boot:\n{running.stderr}")
    assert running.shutdown() == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_thousand_in_flight(run: Serve) -> None:
    """2,000 requests that are under way at TERM are all answered, each with `connection: close`; then all leave with 0."""
    running = run(sample("plain"), "--drain-timeout", "60s").ready()

    async def ask(began: asyncio.Semaphore) -> bytes:
        reader, writer = await asyncio.open_connection(*running.address)
        writer.write(b"GET /waiting HTTP/1.1\r\nHost: test\r\n\r\n")
        began.release()
        try:
            return await reader.read()
        finally:
            writer.close()

    async def all_of_them() -> list[bytes]:
        began = asyncio.Semaphore(0)
        asking = [asyncio.create_task(ask(began)) for _ in range(2000)]
        for _ in asking:
            await began.acquire()
        in_flight = lambda: sum(row["in_flight"] for row in running.workers())  # noqa: E731
        await asyncio.to_thread(
            wait_until, lambda: in_flight() == 2000, lambda: f"all are under way: {in_flight()}", 3 * PATIENCE
        )
        running.signal(signal.SIGTERM)
        await asyncio.to_thread(running.draining)
        running.release()
        return await asyncio.gather(*asking)

    answers = asyncio.run(all_of_them())
    assert all(answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"released") for answer in answers)
    assert all(b"connection: close" in answer for answer in answers)
    assert running.wait() == 0
