"""The layer around an app: invisible, but for the requests that are measured."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cluster2.engines.base import Interface
from cluster2.processes.worker.instrumentation import wrap
from cluster2.processes.worker.sampling.steps import REQUESTS_PER_BURST, UNMEASURED_REQUESTS, StepSampler

pytestmark = pytest.mark.anyio
Message = dict[str, Any]


class Around:
    """A sampler whose reports go nowhere, and the calls that it gets."""

    def __init__(self, *, due: int = 0) -> None:
        self.took: list[float] = []
        self.watch = StepSampler(lambda step, now: None, 0.01, self.took.append)
        self.watch.due = due
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1

    def instrument(self, app: Any, interface: Interface) -> Any:
        return wrap(app, interface, self.watch, self.wake)


async def asgi_answer(headers: list[tuple[bytes, bytes]] | None, around: Around, kind: str = "http") -> list[Message]:
    """Return the messages that reach the engine for a response with these headers."""
    sent: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        start: Message = {"type": "http.response.start", "status": 200}
        await send(start if headers is None else {**start, "headers": headers})
        await send({"type": "http.response.body", "body": b"x"})

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    await around.instrument(app, Interface.ASGI)({"type": kind}, receive, send)
    return sent


async def test_serving() -> None:
    """Pass the engine's own `send` to the app while no sample is due, and return the app's awaitable as it is."""
    calls: list[tuple[Any, ...]] = []
    answer = object()
    wrapped = Around().instrument(lambda *arguments: calls.append(arguments) or answer, Interface.ASGI)
    scope, receive, send = {"type": "http"}, object(), object()
    assert wrapped(scope, receive, send) is answer
    assert calls == [(scope, receive, send)]


async def test_a_sample() -> None:
    """Serve a measured request as any other; it uses up one sample and wakes the worker."""
    around = Around(due=REQUESTS_PER_BURST)
    start, body = await asgi_answer([(b"x", b"1")], around)
    assert start["headers"] == [(b"x", b"1")]
    assert body["body"] == b"x"
    assert around.watch.due == REQUESTS_PER_BURST - 1
    assert around.woken == 1


async def test_a_sample_that_fails() -> None:
    """Pass on an exception of a measured handler as it is."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("no such key")

    with pytest.raises(LookupError, match="no such key"):
        await Around(due=1).instrument(app, Interface.ASGI)({"type": "http"}, None, None)


async def test_websockets_pass() -> None:
    """Measure no websocket: it may last for hours."""
    around = Around(due=5)
    start, _ = await asgi_answer([(b"x", b"1")], around, kind="websocket")
    assert start["headers"] == [(b"x", b"1")]
    assert around.watch.due == 5


@pytest.mark.parametrize("due", [0, 3])
async def test_stream_handlers(due: int) -> None:
    """Call a stream handler with its streams, measured or not, and pass on its exceptions as they are."""
    around = Around(due=due)
    called: list[tuple[Any, Any]] = []

    async def handler(reader: Any, writer: Any) -> None:
        called.append((reader, writer))
        raise LookupError("no such key")

    with pytest.raises(LookupError, match="no such key"):
        await around.instrument(handler, Interface.TCP)("reader", "writer")
    assert called == [("reader", "writer")]
    assert around.watch.due == max(0, due - 1)


def test_protocol_factories_are_not_wrapped() -> None:
    """Leave factories of protocols alone: the layer can't see the work of a protocol."""

    def factory() -> Any: ...

    assert Around(due=3).instrument(factory, Interface.TCP) is factory


class Ours:
    """A stand-in for the health checks' endpoint."""

    paths = frozenset({"/ecv", "/ecv/enable"})

    def __init__(self) -> None:
        self.asked: list[str] = []

    def asgi(self, *arguments: Any) -> None:
        self.asked.append("asgi")

    def rsgi(self, *arguments: Any) -> None:
        self.asked.append("rsgi")

    def wsgi(self, *arguments: Any) -> None:
        self.asked.append("wsgi")


async def test_health_checks() -> None:
    """Keep requests for the endpoint's paths from the app; pass on all others, websockets and lifespan events too."""

    class Rsgi:
        def __init__(self, path: str, proto: str = "http") -> None:
            self.path, self.proto = path, proto

    def environ(path: str) -> dict[str, str]:
        return {"PATH_INFO": path}

    cases: dict[Interface, tuple[list[Any], list[Any]]] = {
        Interface.ASGI: (
            [{"type": "http", "path": "/ecv"}, {"type": "http", "path": "/ecv/enable"}],
            [{"type": "http", "path": "/ecv/"}, {"type": "websocket", "path": "/ecv"}, {"type": "lifespan"}],
        ),
        Interface.RSGI: ([Rsgi("/ecv"), Rsgi("/ecv/enable")], [Rsgi("/"), Rsgi("/ecv", "ws")]),
        Interface.WSGI: ([environ("/ecv"), environ("/ecv/enable")], [environ("/ecv/disable")]),
    }
    for interface, (ours, others) in cases.items():
        around, ecv, reached = Around(), Ours(), 0

        def app(*arguments: Any) -> None:
            nonlocal reached
            reached += 1

        wrapped = wrap(app, interface, around.watch, around.wake, ecv)  # type: ignore[arg-type]
        more = (None, None) if interface is Interface.ASGI else (None,)
        for request in [*ours, *others]:
            wrapped(request, *more)
        assert ecv.asked == [interface.value] * len(ours)
        assert reached == len(others)


class Body:
    """A WSGI body of two parts."""

    closed = 0

    def __iter__(self) -> Iterator[bytes]:
        yield from (b"a", b"b")

    def close(self) -> None:
        self.closed += 1


async def test_rsgi_is_measured() -> None:
    """Measure HTTP requests by RSGI, and no websockets."""
    around = Around(due=UNMEASURED_REQUESTS + 2)

    async def app(scope: Any, protocol: Any) -> str:
        return "done"

    wrapped = around.instrument(app, Interface.RSGI)
    for _ in range(UNMEASURED_REQUESTS + 1):
        assert await wrapped(SimpleNamespace(path="/", proto="http"), None) == "done"
    assert await wrapped(SimpleNamespace(path="/", proto="ws"), None) == "done"
    assert len(around.took) == 1
    assert around.watch.due == 1
    assert around.woken == UNMEASURED_REQUESTS + 1


@pytest.mark.parametrize("result", [[b"ab"], (b"a", b"b"), Body(), iter([b"a", b"b"])])
async def test_wsgi_in_a_thread_is_measured(result: Any) -> None:
    """Measure a WSGI call up to the end of its body, which reaches the engine as it is, and is closed once."""
    around = Around(due=UNMEASURED_REQUESTS + 1)
    wrapped = around.instrument(lambda environ, start_response: result, Interface.WSGI)
    for _ in range(UNMEASURED_REQUESTS):
        assert await asyncio.to_thread(wrapped, {"PATH_INFO": "/"}, None) is result
    body = await asyncio.to_thread(wrapped, {"PATH_INFO": "/"}, None)
    if isinstance(result, list | tuple):
        assert body is result
    else:
        await asyncio.sleep(0)
        assert not around.took, "it hasn't ended yet"
        assert b"".join(body) == b"ab"
        await asyncio.to_thread(body.close)
    await asyncio.sleep(0)
    assert len(around.took) == 1
    assert getattr(result, "closed", 1) == 1
    assert wrapped({"PATH_INFO": "/"}, None) is result, "no sample is due any more"


async def test_wsgi_that_raises_is_measured() -> None:
    """Pass on an exception of the app as it is, and count the request."""
    around = Around(due=UNMEASURED_REQUESTS + 1)

    def app(environ: Any, start_response: Any) -> Any:
        raise LookupError("no such key")

    wrapped = around.instrument(app, Interface.WSGI)
    for _ in range(UNMEASURED_REQUESTS + 1):
        with pytest.raises(LookupError, match="no such key"):
            wrapped({"PATH_INFO": "/"}, None)
    await asyncio.sleep(0)
    assert len(around.took) == 1
