"""The access log: one line a request, in two forms, whatever a client puts into it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest

from cluster2.engines.access_log import MAX_HELD_LINES, AccessLog, GranianLogHandler

STAMP = r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]"


def scope(path: bytes = b"/a", query: bytes = b"", **headers: bytes) -> dict[str, Any]:
    """ASGI's of a request."""
    return {
        "type": "http",
        "client": ("192.0.2.7", 5000),
        "method": "GET",
        "path": path.decode("utf-8", "surrogateescape"),
        "raw_path": path,
        "query_string": query,
        "http_version": "1.1",
        "headers": [(name.replace("_", "-").encode(), value) for name, value in headers.items()],
    }


def written(act: Callable[[AccessLog], None], *, as_json: bool = False) -> str:
    """Return the lines that are written for a request."""
    pieces: list[bytes] = []
    log = AccessLog(3, as_json, pieces.append)
    act(log)
    log.flush()
    return b"".join(pieces).decode("ascii")


def test_combined() -> None:
    """Apache's format, with seconds and slot behind it; what isn't there is a dash."""
    asked = scope(b"/a/b", b"c=1", user_agent=b"curl/8", referer=b"http://x/")
    line = written(lambda log: log.add(asked, 200, 12, 0.25))
    assert re.fullmatch(
        rf'192\.0\.2\.7 - - {STAMP} "GET /a/b\?c=1 HTTP/1\.1" 200 12 "http://x/" "curl/8" 0\.250000 3\n', line
    ), line
    nothing = written(lambda log: log.add(scope() | {"client": None}, 0, None, 1.0))
    assert re.fullmatch(rf'- - - {STAMP} "GET /a HTTP/1\.1" - - "-" "-" 1\.000000 3\n', nothing), nothing


def test_json() -> None:
    """One object a line with the same facts."""
    asked = scope(b"/a/b", b"c=1", user_agent=b"curl/8")
    entry = json.loads(written(lambda log: log.add(asked, 404, 12, 0.25), as_json=True))
    assert abs(entry.pop("time") - logging.makeLogRecord({}).created) < 60
    assert entry == {
        "client": "192.0.2.7",
        "method": "GET",
        "path": "/a/b?c=1",
        "version": "1.1",
        "status": 404,
        "bytes": 12,
        "seconds": 0.25,
        "referer": None,
        "agent": "curl/8",
        "slot": 3,
    }


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "evil", [b'"', b"\\", b"\n", b"\r\n", b"\0", b"\x1b[2J", b"\x7f", b"\xff\xfe", "é\u2028".encode(), b'" 200 1 "-" "']
)
def test_nobody_forges_a_line_or_a_field(evil: bytes, as_json: bool) -> None:
    """Quotes, backslashes, control bytes and what isn't ASCII are escaped: a line stays a line, a field a field."""
    asked = scope(b"/" + evil, evil, user_agent=evil, referer=evil) | {"client": (evil.decode("latin-1"), 0)}
    text = written(lambda log: log.add(asked, 200, 1, 0.0), as_json=as_json)
    line = text.removesuffix("\n")
    assert line.isprintable()
    assert line.isascii()
    escaped = "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in evil)
    if as_json:
        entry = json.loads(line)
        assert (entry["path"], entry["agent"], entry["referer"]) == (f"/{escaped}?{escaped}", escaped, escaped)
    else:
        fields = re.fullmatch(rf'\S+.* - - {STAMP} "GET (.*) HTTP/1\.1" 200 1 "([^"]*)" "([^"]*)" 0\.000000 3', line)
        assert fields, line
        assert fields.groups() == (f"/{escaped}?{escaped}", escaped, escaped)


def test_lines_are_written_together() -> None:
    """With the tick, or when there are many."""
    pieces: list[bytes] = []
    log = AccessLog(0, False, pieces.append)
    for _ in range(MAX_HELD_LINES + 1):
        log.add(scope(), 200, 1, 0.0)
    assert [piece.count(b"\n") for piece in pieces] == [MAX_HELD_LINES]
    log.flush()
    log.flush()
    assert [piece.count(b"\n") for piece in pieces] == [MAX_HELD_LINES, 1]


@pytest.mark.parametrize("path", ["/ä", "/ä".encode().decode("latin-1")])
def test_granians_requests(path: str) -> None:
    """Lines of the same form; bodies' sizes aren't known."""
    told = {
        "addr": "192.0.2.7",
        "method": "GET",
        "path": path,
        "query_string": "q=1",
        "protocol": "HTTP/2",
        "status": 200,
    }
    told |= {"dt_ms": 250.0, "_h0": 'evil"\n', "_h1": "-"}
    record = logging.LogRecord("granian.access", logging.INFO, "", 0, "%(_h0)s", (told,), None)
    line = written(lambda log: GranianLogHandler(log).emit(record))
    assert line.startswith("192.0.2.7 - - [")
    assert line.endswith('"GET /\\xc3\\xa4?q=1 HTTP/2" 200 - "-" "evil\\x22\\x0a" 0.250000 3\n'), line
