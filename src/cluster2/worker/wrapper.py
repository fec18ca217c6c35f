"""What cluster2 adds around an app: one thin layer, alike on every engine.

While a worker serves, the layer is one test of a flag and returns the app's own awaitable: nothing is wrapped, nothing is
counted here (engines count already, and the worker's tick reads them). Only while it drains does it touch a response: each
says `Connection: close`, so that the client sends its next request elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..engines.base import Interface
from .life import Life

Call = Callable[..., Any]


def wrap(app: Call, interface: Interface, life: Life) -> Call:
    """The app as its engine shall see it."""
    match interface:
        case Interface.ASGI:
            return _asgi(app, life)
        case Interface.WSGI:
            return _wsgi(app, life)
        case _:
            return app


def _asgi(app: Call, life: Life) -> Call:
    def wrapped(scope: Any, receive: Call, send: Call) -> Any:
        if life.draining and scope["type"] == "http":
            send = _closing(send)
        return app(scope, receive, send)

    return wrapped


def _closing(send: Call) -> Call:
    def sending(message: Any) -> Any:
        if message["type"] == "http.response.start":
            headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"connection"]
            message = {**message, "headers": [*headers, (b"connection", b"close")]}
        return send(message)

    return sending


def _wsgi(app: Call, life: Life) -> Call:
    def wrapped(environ: Any, start_response: Call) -> Any:
        if not life.draining:
            return app(environ, start_response)

        def starting(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            return start_response(status, [*headers, ("Connection", "close")], *exc_info)

        return app(environ, starting)

    return wrapped
