"""A drain in which clients misbehave: no other client loses its request, and the app is stopped properly."""

from __future__ import annotations

import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster2.engines.granian.granian_engine import STOP_GRACE_S
from tests.system.clients import Connection
from tests.system.conftest import Serve
from tests.system.harness import Running, wait_until

APPS = Path(__file__).parents[1] / "apps" / "draining_app.py"
GOOD = 6
"""Clients whose requests are under way: fewer than there are threads."""
UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
)
HTTP = {
    "reads nothing": b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n",
    "half a head": b"GET / HTTP/1.1\r\nHost: te",
    "half a body": b"POST /body/half HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhello",
    "no request": b"\x16\x03\x01\xff\xfe\r\n\r\n",
    "silent": b"",
}
WEBSOCKETS = {
    "websocket that reads nothing": UPGRADE.format(path="/flood/flood", more="").encode(),
    "websocket handshake with a body": UPGRADE.format(path="/body", more="Content-Length: 5\r\n").encode() + b"hello",
    "websocket handshake too long": UPGRADE.format(path="/long", more=f"Cookie: {'c' * 9000}\r\n").encode(),
    "websocket that sends garbage": UPGRADE.format(path="/quiet/garbage", more="").encode() + b"\xff\xff\xff",
}
TCP = {"reads nothing": b"/large\n", "half a line": b"/hel", "broken": b"/broken\n", "silent": b""}


class Case(NamedTuple):
    """What serves, and how its worker is told to drain.

    Attributes:
        verb: `recycle`, or `shutdown`.
        begun: handlers that have begun before the drain does.
    """

    app: str
    clients: dict[str, bytes]
    options: tuple[str, ...] = ()
    verb: str = "shutdown"
    held: bytes = b"GET /held/good HTTP/1.1\r\nHost: test\r\n\r\n"
    begun: tuple[str, ...] = ("half",)
    unix: bool = False
    tls: bool = False


ASGI_BEGUN = ("half", "flood", "garbage")
CASES = {
    "asgi": Case("asgi", HTTP | WEBSOCKETS, begun=ASGI_BEGUN),
    "asgi-recycle": Case("asgi", HTTP | WEBSOCKETS, ("--no-keeper",), "recycle", begun=ASGI_BEGUN),
    "asgi-tls": Case("asgi", HTTP | WEBSOCKETS, begun=ASGI_BEGUN, tls=True),
    "asgi-unix": Case("asgi", HTTP | WEBSOCKETS, begun=ASGI_BEGUN, unix=True),
    "asgi-alone": Case("asgi", HTTP | WEBSOCKETS, ("--no-cluster",), begun=ASGI_BEGUN, unix=True),
    "wsgi-threads": Case("wsgi", HTTP, begun=()),
    "wsgi-inline": Case("wsgi", HTTP, ("--threads", "0"), begun=()),
    "granian-asgi": Case("asgi", HTTP | WEBSOCKETS, ("--engine", "granian"), begun=("half", "flood")),
    "granian-rsgi": Case("rsgi", HTTP | WEBSOCKETS, begun=("half", "flood")),
    "granian-wsgi": Case("wsgi", HTTP, ("--engine", "granian")),
    "granian-asgi-alone": Case(
        "asgi", HTTP | WEBSOCKETS, ("--no-cluster", "--engine", "granian"), begun=("half", "flood"), unix=True
    ),
    "granian-rsgi-alone": Case("rsgi", HTTP | WEBSOCKETS, ("--no-cluster",), begun=("half", "flood"), unix=True),
    "granian-wsgi-alone": Case("wsgi", HTTP, ("--no-cluster", "--engine", "granian"), unix=True),
    "tcp": Case("tcp", TCP, held=b"/held/good\n", begun=()),
    "tcp-protocol": Case("Protocol", TCP, ("--engine", "tcp"), held=b"/held/good\n", begun=()),
}


RARE = ("asgi-unix", "asgi-alone", "granian-rsgi", "tcp-protocol")
"""Cases that only `make soak` runs."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak) if name in RARE else name for name in CASES]
)
def test_others_lose_nothing(
    run: Serve, certified: tuple[tuple[str, ...], ssl.SSLContext], tmp_path: Path, name: str
) -> None:
    """Clients that read nothing, stop in the middle or send garbage cost no other client its answer, nor the app its end."""
    case = CASES[name]
    options = (*case.options, "--drain-idle", "300ms", "--drain-timeout", "20s", *(certified[0] if case.tls else ()))
    bind = ("unix:s",) if case.unix else ("127.0.0.1:0",)
    workers = None if "--no-cluster" in options else 1
    running = run(f"{APPS}:{case.app}", *options, bind=bind, workers=workers)
    connect = connector(running, case, certified[1])
    with ExitStack() as stack:
        idle, *good = (stack.enter_context(connect()) for _ in range(2 if "0" in case.options else GOOD + 1))
        for number, connection in enumerate(good):
            connection.socket.sendall(case.held.replace(b"good", b"good%d" % number))
            running.held(f"good{number}")
        bad = {name: connect() for name in case.clients}
        for kind, connection in bad.items():
            connection.socket.sendall(case.clients[kind])
        half_closed = stack.enter_context(connect())
        if not case.tls:
            half_closed.socket.sendall(case.held.replace(b"good", b"gone"))
            half_closed.socket.shutdown(socket.SHUT_WR)
        for begun in case.begun:
            running.held(begun)
        pid = running.process.pid if workers is None else running.workers()[0]["pid"]
        told = threading.Thread(target=drain, args=(running, case, pid))
        told.start()
        if "0" in case.options:  # inline: the request holds the loop
            running.release()
        assert idle.closed(), "drain_idle is over"
        running.release()
        answers = [read(connection.socket)[-6:].strip() for connection in good]
        assert answers == [b"hello"] * len(good)
        for connection in bad.values():
            connection.socket.close()
        told.join()
    assert case.verb != "shutdown" or running.wait() == 0
    assert "drain_timeout" not in running.stderr, "nobody waits for those who have left"
    stopped = {path.name for path in running.directory.glob("stopped.*")}
    expected = {f"stopped.hook.{pid}"} | ({f"stopped.lifespan.{pid}"} if case.app in ("asgi", "rsgi") else set())
    assert stopped == expected, running.stderr


@pytest.mark.slow
@pytest.mark.parametrize("app", ["asgi", "rsgi", "wsgi"])
def test_granian_writes_late_responses(run: Serve, app: str) -> None:
    """Responses that complete when granian's patience with silent clients is over arrive, though hyper has yet to write them."""
    threads = ("--threads", "24") if app == "wsgi" else ()
    running = run(f"{APPS}:{app}", "--engine", "granian", "--drain-idle", "100ms", *threads, workers=1).ready(1)
    with ExitStack() as stack:
        idle, *late = (stack.enter_context(Connection(running.address)) for _ in range(25))
        for number, connection in enumerate(late):
            connection.send(f"/held/{number}")
        for number in range(len(late)):
            running.held(str(number))
        running.signal(signal.SIGTERM)
        assert idle.closed()
        over = time.monotonic() + 1.2 * STOP_GRACE_S
        wait_until(lambda: time.monotonic() > over, "the patience is over")
        running.release()
        answers = [read(connection.socket)[-5:] for connection in late]
    assert answers == [b"hello"] * len(late)
    assert running.wait() == 0


def drain(running: Running, case: Case, pid: int) -> None:
    """Have the worker drain."""
    if case.verb == "recycle":
        running.ask("recycle", worker=pid)
    else:
        running.signal(signal.SIGTERM)


def connector(running: Running, case: Case, trust: ssl.SSLContext) -> Callable[[], Connection]:
    """Return a function that connects to the cluster, when it serves."""
    address: tuple[str, int] | str
    if "--no-cluster" in case.options:
        address = str(running.directory / "s")
        wait_until(lambda: accepts(address), lambda: running.stderr)
    else:
        running.ready(1)
        address = str(running.directory / "s") if case.unix else running.address

    def connect() -> Connection:
        connection = Connection(address)
        if case.tls:
            connection.socket = trust.wrap_socket(connection.socket, server_hostname="localhost")
        return connection

    return connect


def accepts(path: str) -> bool:
    """Return whether a server accepts connections on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def read(client: socket.socket) -> bytes:
    """Return all that comes until the end of the connection."""
    found = b""
    while more := client.recv(1 << 16):
        found += more
    return found
