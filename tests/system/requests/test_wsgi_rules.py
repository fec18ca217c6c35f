"""The promises of PEP 3333 to an app, kept by each engine alike, although granian's own layer doesn't."""

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


REASONS = {
    "short": "the app's body is shorter than its Content-Length, 9",
    "long": "the app's body is longer than its Content-Length, 4",
    "length": "the app's Content-Length 'five' is no length",
    "lengths": "the app's Content-Length '6' is no length, or not its only one",
    "value": "the app's header 'X-Name' has a control character in its value",
    "name": "the app's header 'X Name' has a name that HTTP doesn't allow",
    "beyond": "the app's headers aren't pairs of texts in latin-1",
}
"""The line that is logged for each response that HTTP does not allow."""


@pytest.mark.parametrize("name", REASONS)
def test_responses_that_http_does_not_allow(running: Running, name: str) -> None:
    """A wrong Content-Length or header is logged with its request, and never reaches a client that could take it for whole."""
    found = wire(running, f"/violation/{name}")
    assert found.startswith(b"HTTP/1.1 500 "), found
    in_parts = wire(running, f"/parts/{name}")
    if name in ("short", "long"):
        head, _, body = in_parts.lower().partition(b"\r\n\r\n")
        declared = head.partition(b"content-length: ")[2].split()
        assert not in_parts or len(body) < int(declared[0]), "the client sees that it was cut"
    else:
        assert in_parts.startswith(b"HTTP/1.1 500 "), in_parts
    for path in (f"/violation/{name}", f"/parts/{name}"):
        line = f"GET {path}: {REASONS[name]}"
        wait_until(lambda line=line: line in running.stderr, lambda: running.stderr)  # type: ignore[misc]
    assert get(running.address, "/tuple").body == b"a tuple", "the worker goes on"
