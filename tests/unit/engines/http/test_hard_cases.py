"""Cases that were wrong once: what happens in the middle of something else."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest

from cluster2.engines.base import Interface
from cluster2.engines.client_timeouts import WaitingFor
from cluster2.engines.http.connection import HttpConnection as HttpConnection
from cluster2.engines.http.limits import MAX_SLICE_BYTES
from cluster2.engines.http.request import HttpRequest as HttpRequest
from tests.unit.http_exchange import Message, Receive, Send, connect, exchange, feed, serving, settle

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
_user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


def post(size: int, path: bytes = b"/") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (path, size) + b"x" * size


def begins(status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": []}


def part(data: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def answering(transport: Any, count: int, needle: bytes = b"HTTP/1.1 ") -> bytes:
    """All output, when it has so many of these, or when nothing more comes."""
    for _ in range(200):
        await asyncio.sleep(0.005)
        if bytes(transport.output).count(needle) >= count:
            break
    return bytes(transport.output)


async def leaky(scope: Message, receive: Receive, send: Send) -> None:
    """Respond with the value of a context variable, and set it. The body isn't read."""
    before = _user.get()
    _user.set("alice")
    await send(begins())
    await send(part(before.encode()))


def leaky_wsgi(environ: Any, start_response: Any) -> Any:
    before = _user.get()
    _user.set("alice")
    start_response("200 OK", [])
    return [before.encode()] if environ["PATH_INFO"] == "/" else iter([before.encode()])


@pytest.mark.parametrize(
    "data",
    [GET * 100, post(100_000) + GET, (post(100_000) + GET) * 3, GET + post(30_000) + GET],
    ids=["many", "a body that isn't read", "several of them", "mixed"],
)
async def test_contexts_in_a_pipeline(data: bytes) -> None:
    """However requests come behind each other, none sees the context variables of the one before."""
    async with serving(leaky) as engine:
        _, transport = connect(engine)
        await feed(transport, [data])
        count = data.count(b"HTTP/1.1")
        assert (await answering(transport, count)).count(b"\r\n\r\nnobody") == count
    assert _user.get() == "nobody"


@pytest.mark.parametrize("path", [b"/", b"/parts"])
@pytest.mark.parametrize("threads", [0, 2])
async def test_contexts_in_a_pipeline_of_wsgi(threads: int, path: bytes) -> None:
    """WSGI calls don't see each other's context variables, in threads and inline, in one piece or in parts."""
    async with serving(leaky_wsgi, Interface.WSGI, threads=threads) as engine:
        _, transport = connect(engine)
        await feed(transport, [(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path + post(5000, path)) * 5])
        output = await answering(transport, 10, b"nobody")
        assert (output.count(b"nobody"), output.count(b"alice")) == (10, 0)


@pytest.mark.parametrize("threads", [0, 2])
async def test_context_of_a_stream(threads: int) -> None:
    """The parts of a WSGI response are made, and closed, in the context in which the app was called."""

    def app(environ: Any, start_response: Any) -> Any:
        token = _user.set("bob")
        start_response("200 OK", [])

        def parts() -> Any:
            try:
                for _ in range(3):
                    yield _user.get().encode()
            finally:
                _user.reset(token)

        return parts()

    async with serving(app, Interface.WSGI, threads=threads) as engine:
        _, transport = connect(engine)
        await feed(transport, [GET])
        assert (await answering(transport, 1, b"0\r\n\r\n")).count(b"bob") == 3
        assert engine.outcomes.errors() == 0


@pytest.mark.parametrize("rest", [b"", b"\r\n", GET], ids=["nothing", "an empty line", "a request"])
async def test_what_waits_is_not_moved(rest: bytes) -> None:
    """A connection with bytes that aren't parsed yet isn't between two requests, though its response is complete."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0)
        await send(begins())
        await send(part(b""))

    freed: list[bool] = []
    async with serving(app) as engine:
        connection, transport = connect(engine)
        engine.report_freed(lambda each: freed.append(each.may_move() and bool(each._unparsed)))  # type: ignore[attr-defined]
        head = post(0)
        size = 5 * MAX_SLICE_BYTES - len(head) - 4  # so that a slice ends exactly with the body
        data = post(size)
        assert len(data) == 5 * MAX_SLICE_BYTES
        await feed(transport, [data + rest])
        await settle()
        assert bytes(transport.output).count(b"HTTP/1.1 200") == 1 + rest.count(b"GET")
        assert freed
        assert not any(freed)
        assert connection.may_move()


async def test_what_waits_is_not_swept() -> None:
    """A drain without any grace doesn't close it either: the response has said that the connection may go on."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0)
        await send(begins())
        await send(part(b""))
        engine.drain(moving=False)
        engine.close_idle(0.0)

    async with serving(app) as engine:
        _, transport = connect(engine)
        size = 5 * MAX_SLICE_BYTES - len(post(0)) - 4
        await feed(transport, [post(size) + GET])
        await settle()
        assert bytes(transport.output).count(b"HTTP/1.1 200") == 2
        assert bytes(transport.output).count(b"connection: close") == 1
        assert transport.closed or transport.ended


async def test_continue_behind_a_head() -> None:
    """An app that reads the body when a part of its response is out gets it; no 100 Continue comes within the response."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(begins())
        await send(part(b"one", more=True))
        message = await receive()
        await send(part(message["body"]))

    async with serving(app) as engine:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        output = await exchange(engine, [head, b"two"])
        assert output.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")


@pytest.mark.parametrize("done", [False, True], ids=["the client has left", "behind the response"])
async def test_an_app_that_receives_for_ever(done: bool) -> None:
    """An app that goes on receiving gets a disconnect each time, and other tasks get their turns."""
    ended = False

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if done:
            await send(begins())
            await send(part(b""))
        for _ in range(100_000):
            await receive()
            if ended:
                return
        raise AssertionError("the loop was held")

    async with serving(app) as engine:
        connection, transport = connect(engine)
        await feed(transport, [GET])
        if not done:
            connection.connection_lost(None)
        await settle()
        ended = True
        for _ in range(100):
            await asyncio.sleep(0.01)
            if not engine.running:
                break
        assert not engine.running
        assert engine.outcomes.errors() == 0


async def test_a_body_that_stalls_in_a_response_without_end() -> None:
    """Where the end of the connection is the end of the body, a client that is given up sees a reset, not an end."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(begins())
        await send(part(b"one", more=True))
        await receive()
        await receive()

    async with serving(app) as engine:
        connection, transport = connect(engine)
        await feed(transport, [b"POST / HTTP/1.0\r\nContent-Length: 9\r\n\r\nabc"])
        assert (wait := connection.waits()) is not None
        assert wait.what is WaitingFor.BODY
        connection.give_up(WaitingFor.BODY)
        await settle()
        assert transport.aborted


@pytest.mark.parametrize("how", ["asgi", "threads", "inline"])
async def test_nothing_waits_for_the_garbage_collector(how: str) -> None:
    """When a connection is lost, it and its requests are gone: to find cycles is a fifth of what a connection costs."""
    wsgi = {} if how == "asgi" else {"threads": 2 if how == "threads" else 0}
    interface = Interface.WSGI if wsgi else Interface.ASGI

    def left() -> int:
        # Not isinstance(): objects of other libraries compute what they pass for.
        return sum(issubclass(type(each), HttpConnection | HttpRequest) for each in gc.get_objects())

    async with serving(leaky_wsgi if wsgi else leaky, interface, **wsgi) as engine:
        gc.collect()
        gc.disable()
        try:
            before = left()
            for data in (GET, GET * 3, post(10), post(100_000) + GET):
                connection, transport = connect(engine)
                await feed(transport, [data])
                await answering(transport, data.count(b"HTTP/1.1"))
                transport.close()
                await settle()
                transport.protocol = None
                del connection, transport
            await settle()
            assert left() - before <= 2  # a thread may still have its last call in hand
        finally:
            gc.enable()


class Lines:
    """An access log that keeps status and size."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def add(self, scope: Message, status: int, size: int, took: float) -> None:
        self.seen.append((status, size))


@pytest.mark.parametrize("stalls", [False, True], ids=["the client ends its side", "the client stalls"])
async def test_what_is_logged_of_a_body_that_never_came(stalls: bool) -> None:
    """The access log has the error that the client got in place of the app's answer."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass

    async with serving(app) as engine:
        log = Lines()
        engine.access = log  # type: ignore[assignment]
        connection, transport = connect(engine)
        await feed(transport, [b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc"], half_close=not stalls)
        if stalls:
            connection.give_up(WaitingFor.BODY)
        body = bytes(transport.output).partition(b"\r\n\r\n")[2]
        assert log.seen == [(408 if stalls else 400, len(body))]


async def test_scheme_of_each_request() -> None:
    """Each request through a trusted proxy has its own scheme, also if the proxy names no client."""

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return [f"<{environ['wsgi.url_scheme']} {environ.get('HTTPS')}>".encode()]

    https = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\n\r\n"
    http = https.replace(b"https", b"http")
    async with serving(app, Interface.WSGI, threads=0) as engine:
        for pieces in ([https, GET, http], [GET, https, http]):
            output = await exchange(engine, pieces)
            assert output.count(b"<https on>") == 1
            assert output.count(b"<http None>") == 2


async def test_depth_of_a_pipeline() -> None:
    """A slice full of heads that ask for another protocol takes no more of the stack than one."""
    upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: b\r\nConnection: upgrade\r\n\r\n"
    count = MAX_SLICE_BYTES // len(upgrade)

    def deep(depth: int, call: Callable[[], None]) -> None:
        if depth:
            deep(depth - 1, call)
        else:
            call()

    async with serving(leaky) as engine:
        connection, transport = connect(engine)
        deep(sys.getrecursionlimit() // 2, lambda: connection.data_received(upgrade * count))
        assert (await answering(transport, count)).count(b"HTTP/1.1 200") == count
