"""Apps that stream without an end, and wait for nothing but `send`. `mark.begun` is there as soon as a stream has begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse as FastAPIStream
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route


async def endless(pause: float | None = None) -> AsyncIterator[bytes]:
    Path("mark.begun").touch()
    while True:
        yield b"x" * 100
        if pause is not None:
            await asyncio.sleep(pause)


async def stream(request: Request) -> StreamingResponse:
    return StreamingResponse(endless())


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


starlette_app = Starlette(routes=[Route("/stream", stream), Route("/", hello)])
fastapi_app = FastAPI()


@fastapi_app.get("/stream")
async def fastapi_stream() -> FastAPIStream:
    return FastAPIStream(endless())


@fastapi_app.get("/")
async def fastapi_hello() -> str:
    return "hello"


async def deaf(scope: Any, receive: Any, send: Any) -> None:
    """/stream, /slow: sends for ever, and never listens; /slow waits a while between two messages. /body: reads one then."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/body":
        async for chunk in endless(0.02):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            if Path("read").exists():
                break
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        await send({"type": "http.response.body", "body": body})
        return
    async for chunk in endless(0.05 if scope["path"] == "/slow" else None):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def renamed(scope: Any, receive: Any, send: Any) -> None:
    """The same, behind middleware that believes a proxy who the client is."""
    if scope["type"] == "http":
        scope["client"] = ("203.0.113.9", 4711)
    await deaf(scope, receive, send)


async def rsgi(scope: Any, protocol: Any) -> None:
    """The same for RSGI, which ends when a `send` raises; /swallows goes on."""
    if scope.proto != "http":
        return
    if scope.path == "/":
        protocol.response_str(200, [], "hello")
        return
    transport = protocol.response_stream(200, [])
    async for chunk in endless(0.05 if scope.path == "/slow" else None):
        try:
            await transport.send_bytes(chunk)
        except Exception:
            if scope.path != "/swallows":
                raise


rsgi.__rsgi__ = rsgi  # type: ignore[attr-defined]
