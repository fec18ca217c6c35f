"""Requests at the edges of HTTP/1.1 (`corpus`): what we answer, and where uvicorn and gunicorn answer otherwise.

Our answers are those of the corpus, from ASGI and from WSGI apps. The other servers' answers are the same, or stand in
`UVICORN` and `GUNICORN` with the reason of the difference.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.differential.conversation import converse
from tests.differential.corpus import CASES, GET, LAST, POST, THEN, UPGRADES, Case
from tests.system.harness import Running, clean_environment, command, wait_until

APPS = Path(__file__).with_name("echo_site.py")
Address = tuple[str, int]
Differences = dict[str, dict[str, tuple[str, ...]]]
"""Of another server: by reason, the cases with its answers. No answers: it isn't asked; it gives none, or only by chance."""

UVICORN: Differences = {
    "a coding that isn't known is ignored (RFC 9112, 6.1 says 501)": {
        "codings: another coding before chunked": ("200 POST /a 0 ", THEN),
    },
    "chunks of HTTP/1.0 are taken (RFC 9112, 6.1: the framing is faulty)": {
        "codings: chunks over HTTP/1.0": (POST,),
    },
    "extensions and trailers have no bound": {
        "chunks: long extensions": ("200 POST /a 1 a", THEN),
        "chunks: many trailers": (POST, THEN),
    },
    "a head has no bound": {
        "fields: many fields": (GET, THEN),
        "fields: a long field": (GET, THEN),
        "fields: a long name": (GET, THEN),
    },
    "each error is a 400": {
        "lines: an absolute target without a path": ("400",),
        "lines: CONNECT": ("400",),
        "lines: a small method": ("400",),
        "lines: an unknown method": ("400",),
        "lines: a long method": ("400",),
        "lines: HTTP/1.2": ("400",),
        "lines: HTTP/3.7": ("400",),
        "lines: a space before": ("400",),
        "lines: a TLS client": ("400",),
        "lines: a method that is no token": ("400",),
        "lines: a long target": ("400",),
    },
    "the target isn't looked at": {
        "lines: GET *": ("200 GET * 0 ", THEN),
    },
    "requests without a version, or of HTTP/2.0, are taken": {
        "lines: no version": (GET,),
        "lines: HTTP/0.9": (GET,),
        "lines: HTTP/2.0": (GET,),
    },
    "Host isn't looked at (RFC 9112, 3.2: 400)": {
        "hosts: no host": (GET, THEN),
        "hosts: two hosts": (GET, THEN),
        "hosts: the same host twice": (GET, THEN),
        "hosts: hosts in one line": (GET, THEN),
        "hosts: a host with a slash": (GET, THEN),
        "hosts: a host with a space": (GET, THEN),
        "hosts: a host with a user": (GET, THEN),
    },
    "connections of HTTP/1.0 aren't kept alive": {
        "endings: HTTP/1.0, kept alive": (GET,),
    },
    "a client that ends its side gets nothing more": {
        "endings: it ends its side after three": (),
        "endings: it ends its side in a body": (),
        "endings: it ends its side in chunks": (),
        "endings: it ends its side in a head": (),
        "endings: the client ends its side": (),
        "endings: it ends its side after a body": (),
        "endings: it ends its side, HTTP/1.0": (),
    },
    "100 Continue is sent although the body has come, and to HTTP/1.0": {
        "expectations: a body that doesn't wait": ("100", POST, THEN),
        "expectations: an expectation of HTTP/1.0": ("100", POST),
    },
    "expectations that aren't known are ignored": {
        "expectations: another expectation": (POST, THEN),
        "expectations: two expectations": (POST, THEN),
    },
    "an upgrade to websocket of HTTP/1.0 is a handshake": {
        "upgrades: an upgrade to websocket of HTTP/1.0": ("400",),
    },
    "a request with an Upgrade that isn't honoured loses its body, and nothing behind it is answered": {
        f"upgrades: {case.name}": () for case in UPGRADES if case.name != "an upgrade to websocket of HTTP/1.0"
    },
}
GUNICORN: Differences = {
    "a tab behind a coding is taken away, as it should be (RFC 9110, 5.5)": {
        "codings: a tab behind a coding": (POST, THEN),
    },
    "an extension has a bound": {
        "chunks: extensions of small chunks": ("400",),
    },
    "numbers have no bound: it waits for such a body": {
        "lengths: a length above 64 bits": (),
        "lengths: a length of many digits": (),
        "chunks: a size above 64 bits": (),
    },
    "a coding that isn't known is 501, also where chunked isn't the last one": {
        "codings: an unknown coding": ("501",),
        "codings: chunked and more": ("501",),
        "codings: chunked with a parameter": ("501",),
        "codings: chunked in quotes": ("501",),
        "codings: an empty coding": ("501",),
        "codings: an empty coding and a length": ("501",),
    },
    "gzip is taken as it is, and ends the connection": {
        "codings: another coding before chunked": ("200 POST /a 0 ",),
    },
    "forbidden trailers are refused; they are dropped by us": {
        "chunks: a trailer that poses as Host": ("400",),
    },
    "trailers are bounded as fields are": {
        "chunks: many trailers": ("431",),
    },
    "one empty line is taken before a request": {
        "lines: empty lines before": ("400",),
    },
    "the path of an absolute target may be empty": {
        "lines: an absolute target without a path": ("200 GET  0 ", THEN),
    },
    "methods are the app's business, if they are written in capitals": {
        "lines: CONNECT": ("200 CONNECT 443 0 ",),
        "lines: a small method": ("400",),
        "lines: an unknown method": ("200 FOO /a 0 ", THEN),
        "lines: a long method": ("414",),
    },
    "other versions are a 400, or no answer": {
        "lines: HTTP/1.2": ("cut",),
        "lines: HTTP/2.0": ("400",),
        "lines: HTTP/3.7": ("400",),
        "lines: no version": ("400",),
        "lines: HTTP/0.9": ("400",),
    },
    "the first line is taken apart exactly": {
        "lines: two spaces": ("400",),
        "lines: GET over RTSP": ("400",),
        "lines: a space before": ("400",),
        "lines: a TLS client": ("400",),
        "lines: a method that is no token": ("400",),
    },
    "Host isn't looked at, but for a second one (RFC 9112, 3.2: 400)": {
        "hosts: no host": (GET, THEN),
        "hosts: hosts in one line": (GET, THEN),
        "hosts: a host with a slash": (GET, THEN),
        "hosts: a host with a space": (GET, THEN),
        "hosts: a host with a user": (GET, THEN),
    },
    "`close` is only found if it stands alone": {
        "endings: close in a list": (GET, THEN),
        "endings: close in a second line": (GET, THEN),
        "upgrades: an upgrade and close": (POST, THEN),
    },
    "a body that ends early is the app's to notice, and a head that does isn't answered": {
        "endings: it ends its side in a body": (POST,),
        "endings: it ends its side in chunks": (),
        "endings: it ends its side in a head": (),
    },
    "100 Continue is sent although the body has come": {
        "expectations: a body that doesn't wait": ("100", POST, THEN),
    },
}


@contextmanager
def uvicorn(directory: Path) -> Iterator[Address]:
    options = ["--http", "httptools", "--port", "0", "--app-dir", str(APPS.parent)]
    argv = [sys.executable, "-m", "uvicorn", *options, "echo_site:asgi"]
    with _running(argv, directory, r"running on http://127\.0\.0\.1:(\d+)") as address:
        yield address


@contextmanager
def gunicorn(directory: Path) -> Iterator[Address]:
    options = ["--threads", "4", "--bind", "127.0.0.1:0", "--pythonpath", str(APPS.parent), "--no-control-socket"]
    argv = [sys.executable, "-m", "gunicorn", *options, "echo_site:wsgi"]
    with _running(argv, directory, r"Listening at: http://127\.0\.0\.1:(\d+)(?s:.*)Booting worker") as address:
        yield address


@contextmanager
def _running(argv: list[str], directory: Path, pattern: str) -> Iterator[Address]:
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(argv, cwd=directory, stdout=output, stderr=output, env=clean_environment({}))
    try:
        found = wait_until(lambda: re.search(pattern, log.read_text()), lambda: f"it listens: {log.read_text()}")
        yield "127.0.0.1", int(found[1])
    finally:
        process.terminate()
        process.wait(30)


SERVERS = {"uvicorn": (uvicorn, UVICORN), "gunicorn": (gunicorn, GUNICORN)}


@pytest.fixture(scope="module", params=["asgi", "wsgi in threads", "wsgi inline"])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """One app in one worker of cluster2."""
    directory = tmp_path_factory.mktemp("cluster2")
    app, _, how = request.param.partition(" ")
    options = {"": [], "in threads": ["--threads", "8"], "inline": ["--threads", "0"]}[how]
    argv = command(
        "run", f"{APPS}:{app}", "--engine", "http", "--bind", "127.0.0.1:0", "--monitor-port", "0", "-w", "1", *options
    )
    running = Running(argv, directory)
    try:
        running.ready(1)
        yield running.tcp_addresses()[0]
    finally:
        running.close()
    running.assert_gone()


@pytest.fixture(scope="module", params=SERVERS)
def theirs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Address, Differences]]:
    """Another server, and where it differs."""
    start, differences = SERVERS[request.param]
    with start(tmp_path_factory.mktemp(request.param)) as address:
        yield address, differences


def asked(address: Address, case: Case) -> tuple[str, ...]:
    segments = case.segments if case.half_close else (*case.segments[:-1], case.segments[-1] + LAST)
    return tuple(converse(address, segments, half_close=case.half_close))


@pytest.mark.parametrize("name", CASES)
def test_ours(ours: Address, name: str) -> None:
    """Each request has the answer that HTTP asks for, and what follows is answered, or not, as it should be."""
    assert asked(ours, CASES[name]) == CASES[name].answers


@pytest.mark.parametrize("name", CASES)
def test_theirs(theirs: tuple[Address, Differences], name: str) -> None:
    """Another server answers the same, or as is known."""
    address, differences = theirs
    known = {case: answers for cases in differences.values() for case, answers in cases.items()}
    expected = known.get(name, CASES[name].answers)
    if expected or name not in known:
        # Where something is left unread the end is a reset, which may overtake the answer: then it is asked again.
        assert expected in (asked(address, CASES[name]) for _ in range(10))


@pytest.mark.parametrize("differences", [UVICORN, GUNICORN], ids=["uvicorn", "gunicorn"])
def test_differences_are_differences(differences: Differences) -> None:
    """Each case that is said to differ exists, once, and differs."""
    names = [case for cases in differences.values() for case in cases]
    assert len(names) == len(set(names))
    for cases in differences.values():
        for name, answers in cases.items():
            assert answers != CASES[name].answers
