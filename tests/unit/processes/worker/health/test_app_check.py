"""The question whether an app is well: requests without a socket, validators that misbehave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from cluster2.processes.worker.health import app_check as module
from cluster2.processes.worker.health.app_check import (
    MAX_CHECK_BODY_BYTES,
    AppHealthCheck,
    HealthCheckFailed,
    Reply,
    ask_asgi,
    ask_rsgi,
    ask_wsgi,
)
from tests.unit.waiting import until

pytestmark = pytest.mark.anyio
FINE = Reply(200, [("x", "y")], b"fine")


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the time of a check in seconds: short where it must run out, long where it must not."""
    return lambda seconds: monkeypatch.setattr(module, "CHECK_TIMEOUT_S", seconds)


class Judge:
    """A check, and the reasons that it reported."""

    def __init__(self, validator: Any = None, *, cancellable: bool = True) -> None:
        self.reasons: list[str | None] = []
        self.check = AppHealthCheck(validator, cancellable=cancellable, on_change=self.reasons.append)
        self.asked = 0

    async def passes(self, reply: Reply | Exception = FINE) -> bool:
        async def ask() -> Reply:
            self.asked += 1
            if isinstance(reply, Exception):
                raise reply
            return reply

        return await self.check.passes(ask)


@pytest.mark.parametrize("status", [200, 204, 299])
async def test_fine(status: int) -> None:
    """Pass a status below 300 without a report."""
    judge = Judge()
    assert await judge.passes(Reply(status, [], b""))
    assert judge.reasons == []


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(300, [], b""), "it responded with 300"),
        (Reply(503, [], b""), "it responded with 503"),
        (HealthCheckFailed("it ended without a response"), "it ended without a response"),
        (ValueError("no table"), "it raised ValueError: no table"),
        (TimeoutError("of its own"), "it raised TimeoutError: of its own"),
    ],
)
async def test_unwell(reply: Reply | Exception, reason: str) -> None:
    """Fail for anything else; report the reason once, and the recovery once."""
    judge = Judge()
    assert not await judge.passes(reply)
    assert not await judge.passes(reply)
    assert judge.reasons == [reason]
    assert await judge.passes()
    assert judge.reasons == [reason, None]


async def test_slow(patience: Callable[[float], None]) -> None:
    """Cancel a request to an app that doesn't respond in time, and send another the next time."""
    patience(0.05)
    judge = Judge()
    cancelled = asyncio.Event()

    async def ask() -> Reply:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    assert not await judge.check.passes(ask)
    await asyncio.wait_for(cancelled.wait(), 10)
    assert judge.reasons == ["no result within 0.05 s"]
    patience(30)
    assert await judge.passes()


async def test_slow_in_a_thread(patience: Callable[[float], None]) -> None:
    """Begin no check before one that can't be cancelled has ended: one thread is stuck, not all."""
    patience(0.05)
    judge = Judge(cancellable=False)
    go = asyncio.Event()

    async def ask() -> Reply:
        await go.wait()
        return FINE

    assert not await judge.check.passes(ask)
    assert not await judge.passes()
    assert judge.asked == 0
    go.set()
    patience(30)
    await until(lambda: not judge.check._stuck)
    assert await judge.passes()


async def test_one_at_a_time() -> None:
    """Share the result of a check that is under way, also if the first caller is cancelled."""
    judge = Judge()
    go, asked = asyncio.Event(), 0

    async def ask() -> Reply:
        nonlocal asked
        asked += 1
        await go.wait()
        return FINE

    first = asyncio.ensure_future(judge.check.passes(ask))
    others = [asyncio.ensure_future(judge.check.passes(ask)) for _ in range(5)]
    await until(lambda: asked)
    first.cancel()
    go.set()
    assert await asyncio.gather(*others) == [True] * 5
    assert asked == 1


async def async_true(status: int, headers: dict[str, str], body: bytes) -> bool:
    return (status, headers, body) == (200, {"x": "y"}, b"fine")


def sync_true(status: int, headers: dict[str, str], body: bytes) -> bool:
    return (status, headers, body) == (
        200,
        {"x": "y"},
        b"fine",
    ) and threading.current_thread() is not threading.main_thread()


def raises(status: int, headers: dict[str, str], body: bytes) -> bool:
    raise KeyError("field")


def leaves(status: int, headers: dict[str, str], body: bytes) -> bool:
    raise SystemExit(3)


async def async_raises(status: int, headers: dict[str, str], body: bytes) -> bool:
    raise KeyError("field")


@pytest.mark.parametrize(
    ("validator", "reason"),
    [
        (async_true, None),
        (sync_true, None),
        (lambda *arguments: async_true(*arguments), None),
        (lambda *arguments: False, "ecv.validator rejected the response"),
        (lambda *arguments: None, "ecv.validator rejected the response"),
        (raises, "ecv.validator raised KeyError: 'field'"),
        (async_raises, "ecv.validator raised KeyError: 'field'"),
        (lambda *arguments: async_raises(*arguments), "ecv.validator raised KeyError: 'field'"),
        (leaves, "ecv.validator raised RuntimeError: SystemExit: 3"),
        (lambda status: True, "ecv.validator raised TypeError"),
    ],
)
async def test_validator(validator: Callable[..., Any], reason: str | None) -> None:
    """Call the validator with status, headers and body, sync (in a thread) or async; fail for a result that isn't true."""
    judge = Judge(validator)
    assert await judge.passes() is (reason is None)
    assert judge.reasons == ([] if reason is None else judge.reasons)
    if reason is not None:
        assert judge.reasons[0] is not None
        assert judge.reasons[0].startswith(reason)


async def test_threads_of_a_validator() -> None:
    """Let a sync validator start threads that are no daemons, although it runs in one that is."""
    found: list[bool] = []

    def validator(*arguments: object) -> bool:
        found.extend([threading.Thread().daemon, threading.current_thread() is threading.main_thread()])
        return True

    assert await Judge(validator).passes()
    assert found == [False, False]


async def test_no_thread_for_a_validator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where the system has no thread, without blaming the validator; pass when there is one again."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    judge = Judge(sync_true)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        assert not await judge.passes()
    assert await judge.passes()
    assert judge.reasons == ["no thread can be started for the check: can't start new thread", None]


async def test_validator_isnt_asked_about_a_failure() -> None:
    """Don't call the validator for a response of 300 or more."""
    judge = Judge(lambda *arguments: 1 // 0)
    assert not await judge.passes(Reply(500, [], b""))
    assert judge.reasons == ["it responded with 500"]


async def test_validator_that_never_ends(patience: Callable[[float], None]) -> None:
    """Block neither the loop nor more than one thread with a validator that hangs, however often checks come."""
    patience(0.05)
    go = threading.Event()
    calls: list[int] = []

    def stuck(*arguments: object) -> bool:
        calls.append(1)
        go.wait(30)
        return True

    judge = Judge(stuck)
    assert not await judge.passes()
    assert not await judge.passes()
    assert len(calls) == 1
    go.set()
    patience(30)
    await until(lambda: not judge.check._stuck)
    assert await judge.passes()


# ASGI

SCOPE = {
    "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 3000),
    "client": ("127.0.0.1", 1), "method": "GET", "path": "/root/ecv", "raw_path": b"/root/ecv", "root_path": "/root",
    "query_string": b"", "headers": [(b"host", b"me"), (b"authorization", b"secret")], "state": {"pool": 1},
}  # fmt: skip


async def asked(app: Any, target: str = "/a%20b?x=1") -> Reply:
    return await asyncio.wait_for(ask_asgi(app, SCOPE, "/root", target), 10)


async def test_asgi_request() -> None:
    """Send a GET of that path and query, with the lifespan's state, and without the client's credentials."""
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope)
        seen["message"] = await receive()
        scope["state"]["mine"] = 1
        await send({"type": "http.response.start", "status": 201, "headers": [(b"X-A", b"b")]})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await send({"type": "http.response.body", "body": b"2"})

    assert await asked(app) == Reply(201, [("x-a", "b")], b"12")
    assert (seen["method"], seen["path"], seen["raw_path"]) == ("GET", "/root/a b", b"/root/a%20b")
    assert seen["query_string"] == b"x=1"
    assert seen["headers"] == [(b"host", b"me"), (b"user-agent", b"cluster2-ecv")]
    assert seen["message"] == {"type": "http.request", "body": b"", "more_body": False}
    assert seen["state"]["pool"] == 1
    assert SCOPE["state"] == {"pool": 1}


async def test_asgi_listens_for_the_end() -> None:
    """Send the disconnection when the response is complete, not before."""
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        waiting = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        assert not waiting.done()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})
        heard.append((await waiting)["type"])

    assert (await asked(app)).status == 200
    await until(lambda: heard == ["http.disconnect"])


async def test_asgi_that_ends_without_an_answer() -> None:
    """Fail for an app that ends without a response; one that raises fails with its own error."""

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("broken")

    with pytest.raises(HealthCheckFailed, match="without a response"):
        await asked(silent)
    with pytest.raises(ValueError, match="broken"):
        await asked(broken)


async def test_asgi_answer_without_end() -> None:
    """Give up a body that is larger than any health check's."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        while True:
            await send({"type": "http.response.body", "body": b"x" * (MAX_CHECK_BODY_BYTES // 4), "more_body": True})

    with pytest.raises(HealthCheckFailed, match="more than"):
        await asked(app)


# RSGI


class Outer:
    """The scope of the health request."""

    proto, http_version, scheme, server, client = "http", "1.1", "http", "127.0.0.1:3000", "127.0.0.1:1"
    method, path, query_string, headers = "HEAD", "/ecv", "", {"host": "me"}


async def test_rsgi_answers() -> None:
    """Accept each way to respond; the scope is that of a GET with the rest of the outer one's."""

    async def text(scope: Any, protocol: Any) -> None:
        assert (scope.method, scope.path, scope.query_string, scope.scheme) == ("GET", "/a b", "x=1", "http")
        assert scope.headers.get("host") == "me"
        assert scope.headers.get_all("host") == ["me"]
        assert await protocol() == b""
        assert [piece async for piece in protocol] == []
        protocol.response_str(200, [("X-A", "b")], "ok")

    async def empty(scope: Any, protocol: Any) -> None:
        protocol.response_empty(204, [])

    async def stream(scope: Any, protocol: Any) -> None:
        transport = protocol.response_stream(200, [])
        await transport.send_bytes(b"1")
        await transport.send_str("2")

    async def file(scope: Any, protocol: Any) -> None:
        protocol.response_file(200, [], __file__)

    async def part(scope: Any, protocol: Any) -> None:
        protocol.response_file_range(206, [], __file__, 3, 6)

    async def silent(scope: Any, protocol: Any) -> None:
        pass

    assert await ask_rsgi(text, Outer(), "/a%20b?x=1") == Reply(200, [("x-a", "b")], b"ok")
    assert (await ask_rsgi(empty, Outer(), "/")).status == 204
    assert (await ask_rsgi(stream, Outer(), "/")).body == b"12"
    assert (await ask_rsgi(file, Outer(), "/")).body.startswith(b'"""The question')
    assert (await ask_rsgi(part, Outer(), "/")).body == b"The"
    with pytest.raises(HealthCheckFailed):
        await ask_rsgi(silent, Outer(), "/")


# WSGI

ENVIRON = {
    "REQUEST_METHOD": "POST", "PATH_INFO": "/ecv", "QUERY_STRING": "", "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "3000",
    "CONTENT_LENGTH": "3", "HTTP_HOST": "me", "HTTP_AUTHORIZATION": "secret", "wsgi.url_scheme": "http",
}  # fmt: skip


async def test_wsgi_request() -> None:
    """Call the app in a thread with a GET without a body and without the client's credentials, and close its result."""
    seen: dict[str, Any] = {}

    class Result(list[bytes]):
        def close(self) -> None:
            seen["closed"] = True

    def app(environ: Any, start_response: Any) -> Result:
        seen.update(environ)
        seen["input"] = environ["wsgi.input"].read()
        assert threading.current_thread() is not threading.main_thread()
        start_response("201 Created", [("X-A", "b")])(b"1")
        return Result([b"2", b"3"])

    assert await ask_wsgi(app, ENVIRON, "/%C3%A9?x=1") == Reply(201, [("x-a", "b")], b"123")
    assert (seen["REQUEST_METHOD"], seen["PATH_INFO"], seen["QUERY_STRING"]) == ("GET", "/\u00c3\u00a9", "x=1")
    assert (seen["HTTP_HOST"], seen["HTTP_USER_AGENT"], seen["input"], seen["closed"]) == (
        "me",
        "cluster2-ecv",
        b"",
        True,
    )
    assert not {"HTTP_AUTHORIZATION", "CONTENT_LENGTH"} & set(seen)


async def test_wsgi_that_misbehaves() -> None:
    """Fail for an app that starts no response, raises, or sends a body without end."""
    with pytest.raises(HealthCheckFailed, match="without a response"):
        await ask_wsgi(lambda environ, start_response: [b"x"], ENVIRON, "/")
    with pytest.raises(ZeroDivisionError):
        await ask_wsgi(lambda environ, start_response: [1 // 0], ENVIRON, "/")  # type: ignore[arg-type]

    def endless(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        while True:
            yield b"x" * (MAX_CHECK_BODY_BYTES // 4)

    with pytest.raises(HealthCheckFailed, match="more than"):
        await ask_wsgi(endless, ENVIRON, "/")
