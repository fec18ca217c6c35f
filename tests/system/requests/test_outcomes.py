"""Requests, errors, status classes and disconnects mean the same for all engines and interfaces; `docs/metrics.md` says what."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.system.harness import Running, free_port, listening_ports, wait_until

APPS = Path(__file__).parents[1] / "apps" / "outcome_apps.py"
RESET = struct.pack("ii", 1, 0)
HANDSHAKE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class Case(NamedTuple):
    """A client's request, and the counts that it causes.

    Attributes:
        sent: the request; it is answered with a status of this class, unless its client leaves.
        status: the class.
        error, disconnect: how many of each.
        leaves: the client resets the connection when it has received this; None: it doesn't.
    """

    sent: str
    status: str
    error: int = 0
    disconnect: int = 0
    leaves: bytes | None = None


def get(path: str, more: str = "") -> str:
    return f"GET {path} HTTP/1.1\r\nHost: test\r\n{more}\r\n"


CUT = Case(get("/broken"), "2xx", error=1)
"""A cut response ends the connection; with granian perhaps before the head is written."""
ALL = (
    Case(get("/ok"), "2xx"),
    Case(get("/ecv"), "2xx"),
    Case(get("/moved"), "3xx"),
    Case(get("/missing"), "4xx"),
    Case(get("/busy"), "5xx", error=1),
    Case(get("/raise"), "5xx", error=1),
    CUT,
)
LATE = (Case(get("/late"), "2xx", error=1),)
"""granian calls `close()` of a WSGI body, and only logs what that raises."""
WEBSOCKETS = (
    Case(get("/ok", HANDSHAKE), "1xx"),
    Case(get("/denied", HANDSHAKE), "4xx"),
    Case(get("/raise", HANDSHAKE), "1xx", error=1),
)
SEEN = (
    Case("GET /ok HTTP/1.1\r\n\r\n", "4xx"),
    Case(get("/x" + "y" * 40_000), "4xx"),
    Case(get("/ok", "X: " + "y" * 70_000 + "\r\n"), "4xx"),
    Case("BREW /ok HTTP/1.1\r\nHost: test\r\n\r\n", "5xx"),
    Case(get("/ok", "Transfer-Encoding: chunked\r\n") + "not a length\r\n", "4xx"),
    Case("POST /ok HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhello", "4xx", disconnect=1, leaves=b""),
    Case(get("/endless"), "2xx", disconnect=1, leaves=b"\r\n\r\n"),
)
"""The cases that only an engine with connections of its own sees: refusals, and clients that leave."""


def play(address: tuple[str, int], case: Case) -> None:
    """Be the client of a case."""
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(case.sent.encode())
        answer = b""
        if case.leaves is not None:
            while case.leaves not in answer:
                answer += client.recv(100)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            return
        with contextlib.suppress(ConnectionResetError):
            end = b"\r\n0\r\n\r\n" if case is CUT else b"\r\n\r\n"  # granian ends RSGI's as if it were whole
            while end not in answer and (more := client.recv(65536)):
                answer += more
    assert answer[9:10].decode() == case.status[0] or (case is CUT and not answer), answer


class Counts:
    """Return the figures of a cluster's `/metrics`."""

    def __init__(self, port: int) -> None:
        self._port = port

    def now(self) -> dict[str, Any]:
        """Return the counters, by name; one that the engine doesn't know is missing."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        found: dict[str, Any] = {}
        for family in text_string_to_metric_families(text):
            for each in family.samples:
                name = each.name.removeprefix("cluster2_").removesuffix("_total")
                if name == "responses":
                    found[each.labels["class"]] = each.value
                elif not each.labels:
                    found[name] = each.value
        return found

    def are(self, expected: dict[str, int], why: Callable[[], str]) -> None:
        """Wait until they are as expected."""
        wait_until(
            lambda: {name: value for name, value in self.now().items() if name in expected} == expected,
            lambda: f"{expected}; {self.now()}\n{why()}",
        )


KINDS = {
    "http asgi": ("asgi", (*ALL, *LATE, *WEBSOCKETS, *SEEN), ("--engine", "http")),
    "http wsgi threads": ("wsgi", (*ALL, *LATE, *SEEN), ("--engine", "http", "--threads", "2")),
    "http wsgi inline": ("wsgi", (*ALL, *LATE, *SEEN), ("--engine", "http", "--threads", "0")),
    "granian asgi": ("asgi", (*ALL, *LATE, *WEBSOCKETS), ("--engine", "granian")),
    "granian wsgi": ("wsgi", ALL, ("--engine", "granian")),
    "granian rsgi": ("rsgi", (*ALL, *LATE, *WEBSOCKETS), ("--engine", "granian")),
    "alone asgi": ("asgi", (*ALL, *LATE, *WEBSOCKETS, *SEEN), ("--engine", "http", "--no-cluster")),
    "alone wsgi": ("wsgi", (*ALL, *LATE, *SEEN), ("--engine", "http", "--no-cluster")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_outcomes(run: Callable[..., Running], kind: str) -> None:
    """Each request counts once, in the class of its status; errors and disconnects are as defined, whatever the app logs."""
    app, cases, options = KINDS[kind]
    alone = "--no-cluster" in options
    port, own = free_port(), free_port()
    bind, workers = [f"127.0.0.1:{own}"], None if alone else 1
    running = run(f"{APPS}:{app}", *options, "--monitor-port", str(port), bind=bind, workers=workers)
    if alone:
        wait_until(lambda: {port, own} <= listening_ports(), lambda: f"it serves: {running.stderr}")
    else:
        running.ready(1)
    for case in cases:
        play(("127.0.0.1", own), case)
    expected = dict.fromkeys(("1xx", "2xx", "3xx", "4xx", "5xx"), 0) | Counter(case.status for case in cases)
    expected |= {"requests": len(cases), "errors": sum(case.error for case in cases)}
    if "granian" not in kind:
        expected["disconnects"] = sum(case.disconnect for case in cases)
    counts = Counts(port)
    counts.are(expected, lambda: running.stderr)
    assert ("disconnects" in counts.now()) == ("granian" not in kind)
    counts.are({"requests_in_flight": 0}, lambda: running.stderr)
    raised = sum("LookupError" in line for line in running.stderr.splitlines())
    assert raised >= expected["errors"] - 1, running.stderr


def test_cut_streams_reach_the_threshold(run: Callable[..., Running]) -> None:
    """Streams whose clients leave are requests for `request_threshold`: the worker is recycled."""
    running = run(f"{APPS}:asgi", "--request-threshold", "3", "--threshold-jitter", "0", workers=1).ready(1)
    before = running.workers()[0]["pid"]
    for _ in range(3):
        play(running.address, SEEN[-1])
    wait_until(lambda: {each["pid"] for each in running.workers()} - {before}, lambda: running.stderr)
    assert "is recycled (request_threshold: 3)" in running.stderr


def test_tcp(run: Callable[..., Running]) -> None:
    """A TCP connection is no request; a handler that raises is an error, whatever becomes of loggers."""
    port = free_port()
    running = run(f"{APPS}:tcp", "--monitor-port", str(port), workers=1).ready(1)
    for said in (b"raise\n", b"fine\n", b"raise\n"):
        with socket.create_connection(running.address, timeout=30) as client:
            client.sendall(said)
            assert client.recv(1) == b""
    counts = Counts(port)
    counts.are({"errors": 2}, lambda: running.stderr)
    assert not {"requests", "2xx", "disconnects"} & counts.now().keys()
    assert "LookupError" in running.stderr
