"""The access log: one line a request, in two forms, whatever a client puts into it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest

from cluster2.engines.access import AHEAD, AccessLog, Handler, logged, noted
from cluster2.engines.wsgi_client import has_left

pytestmark = pytest.mark.anyio
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
    """What is written of it."""
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
    for _ in range(AHEAD + 1):
        log.add(scope(), 200, 1, 0.0)
    assert [piece.count(b"\n") for piece in pieces] == [AHEAD]
    log.flush()
    log.flush()
    assert [piece.count(b"\n") for piece in pieces] == [AHEAD, 1]


class Cycle:
    """What a server knows of a request; with a short cut for whole responses."""

    def __init__(self) -> None:
        self.disconnected = False
        self.could = True
        self.messages: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        """The client leaves."""
        self.disconnected = True
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        """Note it."""
        self.messages.append(message)


def answer(send: Any, status: int, headers: Any, body: bytes) -> bool:
    """The server's short cut."""
    if send.__self__.could:
        send.__self__.messages.append((status, body))
    return bool(send.__self__.could)


async def answered(app: Callable[..., Any], asked: dict[str, Any], cycle: Cycle) -> list[dict[str, Any]]:
    """What is logged of a request."""
    pieces: list[bytes] = []
    log = AccessLog(0, True, pieces.append)
    try:
        await logged(app, log)(asked, cycle.receive, cycle.send)
    except ZeroDivisionError:
        pass  # the engine's business
    log.flush()
    return [json.loads(line) for line in b"".join(pieces).splitlines()]


async def told(app: Callable[..., Any], asked: dict[str, Any], cycle: Cycle) -> list[tuple[int | None, int]]:
    """Of that, status and size."""
    return [(each["status"], each["bytes"]) for each in await answered(app, asked, cycle)]


async def test_what_is_logged_of_an_app() -> None:
    """Status and size of what it sent in pieces; else the 500 that the server sends; nothing of what isn't HTTP."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/fails":
            raise ZeroDivisionError
        if scope["path"] != "/silent":
            await send({"type": "http.response.start", "status": int(scope["path"][1:]), "headers": []})
            await send({"type": "http.response.body", "body": b"12345", "more_body": True})
            await send({"type": "http.response.body", "body": b"678"})

    assert await told(app, scope(b"/201"), Cycle()) == [(201, 8)]
    assert await told(app, scope(b"/201") | {"method": "HEAD"}, Cycle()) == [(201, 0)]
    assert await told(app, scope(b"/204"), Cycle()) == [(204, 0)]
    assert await told(app, scope(b"/304"), Cycle()) == [(304, 0)]
    assert await told(app, scope(b"/fails"), Cycle()) == [(500, 21)]
    assert await told(app, scope(b"/silent"), Cycle()) == [(500, 21)]
    assert await told(app, {"type": "lifespan", "path": "/silent"}, Cycle()) == []


async def test_what_is_logged_of_a_client_that_goes_away() -> None:
    """What was sent until then; no status if that was nothing, whatever the app says or raises afterwards."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/late":
            await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"12345", "more_body": True})
        await receive()
        await send({"type": "http.response.body", "body": b"678"})

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise ZeroDivisionError

    assert await told(app, scope(b"/"), Cycle()) == [(200, 5)]
    assert await told(app, scope(b"/late"), Cycle()) == [(None, 0)]
    assert await told(fails, scope(b"/"), Cycle()) == [(None, 0)]


async def test_a_whole_response_is_noted() -> None:
    """The server's short cut is taken through the log, which knows what went out by it; also that it could not be taken."""
    short = noted(answer)
    taken: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert not has_left(send)
        taken.append(short(send, 203, [], b"123"))

    cycle = Cycle()
    assert await told(app, scope(), cycle) == [(203, 3)]
    assert (taken, cycle.messages) == ([True], [(203, b"123")])
    cycle.could = False
    assert await told(app, scope(), cycle) == [(500, 21)]
    assert taken == [True, False]


async def test_no_short_cut_past_a_send_of_somebody_else() -> None:
    """Who calls the app with a `send` of its own, as a health check does, gets what is sent."""

    async def send(message: Any) -> None: ...

    assert not noted(answer)(send, 200, [], b"")
    assert not noted(answer)(Cycle().send, 200, [], b"")


async def test_the_log_tells_that_a_client_has_left() -> None:
    """The bridge of WSGI apps sees it through the log."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert has_left(send)

    assert await told(app, scope(), Cycle()) == [(None, 0)]


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
    line = written(lambda log: Handler(log).emit(record))
    assert line.startswith("192.0.2.7 - - [")
    assert line.endswith('"GET /\\xc3\\xa4?q=1 HTTP/2" 200 - "-" "evil\\x22\\x0a" 0.250000 3\n'), line
