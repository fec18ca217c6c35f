"""A client that ends its side of a connection after its request gets the whole response, wherever the connection has been."""

from __future__ import annotations

import socket
import threading

import pytest

from tests.system.apps.rolling_app import PIECES, expected
from tests.system.clients import Connection
from tests.system.conftest import Serve
from tests.system.harness import Running, wait_until
from tests.system.rolling import APP

WAYS = {
    "asgi": (f"{APP}:app",),
    "wsgi-threads": (f"{APP}:make_flask", "--factory"),
    "wsgi-inline": (f"{APP}:make_flask", "--factory", "--threads", "0"),
}
ENGINE = ("--engine", "http")


def ask(connection: Connection, path: str) -> None:
    """Send a request, and nothing any more."""
    connection.send(path)
    connection.socket.shutdown(socket.SHUT_WR)


def answered(connection: Connection, kind: str) -> None:
    """Receive the right answer, whole, and then the end."""
    answer = connection.receive()
    assert (answer.status, answer.body) == (200, expected(kind, "7", b""))
    assert connection.closed()


def everything(connection: Connection) -> bytes:
    """All that comes until the end."""
    with connection.socket.makefile("rb") as file:
        return file.read()


def pieces(kind: str) -> list[bytes]:
    """Return the parts of the right answer, which may come in any chunks."""
    return PIECES if kind == "stream" else [expected(kind, "7", b"")]


def rested(running: Running) -> None:
    wait_until(lambda: running.status()["keeper"]["resting"] == 1, "it rests at the keeper")


@pytest.mark.parametrize("way", WAYS)
def test_half_close(run: Serve, way: str) -> None:
    """On a new connection, on one that has brought a request, and on one that has rested at the keeper; also in a pipeline."""
    running = run(*WAYS[way], *ENGINE, "--handoff-idle-after", "100ms").ready()
    for kind in ("small", "slow", "big", "stream"):
        with Connection(running.address) as connection:
            ask(connection, f"/{kind}/7")
            answered(connection, kind)
        with Connection(running.address) as connection:
            connection.get("/small/1")
            ask(connection, f"/{kind}/7")
            answered(connection, kind)
        with Connection(running.address) as connection:
            connection.send("/slow/1")
            ask(connection, f"/{kind}/7")
            received = everything(connection)
            assert received.count(b"HTTP/1.1 200 OK") == 2
            assert all(piece in received for piece in (b"slow 1", *pieces(kind)))
        with Connection(running.address) as connection:
            connection.get("/small/1")
            rested(running)
            ask(connection, f"/{kind}/7")
            answered(connection, kind)


def test_half_close_over_a_unix_socket(run: Serve) -> None:
    """Over a Unix socket, whose path is relative to the directory of the run, the response comes as well."""
    running = run(*WAYS["asgi"], *ENGINE, bind=["unix:s"]).ready()
    for kind in ("slow", "big", "stream"):
        with Connection(str(running.directory / "s")) as connection:
            ask(connection, f"/{kind}/7")
            answered(connection, kind)


@pytest.mark.parametrize("way", ["asgi", "wsgi-threads"])
def test_half_close_of_a_worker_that_retires(run: Serve, way: str) -> None:
    """The client has ended its side, then the worker retires: the response comes all the same."""
    running = run(*WAYS[way], *ENGINE, "--drain-idle", "500ms").ready()
    with Connection(running.address) as connection:
        ask(connection, "/wait/7")
        running.held("7")
        reload = threading.Thread(target=running.ask, args=("reload",))
        reload.start()
        running.draining()
        running.release()
        answered(connection, "wait")
        reload.join()


def test_half_close_while_workers_park(run: Serve) -> None:
    """Handlers hold the loop, so connections go to the keeper after each response: the next request is answered as well."""
    running = run(*WAYS["wsgi-inline"], *ENGINE, "--handoff-slow-above", "1ms").ready()
    with Connection(running.address) as other:
        wait_until(
            lambda: other.get("/slow/1") and any(row["mode"] == "handoff" for row in running.workers()), "one parks"
        )
    for kind in ("slow", "big", "stream"):
        with Connection(running.address) as connection:
            connection.get("/slow/1")
            ask(connection, f"/{kind}/7")
            answered(connection, kind)
