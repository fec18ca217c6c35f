"""Apps written by hand, in each shape that an app may have. Each answers `GET /` and `POST /echo`; by TCP, a line."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

Call = Callable[..., Any]

# ASGI


async def asgi_function(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body = b"hello"
    if scope["path"] == "/echo":
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class AsgiObject:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await asgi_function(scope, receive, send)


class AsgiClass:
    """Called, it is what is awaited."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.answer: Awaitable[None] = asgi_function(scope, receive, send)

    def __await__(self) -> Any:
        return self.answer.__await__()


def passing(app: Call) -> Call:
    """A decorator that isn't async itself."""

    @functools.wraps(app)
    def inner(*arguments: Any) -> Any:
        return app(*arguments)

    return inner


async def with_settings(greeting: bytes, scope: Any, receive: Any, send: Any) -> None:
    await asgi_function(scope, receive, send)


asgi_object = AsgiObject()
asgi_method = AsgiObject().__call__
asgi_partial = functools.partial(with_settings, b"hello")
asgi_decorated = passing(asgi_function)


# WSGI


def wsgi_function(environ: dict[str, Any], start_response: Call) -> Iterable[bytes]:
    echo = environ["PATH_INFO"] == "/echo"
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])) if echo else b"hello"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


class WsgiObject:
    def __call__(self, environ: dict[str, Any], start_response: Call) -> Iterable[bytes]:
        return wsgi_function(environ, start_response)


class WsgiClass:
    """Called, it is the response (PEP 3333)."""

    def __init__(self, environ: dict[str, Any], start_response: Call) -> None:
        self.body = wsgi_function(environ, start_response)

    def __iter__(self) -> Any:
        return iter(self.body)


wsgi_object = WsgiObject()
wsgi_decorated = passing(wsgi_function)

# RSGI


async def rsgi_function(scope: Any, protocol: Any) -> None:
    body = await protocol() if scope.path == "/echo" else b"hello"
    protocol.response_bytes(200, [("content-type", "text/plain")], body)


class RsgiObject:
    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        await rsgi_function(scope, protocol)

    def __call__(self, *arguments: Any) -> Any:
        raise NotImplementedError


rsgi_object = RsgiObject()

# TCP: a line comes back


async def tcp_function(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    writer.close()


class Lines(asyncio.Protocol):
    def __init__(self, greeting: bytes = b"") -> None:
        self.greeting = greeting

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.greeting + data)
        self.transport.close()


def tcp_factory() -> asyncio.Protocol:
    return Lines()


tcp_partial = functools.partial(Lines, b"")
tcp_decorated = passing(tcp_function)
