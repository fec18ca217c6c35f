"""The access log of real clusters: a line for each request that was answered, which no client can forge."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.system.clients import Connection, Load
from tests.system.harness import Running, wait_until

Serve = Callable[..., Running]

APP = str(Path(__file__).parents[1] / "apps" / "log_app.py")
WAYS = {
    "http": (":app",),
    "wsgi": (":wsgi",),
    "wsgi inline": (":wsgi", "--threads", "0"),
    "granian": (":app", "--engine", "granian"),
    "granian wsgi": (":wsgi", "--engine", "granian"),
}
QUICK = (("http", "text"), ("granian", "text"), ("wsgi", "json"))
LINE = re.compile(
    r"(?P<client>\S+) - - \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "
    r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/(?P<version>[\d.]+)" '
    r'(?P<status>\d{3}|-) (?P<bytes>\d+|-) "(?P<referer>[^"]*)" "(?P<agent>[^"]*)" (?P<seconds>\d+\.\d{6}) (?P<slot>\d+)'
)
EVIL, CLEAN = 'a"b\\c - - [x] "GET /forged HTTP/1.1" 200', r"a\x22b\x5cc - - [x] \x22GET /forged HTTP/1.1\x22 200"
ODD, ODD_CLEAN = "\t\u00e9", r"\x09\xc3\xa9"
"""Bytes that the parser lets pass."""


def serve(run: Serve, way: str, *options: str) -> Running:
    """A cluster that logs requests into a file."""
    target, *more = WAYS[way]
    return run(APP + target, "--log-to", "files", "--access-log", *more, *options).ready()


def lines(running: Running) -> list[str]:
    """All lines of the access log."""
    return (running.directory / "logs" / "access.log").read_text().splitlines()


@pytest.mark.parametrize(
    ("way", "form"),
    [
        *QUICK,
        *(pytest.param(*each, marks=pytest.mark.soak) for each in product(WAYS, ("text", "json")) if each not in QUICK),
    ],
)
def test_a_line_for_each(run: Serve, way: str, form: str) -> None:
    """Each request has one line that parses and has all fields, and any bytes of a client stay within their field."""
    running = serve(run, way, "--log-format", form)
    evil, clean = (EVIL, CLEAN) if way.startswith("granian") else (EVIL + ODD + EVIL, CLEAN + ODD_CLEAN + CLEAN)
    with Connection(running.address) as connection:
        connection.get("/first?a=1&b=%22")
        connection.get("/second", headers=f"User-Agent: {evil}\r\nReferer: {evil}\r\n")
        connection.send("/third", method="HEAD")
        connection.socket.recv(65536)
    wait_until(lambda: len(lines(running)) == 3, lambda: f"three lines: {lines(running)}")
    found = [parsed(each, form) for each in lines(running)]
    assert [each["path"] for each in found] == ["/first?a=1&b=%22", "/second", "/third"]
    assert [each["method"] for each in found] == ["GET", "GET", "HEAD"]
    assert {(each["client"], each["version"], each["status"]) for each in found} == {("127.0.0.1", "1.1", 200)}
    assert (found[1]["agent"], found[1]["referer"]) == (clean, clean)
    assert found[0]["agent"] in (None, "-")
    assert all(0 < each["seconds"] < 30 and each["slot"] in (0, 1) for each in found)
    if not way.startswith("granian"):  # which doesn't know the size of bodies
        assert [each["bytes"] for each in found] == [5, 5, 0]


@pytest.mark.parametrize("threads", ["0", "1"])
def test_status_and_size_of_what_wsgi_apps_answer(run: Serve, threads: str) -> None:
    """Each line has what its client got, on whatever way it was sent."""
    running = run(APP + ":answers", "--log-to", "files", "--access-log", "--threads", threads).ready()
    got = []
    asked = [("GET", path) for path in ("203", "204", "304", "parts", "raises")]
    for method, path in (*asked, ("HEAD", "203")):
        with Connection(running.address) as connection:
            connection.send(f"/{path}", method=method, headers="Connection: close\r\n")
            head, _, body = received(connection).partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head:
            body = b"".join(body.split(b"\r\n")[1::2])
        got.append((f"/{path}", int(head.split()[1]), len(body)))
    wait_until(lambda: len(lines(running)) == len(got), lambda: f"a line for each: {lines(running)}")
    found = [parsed(each, "text") for each in lines(running)]
    # Two workers write their lines at different times.
    assert Counter((each["path"], each["status"], each["bytes"]) for each in found) == Counter(got)
    assert [(status, size) for _, status, size in got] == [(203, 5), (204, 0), (304, 0), (200, 8), (500, 21), (203, 0)]


def received(connection: Connection) -> bytes:
    """All that the server sends until it closes."""
    return b"".join(iter(lambda: connection.socket.recv(65536), b""))


def parsed(line: str, form: str) -> dict[str, Any]:
    """The fields of a line."""
    if form == "json":
        entry: dict[str, Any] = json.loads(line)
        return entry
    match = LINE.fullmatch(line)
    assert match is not None, line
    numbers = {name: int(match[name]) for name in ("status", "bytes", "slot") if match[name] != "-"}
    return match.groupdict() | numbers | {"seconds": float(match["seconds"])}


def tell_one_to_leave(running: Running) -> None:
    """TERM to a worker, and wait until it has left."""
    leaver = running.workers()[0]["pid"]
    os.kill(leaver, signal.SIGTERM)
    wait_until(lambda: leaver not in {each["pid"] for each in running.workers()}, "it has left")


@pytest.mark.parametrize("way", ["http", *(pytest.param(each, marks=pytest.mark.soak) for each in ("wsgi", "granian"))])
def test_nothing_is_lost_at_a_drain(run: Serve, way: str) -> None:
    """Over a reload, a worker that retires, and the shutdown, there is exactly one line for each response."""
    running = serve(run, way)
    counts = []
    for keep_alive in (True, False):
        with Load(running.address, clients=4, keep_alive=keep_alive) as load:
            wait_until(lambda: load.counts.answered > 100, "it serves")
            if keep_alive:
                running.ask("reload")
            else:
                tell_one_to_leave(running)
            running.ready()
        assert not load.counts.failed
        counts.append(load.counts.answered)
    assert running.shutdown() == 0
    assert Counter(LINE.fullmatch(each) is not None for each in lines(running)) == {True: sum(counts)}
