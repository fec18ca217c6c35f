"""Requests as tasks: what apps and frameworks expect of the task that they run in, also where it begins eagerly (Python 3.12)."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from fastapi import BackgroundTasks, FastAPI
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.unit.http_exchange import Message, Receive, Send, connect, exchange, feed, serving, settle

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
_user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


async def answer(send: Send, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def test_each_request_has_a_task_of_its_own() -> None:
    """`asyncio.current_task` is the request's: another for each, and never the one that brought the bytes."""
    seen: list[Any] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        seen.append(asyncio.current_task())
        await asyncio.sleep(0)
        assert asyncio.current_task() is seen[-1]
        async with asyncio.timeout(10):
            await answer(send, b"")

    async with serving(app) as engine:
        await exchange(engine, [GET, GET * 2, GET])
        assert engine.outcomes.errors() == 0
    assert len({*seen, asyncio.current_task()}) == 5
    assert None not in seen


@pytest.mark.parametrize("requests", [[GET, GET, GET], [GET * 3]], ids=["one by one", "pipelined"])
async def test_context_variables(requests: list[bytes]) -> None:
    """Context variables that a request sets are seen neither by the next one nor by the code that received the bytes."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        before = _user.get()
        _user.set("alice")
        await answer(send, before.encode())

    async with serving(app) as engine:
        assert (await exchange(engine, requests)).count(b"\r\n\r\nnobody") == 3
    assert _user.get() == "nobody"


async def test_structured_cancellation() -> None:
    """Cancel scopes and task groups of anyio work from the first step on."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        with anyio.move_on_after(0.001) as cancelled:
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                await anyio.sleep_forever()
        await answer(send, b"%d" % cancelled.cancelled_caught)

    async with serving(app) as engine:
        connection, transport = connect(engine)
        await feed(transport, [GET])
        while not transport.output:
            await asyncio.sleep(0.001)
        assert transport.output.endswith(b"\r\n\r\n1")
        assert connection.may_move()


async def test_a_request_that_is_cancelled() -> None:
    """At the end of the worker's time its task is cancelled and may clean up; nothing is logged as a failure."""
    cleaned: list[bool] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cleaned.append(True)

    async with serving(app) as engine:
        _, transport = connect(engine)
        await feed(transport, [b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n"])
        assert await engine.abort(1.0) == ["/held"]
        assert cleaned == [True]
        assert (engine.outcomes.errors(), transport.aborted, bytes(transport.output)) == (0, True, b"")


async def test_a_stream_whose_client_leaves() -> None:
    """Starlette's streams end when their client does: the generator is closed, background tasks don't run on its behalf."""
    closed: list[bool] = []

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    async def stream(request: Request) -> Response:
        return StreamingResponse(pieces())

    async with serving(Starlette(routes=[Route("/", stream)])) as engine:
        connection, transport = connect(engine)
        await feed(transport, [GET])
        assert b"x" in transport.output
        connection.connection_lost(ConnectionResetError())
        for _ in range(100):
            await settle()
            if closed and not engine.running:
                break
        assert closed == [True]
        assert not engine.running
        assert engine.outcomes.errors() == 0


async def test_background_tasks() -> None:
    """Background tasks run to their end behind the response, and the connection is free meanwhile."""
    gate, ran = asyncio.Event(), []
    app = FastAPI()

    async def later() -> None:
        await gate.wait()
        ran.append(True)

    @app.get("/")
    async def root(tasks: BackgroundTasks) -> dict[str, str]:
        tasks.add_task(later)
        return {"hello": "world"}

    async with serving(app) as engine:
        connection, transport = connect(engine)
        await feed(transport, [GET])
        assert transport.output.endswith(b'{"hello":"world"}')
        assert connection.may_move()
        assert not engine.idle()
        await feed(transport, [GET])
        assert transport.output.count(b'{"hello":"world"}') == 2
        gate.set()
        await settle()
        assert ran == [True, True]
        assert not engine.running


async def test_middleware_of_starlette() -> None:
    """`BaseHTTPMiddleware` runs the app in a task of its own, and listens for the client beside it."""

    async def root(request: Request) -> Response:
        return JSONResponse({"body": (await request.body()).decode()})

    async def call(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-seen"] = "yes"
        return response

    app = Starlette(routes=[Route("/", root, methods=["POST"])])
    app.add_middleware(BaseHTTPMiddleware, dispatch=call)
    async with serving(app) as engine:
        data = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab"
        output = await exchange(engine, [data[:-1], data[-1:], data])
        assert output.count(b"x-seen: yes") == 2
        assert output.count(b'{"body":"ab"}') == 2
        assert engine.outcomes.errors() == 0
