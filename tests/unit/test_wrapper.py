"""The layer around an app: invisible while the worker serves, `Connection: close` while it drains."""

from __future__ import annotations

from typing import Any

import pytest

from cluster2.engines.base import Interface
from cluster2.worker.life import Life
from cluster2.worker.wrapper import wrap

pytestmark = pytest.mark.anyio
Message = dict[str, Any]


def life(*, draining: bool) -> Life:
    return Life(1, 0, 1, draining)


async def asgi_answer(headers: list[tuple[bytes, bytes]] | None, lives: Life, kind: str = "http") -> list[Message]:
    """What reaches the engine of a response with these headers."""
    sent: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        start: Message = {"type": "http.response.start", "status": 200}
        await send(start if headers is None else {**start, "headers": headers})
        await send({"type": "http.response.body", "body": b"x"})

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    await wrap(app, Interface.ASGI, lives)({"type": kind}, receive, send)
    return sent


async def test_asgi_serving() -> None:
    """While the worker serves, the app is given the engine's own `send`, and its awaitable is returned as it is."""
    calls: list[tuple[Any, ...]] = []
    answer = object()
    wrapped = wrap(lambda *arguments: calls.append(arguments) or answer, Interface.ASGI, life(draining=False))
    scope, receive, send = {"type": "http"}, object(), object()
    assert wrapped(scope, receive, send) is answer
    assert calls == [(scope, receive, send)]


async def test_asgi_draining() -> None:
    """While it drains, the head of each response says that the connection ends; the body passes untouched."""
    start, body = await asgi_answer([(b"content-type", b"text/plain")], life(draining=True))
    assert start["headers"] == [(b"content-type", b"text/plain"), (b"connection", b"close")]
    assert start["status"] == 200
    assert body == {"type": "http.response.body", "body": b"x"}


async def test_asgi_draining_replaces_what_the_app_said() -> None:
    """An app's own `Connection` header, however it is written, gives way; one without headers gets them."""
    start, _ = await asgi_answer([(b"Connection", b"keep-alive"), (b"x", b"1")], life(draining=True))
    assert start["headers"] == [(b"x", b"1"), (b"connection", b"close")]
    start, _ = await asgi_answer(None, life(draining=True))
    assert start["headers"] == [(b"connection", b"close")]


async def test_asgi_the_apps_message_is_not_changed() -> None:
    """The app's own message and list of headers stay as they are: it may send them again."""
    headers = [(b"x", b"1")]
    await asgi_answer(headers, life(draining=True))
    assert headers == [(b"x", b"1")]


async def test_asgi_websockets_pass() -> None:
    """A websocket's denial response, and a lifespan, are not touched."""
    start, _ = await asgi_answer([(b"x", b"1")], life(draining=True), kind="websocket")
    assert start["headers"] == [(b"x", b"1")]


@pytest.mark.parametrize("draining", [False, True])
def test_wsgi(draining: bool) -> None:
    """A WSGI response says that the connection ends while the worker drains, and only then."""
    started: list[tuple[Any, ...]] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("X", "1")])
        return [b"x"]

    wrapped = wrap(app, Interface.WSGI, life(draining=draining))
    assert wrapped({}, lambda *arguments: started.append(arguments)) == [b"x"]
    assert started == [("200 OK", [("X", "1"), ("Connection", "close")] if draining else [("X", "1")])]


def test_wsgi_exc_info_passes() -> None:
    """The third argument of `start_response`, and its result, pass through."""
    error = (ValueError, ValueError("x"), None)
    started: list[tuple[Any, ...]] = []
    results: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        results.append(start_response("500 Oh", [], error))
        return []

    def start_response(*arguments: Any) -> str:
        started.append(arguments)
        return "write"

    wrap(app, Interface.WSGI, life(draining=True))({}, start_response)
    assert started == [("500 Oh", [("Connection", "close")], error)]
    assert results == ["write"]


def test_others_are_not_wrapped() -> None:
    """TCP handlers are the engine's to drain."""

    def app(reader: Any, writer: Any) -> None: ...

    assert wrap(app, Interface.TCP, life(draining=True)) is app
