"""What PEP 3333 promises an app is kept by each engine alike, granian's own layer notwithstanding."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.system.clients import Connection, get
from tests.system.conftest import Serve
from tests.system.harness import Running, wait_until

APP = Path(__file__).parents[1] / "apps" / "pep_app.py"
ENGINES = {
    "threads": ("--threads", "1"),
    "inline": ("--threads", "0"),
    "granian": ("--engine", "granian", "--threads", "1"),
}
LINES = b"0123456789\nabcdefghij\n"
BODY = LINES + b"one\ntwo\nthree\n" + b"x" * 300_000


@pytest.fixture(params=ENGINES)
def running(run: Serve, request: pytest.FixtureRequest) -> Running:
    """One worker with one thread, which all requests share."""
    return run(f"{APP}:app", *ENGINES[request.param], "--drain-idle", "0", workers=1).ready(1)


def wire(running: Running, path: str) -> bytes:
    """All that comes until the connection ends."""
    with socket.create_connection(running.address, 30) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        found = b""
        try:
            while part := connection.recv(1 << 16):
                found += part
        except ConnectionResetError:
            pass
        return found


def reads(running: Running) -> None:
    """`readline(n)`, `read(-1)` and the like, with a length and in chunks that come slowly."""
    expected = [
        *(b"012", b"", b"3456789\n", b"abcdefghij\n", b"one\n", [b"two\n"], b"three\n", 100_000, 200_000),
        (b"", b"", b"", [], []),
    ]
    with Connection(running.address) as connection:
        connection.send("/read", method="POST", headers=f"Content-Length: {len(BODY)}\r\n")
        connection.socket.sendall(BODY)
        assert connection.receive().body == repr(expected).encode()
        connection.send("/read", method="POST", headers="Transfer-Encoding: chunked\r\n")
        for at in range(0, len(BODY), 50_000):
            part = BODY[at : at + 50_000]
            connection.socket.sendall(b"%x\r\n%b\r\n" % (len(part), part))
        connection.socket.sendall(b"0\r\n\r\n")
        assert connection.receive().body == repr(expected).encode()
        assert connection.get("/tuple").body == b"a tuple"


def test_what_is_promised(running: Running) -> None:
    """`write`, a late `start_response`, all ways to read, errors before the first part, contexts; and `close` is called."""
    reads(running)
    bodies = {
        "/write": b"written twice, returned",
        "/write-and-yield": b"written, a yielded b yielded ",
        "/only-written": b"written",
        "/tuple": b"a tuple",
        "/empty": b"not the end",
        "/nothing": b"",
        "/context-of-parts": b"begun a part",
    }
    for path, body in bodies.items():
        answer = get(running.address, path)
        assert (answer.status, answer.headers["x-path"], answer.body) == (200, path, body)
    late = get(running.address, "/late")
    assert (late.status, late.headers["x-late"], late.body) == (201, "yes", b"late")
    changed = get(running.address, "/changed")
    assert (changed.status, changed.headers["x-changed"], changed.body) == (503, "yes", b"changed")
    for _ in range(3):
        assert get(running.address, "/context").body == b"nothing, from import"
    assert [get(running.address, path).status for path in ("/twice", "/never")] == [500, 500]
    for path in ("/text", "/none", "/raises"):
        found = wire(running, path)
        # A cut that can be seen: no last chunk.
        assert b"transfer-encoding: chunked" in found.lower() or not found
        assert not found.endswith(b"0\r\n\r\n"), path
    names = {"write-and-yield", "never", "empty", "text", "none", "raises"}
    wait_until(lambda: set(get(running.address, "/closed").body.decode().split()) == names, "all bodies are closed")
