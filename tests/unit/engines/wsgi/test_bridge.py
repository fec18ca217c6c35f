"""The bridge from WSGI, inside of the engine and over real connections: in threads, and inline."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from wsgiref.validate import validator

import pytest

from cluster2.config.settings import Settings
from cluster2.engines.aborting import reset
from cluster2.engines.base import AppContext, Interface
from cluster2.engines.http.http_engine import HttpEngine
from cluster2.engines.http.request import HttpRequest
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio
Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], None]]
BOTH = pytest.mark.parametrize("threads", [2, 0])


class Served:
    """An engine around a WSGI app."""

    def __init__(self, engine: HttpEngine) -> None:
        self.engine = engine

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        theirs.setblocking(False)
        await loop.connect_accepted_socket(self.engine.protocol, theirs)
        client = Client(*await asyncio.open_connection(sock=ours))
        try:
            yield client
        finally:
            reset(client.writer.transport)  # one that ends its side could still wait for its answer

    async def ask(self, request: bytes) -> tuple[str, bytes]:
        async with self.client() as client:
            client.writer.write(request)
            return await client.answer(head_only=request.startswith(b"HEAD"))


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> str:
        return (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE)).decode("latin-1").lower()

    async def chunk(self) -> bytes:
        size = int(await asyncio.wait_for(self.reader.readuntil(b"\r\n"), PATIENCE), 16)
        return (await asyncio.wait_for(self.reader.readexactly(size + 2), PATIENCE))[:-2]

    async def rest(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(), PATIENCE)

    async def answer(self, *, head_only: bool = False) -> tuple[str, bytes]:
        head = await self.head()
        body = b""
        if head_only or " 204 " in head or " 304 " in head:
            pass
        elif "transfer-encoding: chunked" in head:
            while part := await self.chunk():
                body += part
        else:
            length = int(head.split("content-length: ")[1].split("\r\n")[0])
            body = await asyncio.wait_for(self.reader.readexactly(length), PATIENCE)
        return head, body


@asynccontextmanager
async def serving(app: Any, threads: int = 2, **options: Any) -> AsyncIterator[Served]:
    """Serve the app; at the end nothing may be under way."""
    engine = HttpEngine(AppContext(app, Interface.WSGI, Settings(threads=threads, **options), None))
    await engine.start()
    try:
        yield Served(engine)
        await until(engine.idle, "threads or requests are under way")
    finally:
        await engine.stop()


def get(path: str = "/", *headers: str, method: str = "GET", body: bytes = b"", version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: test", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


class Body:
    """An iterable that notes its close."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts
        self.closed = 0

    def __iter__(self) -> Iterator[Any]:
        for part in self.parts:
            if isinstance(part, BaseException):
                raise part
            yield part() if callable(part) else part

    def close(self) -> None:
        self.closed += 1


def answering(body: Any, *headers: tuple[str, str], status: str = "200 OK") -> Any:
    def app(environ: Environ, start_response: Start) -> Any:
        start_response(status, list(headers))
        return body

    return app


@BOTH
async def test_requests_over_one_connection(threads: int) -> None:
    """Requests are answered over a kept connection, in their order when they come at once."""

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        start_response("200 OK", [("X-Where", threading.current_thread().name)])
        return [environ["PATH_INFO"].encode(), b"?", environ["QUERY_STRING"].encode()]

    async with serving(app, threads) as served, served.client() as client:
        client.writer.write(get("/one") + get("/two?x=1") + get("/three"))
        answers = [await client.answer() for _ in range(3)]
        assert [body for _, body in answers] == [b"/one?", b"/two?x=1", b"/three?"]
        assert ("x-where: wsgi-" in answers[0][0]) == bool(threads)
        assert "content-length: 5\r\n" in answers[0][0]


@BOTH
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT"])
async def test_the_reference_validator(threads: int, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The standard library's validator has nothing to object, whichever way the app answers."""

    def app(environ: Environ, start_response: Start) -> Any:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.errors"].write("noted\n")
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        if environ["PATH_INFO"] == "/write":
            write(b"written ")
        if environ["PATH_INFO"] == "/list":
            return [b"a", body]
        return iter([b"a", b"", body])

    payload = b"payload" if method in ("POST", "PUT") else b""
    headers = [f"Content-Length: {len(payload)}", "Content-Type: text/plain"] if payload else []
    async with serving(validator(app), threads) as served:
        for path, start in (("/list", b"a"), ("/generator", b"a"), ("/write", b"written a")):
            head, body = await served.ask(get(path, *headers, method=method, body=payload))
            assert head.startswith("http/1.1 200 ")
            assert body == (b"" if method == "HEAD" else start + payload)
    assert "was not closed" not in capsys.readouterr().err


@BOTH
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get(method="HEAD"), "200 OK"),
        (get(), "204 No Content"),
        (get(), "304 Not Modified"),
        (get(method="HEAD"), "304 Not Modified"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
async def test_no_body(threads: int, request_: bytes, status: str, whole: bool) -> None:
    """Where the answer has no body none is sent, the connection goes on, and close() is called."""
    bodies: list[Any] = []

    def app(environ: Environ, start_response: Start) -> Any:
        start_response(status, [("Content-Length", "5")])
        bodies.append([b"hello"] if whole else Body(b"hello", b"more", ValueError("nobody asked")))
        return bodies[-1]

    async with serving(app, threads) as served, served.client() as client:
        for _ in range(2):
            client.writer.write(request_)
            head, _ = await client.answer(head_only=True)
            assert head.startswith(f"http/1.1 {status[:3]} ")
            assert ("content-length: 5" in head) == (status[:3] != "204")
        assert whole or [body.closed for body in bodies] == [1, 1]


@BOTH
async def test_parts_go_out_at_once(threads: int) -> None:
    """A client has a part while the app makes the next one."""
    gate = threading.Event()

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"first"
        if threads:
            assert gate.wait(PATIENCE)
        yield b""
        yield b"second"

    async with serving(app, threads) as served, served.client() as client:
        client.writer.write(get())
        assert "transfer-encoding: chunked" in await client.head()
        assert await client.chunk() == b"first"
        gate.set()
        assert await client.chunk() == b"second"
        assert await client.chunk() == b""


@BOTH
async def test_a_complete_response_doesnt_wait(threads: int) -> None:
    """A body as long as declared is sent before close() has returned, in threads; inline it is sent after it."""
    gate = threading.Event()

    class Slow(Body):
        def close(self) -> None:
            super().close()
            assert not threads or gate.wait(PATIENCE)

    body = Slow(b"he", b"llo")
    async with serving(answering(body, ("Content-Length", "5")), threads) as served:
        assert (await served.ask(get()))[1] == b"hello"
        pool = served.engine._pool
        assert (0 if pool is None else pool.busy) == bool(threads)
        assert body.closed == 1
        gate.set()
    assert body.closed == 1


@BOTH
async def test_write(threads: int) -> None:
    """Parts that the app writes come before those that it returns."""

    def app(environ: Environ, start_response: Start) -> Any:
        write = start_response("200 OK", [])
        write(b"one ")
        write(b"two ")
        return [b"three", b" four"]

    async with serving(app, threads) as served:
        assert (await served.ask(get()))[1] == b"one two three four"


async def test_write_goes_out_at_once() -> None:
    """In threads what is written is sent before the app returns."""
    gate = threading.Event()

    def app(environ: Environ, start_response: Start) -> Any:
        start_response("200 OK", [])(b"early")
        assert gate.wait(PATIENCE)
        return []

    async with serving(app) as served, served.client() as client:
        client.writer.write(get())
        await client.head()
        assert await client.chunk() == b"early"
        gate.set()
        assert await client.chunk() == b""


@BOTH
async def test_exc_info(threads: int, caplog: pytest.LogCaptureFixture) -> None:
    """An error before the first part gets a response of its own; one after it ends the connection, logged."""

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [("X-First", "1")])
        if environ["PATH_INFO"] == "/late":
            yield b"part"
        try:
            raise ValueError("what the app raised")
        except ValueError:
            start_response("500 Own", [("X-Second", "1")], sys.exc_info())
        yield b"sorry"

    async with serving(app, threads) as served:
        head, body = await served.ask(get())
        assert head.startswith("http/1.1 500 ")
        assert ("x-first" in head, "x-second" in head, body) == (False, True, b"sorry")
        assert errors(caplog) == []
        async with served.client() as client:
            client.writer.write(get("/late"))
            assert (await client.head()).startswith("http/1.1 200 ")
            assert await client.rest() == b"4\r\npart\r\n"
    assert errors(caplog) == ["GET /late: the app raised ValueError"]
    assert "what the app raised" in caplog.text


def body_of(app: Any) -> Body | None:
    """Return the body that `answering` was given, if it is one that counts."""
    found = [cell.cell_contents for cell in app.__closure__ or ()]
    return next((each for each in found if isinstance(each, Body)), None)


def no_start(environ: Environ, start_response: Start) -> Any:
    return [b"x"]


def start_twice(environ: Environ, start_response: Start) -> Any:
    start_response("200 OK", [])
    start_response("200 OK", [])
    return []


def exits(environ: Environ, start_response: Start) -> Any:
    raise SystemExit(3)


def not_iterable(environ: Environ, start_response: Start) -> Any:
    start_response("200 OK", [])


@BOTH
@pytest.mark.parametrize(
    ("app", "says"),
    [
        (no_start, "without a call of start_response"),
        (start_twice, "start_response twice"),
        (exits, "raised SystemExit"),
        (not_iterable, "raised TypeError"),
        (answering(["text"]), "type str; it must be bytes"),
        (answering(Body("text")), "type str; it must be bytes"),
        (answering("text"), "type str; it must be bytes"),
        (answering(Body(ValueError("at once"))), "raised ValueError"),
        (answering([b"hello"], ("Content-Length", "4")), "longer than its Content-Length, 4"),
        (answering([b"hello"], ("Content-Length", "6")), "shorter than its Content-Length, 6"),
        (answering(Body(b"hello"), ("Content-Length", "4")), "longer than its Content-Length, 4"),
        (answering(Body(), ("Content-Length", "4")), "shorter than its Content-Length, 4"),
        (answering([b"x"], ("X", "a\r\nb: c")), "control character"),
        (answering([b"x"], status="101 Switching Protocols"), "status"),
    ],
)
async def test_apps_that_break_the_rules(app: Any, says: str, threads: int, caplog: pytest.LogCaptureFixture) -> None:
    """Before the first byte they are answered with 500, logged once with the request; the worker serves on."""
    body_ = body_of(app)
    closed = body_.closed if body_ else 0
    async with serving(app, threads) as served:
        for number in range(3):  # more than there are threads: they survive
            head, body = await served.ask(get(f"/a%0Ab?{number}"))
            assert head.startswith("http/1.1 500 ")
            assert body == b"Internal Server Error"
    assert body_ is None or body_.closed == closed + 3
    assert len(errors(caplog)) == 3
    assert errors(caplog)[0].startswith("GET /a%0Ab: ")
    assert says in errors(caplog)[0]


@BOTH
@pytest.mark.parametrize(
    ("parts", "headers", "sent", "says"),
    [
        ((b"he", ValueError("mid-body")), (), b"2\r\nhe\r\n", "raised ValueError"),
        ((b"he", "text"), (), b"2\r\nhe\r\n", "type str"),
        ((b"he",), (("Content-Length", "5"),), b"he", "shorter"),
        ((b"he", b"llo!"), (("Content-Length", "5"),), b"he", "longer"),
    ],
)
async def test_apps_that_break_off(
    parts: Any, headers: Any, sent: bytes, says: str, threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    """In mid-body the connection ends after what was given, so that the client sees that it isn't all."""
    body = Body(*parts)
    async with serving(answering(body, *headers), threads) as served, served.client() as client:
        client.writer.write(get("/x", method="POST"))
        await client.head()
        assert await client.rest() == sent
    assert body.closed == 1
    assert len(errors(caplog)) == 1
    assert says in errors(caplog)[0]
    assert errors(caplog)[0].startswith("POST /x: ")


@BOTH
async def test_errors_after_the_response(threads: int, caplog: pytest.LogCaptureFixture) -> None:
    """An error after the last byte is logged, and harms neither the response nor the connection."""

    class Bad(Body):
        def close(self) -> None:
            raise ValueError("in close")

    async with serving(answering(Bad(b"hello"), ("Content-Length", "5")), threads) as served:
        async with served.client() as client:
            for _ in range(3):
                client.writer.write(get())
                assert (await client.answer())[1] == b"hello"
        await until(lambda: len(errors(caplog)) == 3)
    assert set(errors(caplog)) == {"GET /: the app raised ValueError"}


def echo(environ: Environ, start_response: Start) -> Any:
    body = environ["wsgi.input"]
    data = b"".join(body) if environ["PATH_INFO"] == "/lines" else body.read()
    start_response("200 OK", [])
    return [data, b"|", body.read(), environ.get("CONTENT_LENGTH", "-").encode()]


@BOTH
@pytest.mark.parametrize("path", ["/", "/lines"])
@pytest.mark.parametrize("size", [0, 10, 65536, 65537, 600_000])
async def test_request_bodies(threads: int, size: int, path: str) -> None:
    """A body arrives as it was sent, whether it comes with the head, in memory, from disk, or is read on demand."""
    data = bytes(number % 251 for number in range(size))
    async with serving(echo, threads) as served, served.client() as client:
        for _ in range(2):
            client.writer.write(get(path, f"Content-Length: {size}", method="POST", body=data))
            assert (await client.answer())[1] == data + b"|" + str(size).encode()


@BOTH
async def test_chunked_requests(threads: int) -> None:
    """A chunked body has no length and an end."""
    body = b"5\r\nhello\r\n1;ext=1\r\n \r\n5\r\nworld\r\n0\r\nTrailer: x\r\n\r\n"
    async with serving(echo, threads) as served, served.client() as client:
        for _ in range(2):
            client.writer.write(get("/", "Transfer-Encoding: chunked", method="POST", body=body))
            assert (await client.answer())[1] == b"hello world|-"


async def test_bodies_are_read_on_demand() -> None:
    """While the app doesn't read, a client can send no more than a few buffers hold; what it sends arrives when it does."""
    gate = threading.Event()
    size = 30_000_000

    def app(environ: Environ, start_response: Start) -> Any:
        assert gate.wait(PATIENCE)
        got = sum(map(len, iter(lambda: environ["wsgi.input"].read(100_000), b"")))
        start_response("200 OK", [])
        return [str(got).encode()]

    async with serving(app) as served, served.client() as client:
        client.writer.write(get("/", f"Content-Length: {size}", method="PUT"))
        client.writer.write(bytes(size))
        drained = asyncio.ensure_future(client.writer.drain())
        await until(lambda: served.engine._pool is not None and served.engine._pool.busy == 1)
        left = client.writer.transport.get_write_buffer_size()
        for _ in range(50):
            await asyncio.sleep(0.002)
        assert client.writer.transport.get_write_buffer_size() > size // 4 > 0 < left
        gate.set()
        assert (await client.answer())[1] == str(size).encode()
        await drained


async def test_expect_continue() -> None:
    """100 Continue is sent when the app reads, and not if it answers without."""

    def app(environ: Environ, start_response: Start) -> Any:
        body = environ["wsgi.input"].read() if environ["PATH_INFO"] == "/read" else b"refused"
        start_response("200 OK", [])
        return [body]

    async with serving(app) as served:
        async with served.client() as client:
            client.writer.write(get("/read", "Content-Length: 5", "Expect: 100-continue", method="POST"))
            assert (await client.head()).startswith("http/1.1 100 ")
            client.writer.write(b"hello")
            assert (await client.answer())[1] == b"hello"
        async with served.client() as client:
            client.writer.write(get("/", "Content-Length: 5", "Expect: 100-continue", method="POST"))
            assert (await client.answer())[1] == b"refused"


async def test_back_pressure() -> None:
    """An app whose client doesn't read is held, and goes on when it does."""
    produced = 0
    part = b"x" * 50_000

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        nonlocal produced
        start_response("200 OK", [("Content-Length", str(400 * len(part)))])
        for _ in range(400):
            produced += 1
            yield part

    async with serving(app) as served, served.client() as client:
        client.writer.write(get())
        await client.head()
        await until(lambda: produced > 1)
        seen = 0
        while seen != produced:  # until it stands still
            seen = produced
            await asyncio.sleep(0.05)
        assert produced < 300
        assert len(await asyncio.wait_for(client.reader.readexactly(400 * len(part)), PATIENCE)) == 400 * len(part)
        assert produced == 400


@BOTH
async def test_clients_that_leave_during_the_response(threads: int, caplog: pytest.LogCaptureFixture) -> None:
    """An endless response ends when its client leaves, close() is called, and nothing is logged."""
    closed = threading.Event()

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            while True:
                if threads:
                    time.sleep(0.001)
                yield b"part"
        finally:
            closed.set()

    async with serving(app, threads) as served:
        async with served.client() as client:
            client.writer.write(get())
            await client.head()
        await until(closed.is_set)
    assert errors(caplog) == []


async def test_clients_that_leave_an_app_that_waits() -> None:
    """An app that is held by a client that doesn't read is let go when the client leaves; write() raises."""
    raised: list[BaseException] = []

    def app(environ: Environ, start_response: Start) -> Any:
        write = start_response("200 OK", [])
        try:
            while True:
                write(b"x" * 100_000)
        except BaseException as error:
            raised.append(error)
            raise

    async with serving(app) as served:
        async with served.client() as client:
            client.writer.write(get())
            await client.head()
        await until(lambda: raised)
    assert isinstance(raised[0], ConnectionResetError)


async def test_clients_that_leave_during_the_request(caplog: pytest.LogCaptureFixture) -> None:
    """An app that reads from a client that leaves sees an OSError; nothing is logged."""
    raised: list[BaseException] = []
    begun = threading.Event()

    def app(environ: Environ, start_response: Start) -> Any:
        begun.set()
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raised.append(error)
            raise
        return []

    async with serving(app) as served:
        async with served.client() as client:
            client.writer.write(get("/", "Content-Length: 1000000", method="POST", body=b"part"))
            await until(begun.is_set)
        await until(lambda: raised)
    assert errors(caplog) == []


@BOTH
async def test_clients_that_leave_before_the_call(threads: int) -> None:
    """An app isn't called for a request that its client never finished."""
    called: list[str] = []

    def app(environ: Environ, start_response: Start) -> Any:
        called.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        return [b"x"]

    async with serving(app, threads) as served:
        async with served.client() as client:
            client.writer.write(get("/never", "Content-Length: 10", method="POST", body=b"part"))
            await until(lambda: served.engine.stats().in_flight == 1)
        await until(served.engine.idle)
        await served.ask(get("/"))
    assert called == ["/"]


@pytest.mark.parametrize("size", [1, 300_000])
async def test_clients_that_leave_with_their_body_unread(size: int) -> None:
    """Streaming ends when the client leaves, also if the app doesn't read its body, however long that is."""
    closed = threading.Event()

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            while True:
                time.sleep(0.001)
                yield b"part"
        finally:
            closed.set()

    async with serving(app) as served:
        async with served.client() as client:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (size, b"x" * size)
            client.writer.write(get("/", "Transfer-Encoding: chunked", method="POST", body=body))
            await client.head()
        await until(closed.is_set)


async def test_reading_while_answering() -> None:
    """An app may answer what it reads, part by part."""

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        for line in environ["wsgi.input"]:
            yield line.upper()

    async with serving(app) as served, served.client() as client:
        client.writer.write(get("/", "Transfer-Encoding: chunked", method="POST"))
        for word in (b"one", b"two", b"three"):
            client.writer.write(b"%x\r\n%s\n\r\n" % (len(word) + 1, word))
            if word == b"one":
                await client.head()
            assert await client.chunk() == word.upper() + b"\n"
        client.writer.write(b"0\r\n\r\n")
        assert await client.chunk() == b""


async def test_input_of_a_request_that_is_over() -> None:
    """A reader that outlives its request gets an error, instead of waiting for ever."""
    kept: list[Any] = []

    def app(environ: Environ, start_response: Start) -> Any:
        kept.append(environ["wsgi.input"])
        start_response("200 OK", [("Connection", "close")])
        return [b"x"]

    async with serving(app) as served:
        await served.ask(get("/", "Transfer-Encoding: chunked", method="POST", body=b"1\r\nx\r\n"))
        await until(served.engine.idle)
        with pytest.raises(ValueError, match="the request is over"):
            kept[0].read()


@BOTH
async def test_file_wrapper(threads: int, tmp_path: Any) -> None:
    """Files are sent, and closed."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 1000)
    files: list[Any] = []

    def app(environ: Environ, start_response: Start) -> Any:
        start_response("200 OK", [("Content-Length", "256000")])
        files.append(path.open("rb"))
        return environ["wsgi.file_wrapper"](files[-1], 1000)

    async with serving(app, threads) as served:
        assert (await served.ask(get()))[1] == path.read_bytes()
        await until(served.engine.idle)
        await served.ask(get(method="HEAD"))
    assert [file.closed for file in files] == [True, True]


async def test_inline_answers_dont_mix() -> None:
    """One answer at a time inline: a request that comes during another's waits until that one is closed."""
    steps: list[str] = []

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        name = environ["PATH_INFO"]
        start_response("200 OK", [])
        for number in range(3):
            steps.append(f"{name}{number}")
            yield b"x" * 100_000
        steps.append(f"{name} end")

    async with serving(app, 0) as served:
        async with served.client() as one, served.client() as two:
            for client, name in ((one, "/a"), (two, "/b")):
                client.writer.write(get(name))
            await asyncio.gather(one.answer(), two.answer())
        assert served.engine.has_capacity()
    assert steps in (
        [f"{name}{step}" for name in order for step in ("0", "1", "2", " end")]
        for order in (["/a", "/b"], ["/b", "/a"])
    )


async def test_room() -> None:
    """There is capacity while a thread is free. When one is free again, the callback is called if capacity was denied."""
    gate = threading.Semaphore(0)
    told: list[bool] = []

    def app(environ: Environ, start_response: Start) -> Any:
        assert gate.acquire(timeout=PATIENCE)
        start_response("200 OK", [])
        return [b"x"]

    async with serving(app, 2) as served, served.client() as one, served.client() as two:
        served.engine.on_capacity(lambda: told.append(served.engine.has_capacity()))
        for client in (one, two):
            assert served.engine.has_capacity()
            client.writer.write(get())
            await until(lambda: served.engine._pool is not None and served.engine._pool.busy)
        await until(lambda: not served.engine.has_capacity())
        assert served.engine.oldest_request(time.monotonic() + 1) is not None
        assert told == []
        gate.release()
        await until(lambda: told)
        assert told == [True]
        gate.release()
        await asyncio.gather(one.answer(), two.answer())


async def test_a_thread_that_is_stuck() -> None:
    """A busy thread is seen although its client has left; the engine isn't idle, and stops all the same."""
    gate = threading.Event()

    def app(environ: Environ, start_response: Start) -> Any:
        gate.wait(PATIENCE)
        return []

    engine = HttpEngine(AppContext(app, Interface.WSGI, Settings(threads=1), None))
    await engine.start()
    served = Served(engine)
    try:
        async with served.client() as client:
            client.writer.write(get())
            await until(lambda: engine.stats().in_flight)
        await until(lambda: not engine.stats().connections)
        assert not engine.idle()
        assert engine.oldest_request(time.monotonic()) is not None
        await asyncio.wait_for(engine.stop(), PATIENCE)
    finally:
        gate.set()
    await until(engine.idle)


async def test_context_of_a_request() -> None:
    """Each request has a context of its own, also in a thread that others have used."""
    from contextvars import ContextVar

    variable: ContextVar[str] = ContextVar("variable", default="clean")
    seen: list[str] = []

    def app(environ: Environ, start_response: Start) -> Any:
        seen.append(variable.get())
        variable.set("soiled")
        start_response("200 OK", [])
        return []

    async with serving(app, 1) as served:
        for _ in range(3):
            await served.ask(get())
    assert seen == ["clean"] * 3


async def test_parts_that_come_fast_go_out_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that yields faster than the loop turns needn't wait for it, part by part."""
    sends: list[int] = []

    def app(environ: Environ, start_response: Start) -> Any:
        start_response("200 OK", [])
        return (b"x" for _ in range(10_000))

    send = HttpRequest.send

    async def counted(request: HttpRequest, message: Any) -> None:
        sends.append(len(message.get("body", b"")))
        await send(request, message)

    monkeypatch.setattr(HttpRequest, "send", counted)
    engine = HttpEngine(AppContext(app, Interface.WSGI, Settings(threads=1), None))
    await engine.start()
    assert (await Served(engine).ask(get()))[1] == b"x" * 10_000
    assert sum(sends) == 10_000
    assert len(sends) < 9_000
    await until(engine.idle)
    await engine.stop()
