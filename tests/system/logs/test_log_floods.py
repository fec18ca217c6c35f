"""Whatever clients and apps do wrong, as often as they like, the log has few lines of each kind of it."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections import Counter
from pathlib import Path

import pytest

from cluster2.core.token_bucket import LINES_INTERVAL_S, LINES_PER_INTERVAL
from tests.system.conftest import Serve
from tests.system.harness import Running, wait_until

APP = (Path(__file__).parents[1] / "apps" / "flood_app.py")
TIMES = 40
"""How often each thing is done: many more times than lines may tell of it."""
GET = "GET {} HTTP/1.1\r\nHost: test\r\n\r\n"
HANDSHAKE = (
    "GET /socket HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
WRONG = (
    "GET / HTTP/1.1\r\n\r\n",
    "BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/9.9\r\nHost: a\r\n\r\n",
    "\x16\x03\x01\r\n\r\n",
)
SWITCH = "POST /ecv/disable HTTP/1.1\r\nHost: test\r\nOrigin: http://evil.example\r\n\r\n"
PATHS = ("/talk", "/raise", "/nothing")


def does(address: tuple[str, int], request: str) -> None:
    """Send something, and wait for the end of what comes, or for its beginning where the connection stays open."""
    with socket.create_connection(address, 30) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(request.encode("latin-1"))
        connection.recv(1 << 16)


def kinds(text: str) -> Counter[str]:
    """Lines, tracebacks included, without what differs in each: numbers, addresses, and how many were left out."""
    plain = (
        re.sub(r"^\S+ \S+ \[\d+\] |[0-9]+|0x[0-9a-f]+|\(\S+ more like this.*", "", line) for line in text.splitlines()
    )
    return Counter(line for line in plain if line.strip(" ^~") and "Traceback" not in line)


def is_bounded(running: Running, processes: int, begun: float) -> None:
    """Each kind of line is there no more often than the limit lets through, in so many processes that write it."""
    found = kinds(running.stderr)
    most = processes * (LINES_PER_INTERVAL + (time.monotonic() - begun) / LINES_INTERVAL_S + 1)
    # One place in a library may be in the tracebacks of several kinds.
    assert {line: count for line, count in found.items() if count > 4 * most} == {}
    own = {line: count for line, count in found.items() if line.startswith(("warning", "error"))}
    assert {line: count for line, count in own.items() if count > most} == {}


@pytest.mark.parametrize(
    ("target", "options", "requests"),
    [
        ("asgi", (), [*map(GET.format, (*PATHS, "/short", "/orphan")), HANDSHAKE, SWITCH, *WRONG]),
        ("wsgi", (), [*map(GET.format, (*PATHS, "/short")), SWITCH, *WRONG]),
        ("wsgi", ("--threads", "0"), [*map(GET.format, (*PATHS, "/short"))]),
        ("asgi", ("--engine", "granian"), [*map(GET.format, PATHS), SWITCH]),
        ("wsgi", ("--engine", "granian"), [*map(GET.format, PATHS)]),
        ("rsgi", (), [*map(GET.format, PATHS)]),
        ("tcp", (), ["line\n"]),
        ("protocol", (), ["line\n"]),
    ],
    ids=["asgi", "wsgi", "wsgi-inline", "granian-asgi", "granian-wsgi", "granian-rsgi", "tcp", "protocol"],
)
def test_a_flood(run: Serve, target: str, options: tuple[str, ...], requests: list[str]) -> None:
    """Each of them many times: few lines tell of it, and one that comes a second later says how many were left out."""
    control = () if target in ("tcp", "protocol") else ("--ecv-control",)
    running = run(
        f"{APP}:{target}",
        "--setup",
        "flood_app:setup",
        *control,
        *options,
        workers=1,
        env={"PYTHONPATH": str(APP.parent)},
    ).ready(1)
    begun = time.monotonic()
    for request in requests:
        for _ in range(TIMES):
            does(running.address, request)
    is_bounded(running, 1, begun)

    def told() -> bool:
        for request in requests:
            does(running.address, request)
        return "more like this were left out" in running.stderr

    wait_until(told, lambda: f"what was left out is told:\n{running.stderr[-3000:]}")
    is_bounded(running, 1, begun)
