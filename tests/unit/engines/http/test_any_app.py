"""Any app: its client gets a whole response or sees that it isn't whole, and the next response belongs to the next request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cluster2.engines.base import Interface
from tests.unit.http_exchange import Message, Receive, Send, connect, feed, serving

pytestmark = pytest.mark.anyio

NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
STATUSES = (200, 204, 304, 404)
PARTS = (b"", b"a", b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 20_000)
Step = tuple[Any, ...]


@dataclass
class Answered:
    """A response as a client reads it: `whole` if it has come to its end, `counted` if its head has declared where that is."""

    status: int
    body: bytes
    whole: bool
    ends: bool
    to_the_end: bool = False
    counted: bool = False


def read(data: bytes, method: str) -> tuple[Answered, bytes]:
    """Return the first response, and all that comes behind it."""
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), data[:200]
    lines = head.lower().split(b"\r\n")
    fields = [tuple(line.split(b": ", 1)) for line in lines[1:]]
    status, named = int(head[9:12]), dict(fields)
    assert len([name for name, *_ in fields if name in (b"content-length", b"transfer-encoding")]) <= 1, head
    ends = named.get(b"connection") == b"close"
    if method == "HEAD" or status in (204, 304):
        return Answered(status, b"", True, ends, counted=True), rest
    if b"content-length" in named:
        length = int(named[b"content-length"])
        return Answered(status, rest[:length], len(rest) >= length, ends, counted=True), rest[length:]
    if b"transfer-encoding" not in named:
        return Answered(status, rest, True, ends, to_the_end=True), b""
    body = b""
    while True:
        size, line_end, rest = rest.partition(b"\r\n")
        if not line_end:
            return Answered(status, body, False, ends), b""
        part, rest = rest[: int(size, 16)], rest[int(size, 16) :]
        body += part
        if rest[:2] != b"\r\n":
            assert not rest, rest[:100]
            return Answered(status, body, False, ends), b""
        rest = rest[2:]
        if size == b"0":
            return Answered(status, body, True, ends), rest


async def good(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"next"})


def judge(output: bytes, transport: Any, method: str, right: bytes | None) -> None:
    """Compare what a client got with what it should: `right` is the body if the app has done all as it should, else None."""
    assert output, "there is always a response"
    first, rest = read(output, method)
    told = transport.closed or transport.ended
    if not first.whole or (first.to_the_end and right is None and transport.aborted):
        assert right is None
        assert told
        assert not rest
        return
    if right is None and first.status != 500 and first.counted:
        assert told  # it is whole; what the app has done wrong behind that ends the connection
        assert not rest
        return
    if right is None:
        assert first.status == 500, "what isn't whole looks as if it were"
        assert first.ends
    else:
        assert first.status in STATUSES
        bodiless = method == "HEAD" or first.status in (204, 304)
        assert first.body == (b"" if bodiless else right)
    if first.ends:
        assert told
        assert not rest
    else:
        following, rest = read(rest, "GET")
        assert (following.status, following.body, following.whole, rest) == (200, b"next", True, b"")
        assert not told


# ASGI.

lengths = st.one_of(st.none(), st.sampled_from([0, 1, 2, 17, 20_000, 20_001]))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.sampled_from(STATUSES), lengths, st.booleans()),
        st.tuples(st.just("body"), st.sampled_from(PARTS), st.booleans()),
        st.tuples(st.just("receive")),
        st.tuples(st.just("sleep")),
        st.tuples(st.just("raise")),
        st.tuples(st.just("cancel")),
        st.tuples(st.just("other")),
    ),
    max_size=6,
)


async def play(script: list[Step], receive: Receive, send: Send) -> None:
    received = False
    for name, *args in script:
        match name:
            case "start":
                status, length, close = args
                headers = [] if length is None else [(b"content-length", b"%d" % length)]
                headers += [(b"connection", b"close")] if close else []
                await send({"type": "http.response.start", "status": status, "headers": headers})
            case "body":
                await send({"type": "http.response.body", "body": args[0], "more_body": args[1]})
            case "receive":
                if not received:  # the second one would wait for the client to leave
                    received = not (await receive()).get("more_body")
            case "sleep":
                await asyncio.sleep(0)
            case "raise":
                raise RuntimeError("on purpose")
            case "cancel":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.sleep(0)
            case "other":
                await send({"type": "http.response.trailers"})


def whole_body(script: list[Step], method: str) -> bytes | None:
    """Return the body of the response, if the script comes to its end before it does anything wrong."""
    body, begun, status, declared = b"", False, 0, None
    for name, *args in script:
        match name:
            case "start":
                if begun:
                    return None
                begun, status, declared = True, args[0], args[1]
            case "body":
                if not begun:
                    return None
                body += args[0]
                counted = declared is not None and method != "HEAD" and status not in (204, 304)
                if counted and (len(body) > declared or (not args[1] and len(body) < declared)):
                    return None
                if not args[1]:
                    return body
            case "raise" | "cancel" | "other":
                return None
    return None


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    script=steps,
    method=st.sampled_from(["GET", "HEAD", "POST"]),
    version=st.sampled_from(["1.1", "1.1", "1.0"]),
    sent=st.sampled_from(["all", "in parts", "expecting"]),
)
@example(
    script=[("start", 200, None, False), ("body", b"a", True), ("receive",), ("body", b"", False)],
    method="POST",
    version="1.1",
    sent="expecting",
)
async def test_any_asgi_app(script: list[Step], method: str, version: str, sent: str) -> None:
    """Messages in any order, errors and cancellations at any place."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await (good(send) if scope["path"] == "/next" else play(script, receive, send))

    body = b"z" * 100 if method == "POST" else b""
    lines = [f"{method} / HTTP/{version}", "Host: a", f"Content-Length: {len(body)}"]
    lines += ["Connection: keep-alive"] if version == "1.0" else []
    lines += ["Expect: 100-continue"] if sent == "expecting" else []
    head = "\r\n".join([*lines, "", ""]).encode()
    pieces = [head + body + NEXT] if sent == "all" else [head, body[:50], body[50:] + NEXT]
    async with serving(app) as engine:
        _, transport = connect(engine)
        await feed(transport, [piece for piece in pieces if piece])
        output = bytes(transport.output)
        while output.startswith(b"HTTP/1.1 100 "):
            output = output.partition(b"\r\n\r\n")[2]
        judge(output, transport, method, whole_body(script, method))


# WSGI.

wsgi_steps = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.sampled_from(STATUSES), lengths, st.booleans()),
        st.tuples(st.just("write"), st.sampled_from(PARTS)),
        st.tuples(st.just("raise")),
        st.tuples(st.just("read")),
    ),
    max_size=4,
)
endings = st.sampled_from(["list", "tuple", "generator", "late", "none", "text"])


class Closing:
    """An iterable whose `close` may raise."""

    def __init__(self, parts: Any, fails: bool) -> None:
        self._parts = iter(parts)
        self._fails = fails

    def __iter__(self) -> Any:
        return self._parts

    def close(self) -> None:
        if self._fails:
            raise RuntimeError("close, on purpose")


def perform(script: list[Step], parts: list[bytes], ending: str, fails: bool, environ: Any, start_response: Any) -> Any:
    write: Any = None

    def begin(status: int, length: int | None, again: bool) -> Any:
        headers = [] if length is None else [("content-length", str(length))]
        error = None
        if again:
            try:
                raise RuntimeError("reported")
            except RuntimeError as caught:
                error = (type(caught), caught, caught.__traceback__)
        return start_response(f"{status} Status", headers, *([error] if error else []))

    def late() -> Any:
        run(script)
        yield from parts

    def run(script: list[Step]) -> None:
        nonlocal write
        for name, *args in script:
            match name:
                case "start":
                    write = begin(*args)
                case "write":
                    if write is None:
                        raise RuntimeError("nothing to write to")
                    write(args[0])
                case "read":
                    environ["wsgi.input"].read()
                case "raise":
                    raise RuntimeError("on purpose")

    if ending == "late":
        return Closing(late(), fails)
    run(script)
    match ending:
        case "list":
            return list(parts)
        case "tuple":
            return tuple(parts)
        case "generator":
            return Closing(parts, fails)
        case "text":
            return [*parts, "text"]
    return None


def whole_wsgi_body(script: list[Step], parts: list[bytes], ending: str, method: str) -> bytes | None:
    """Return the body, if the app does nothing wrong before the response is whole; None also where that depends on timing."""
    body, status, declared, out = b"", 0, None, False
    for name, *args in [*script, *(("write", part) for part in parts)]:
        match name:
            case "start":
                if status and (out or not args[2]):
                    return None
                status, declared = args[0], args[1]
            case "write":
                if not status:
                    return None
                bodiless = method == "HEAD" or status in (204, 304)
                if args[0] and not bodiless:
                    out = True
                    body += args[0]
                    if declared is not None and len(body) > declared:
                        return None
            case "raise":
                return None
    if not status or ending in ("none", "text"):
        return None
    bodiless = method == "HEAD" or status in (204, 304)
    if declared is not None and not bodiless and len(body) != declared:
        return None
    return body


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    script=wsgi_steps,
    parts=st.lists(st.sampled_from(PARTS), max_size=3),
    ending=endings,
    fails=st.booleans(),
    method=st.sampled_from(["GET", "HEAD", "POST"]),
    version=st.sampled_from(["1.1", "1.1", "1.0"]),
    split=st.booleans(),
    threads=st.sampled_from([0, 2]),
)
async def test_any_wsgi_app(
    script: list[Step],
    parts: list[bytes],
    ending: str,
    fails: bool,
    method: str,
    version: str,
    split: bool,
    threads: int,
) -> None:
    """`start_response`, `write`, what is returned, and errors in any order and at any place, `close` included."""

    def app(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/next":
            start_response("200 OK", [])
            return [b"next"]
        return perform(script, parts, ending, fails, environ, start_response)

    body = b"z" * 100 if method == "POST" else b""
    lines = [f"{method} / HTTP/{version}", "Host: a", f"Content-Length: {len(body)}"]
    lines += ["Connection: keep-alive"] if version == "1.0" else []
    head = "\r\n".join([*lines, "", ""]).encode()
    async with serving(app, Interface.WSGI, threads=threads) as engine:
        _, transport = connect(engine)
        await feed(transport, [head + body[:10], body[10:] + NEXT] if split else [head + body + NEXT])
        for _ in range(400):
            if transport.closed or transport.ended or bytes(transport.output).endswith(b"next"):
                break
            await asyncio.sleep(0.005)
        right = whole_wsgi_body(script, parts, ending, method)
        output = bytes(transport.output)
        if right is not None or not output:
            judge(output, transport, method, right)
            return
        # An error behind a whole response harms no client. A response is whole by its declared length.
        first, rest = read(output, method)
        if first.whole and first.status != 500 and not first.to_the_end:
            assert (transport.closed or transport.ended) if not rest else read(rest, "GET")[0].body == b"next"
        else:
            judge(output, transport, method, None)
