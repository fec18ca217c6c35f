"""Says what it was told of the client: its address, the scheme, the server's port."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any


def said(client: str, scheme: str, port: object) -> bytes:
    return json.dumps({"client": client, "scheme": scheme, "port": str(port or "")}).encode()


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """For ASGI."""
    assert scope["type"] == "http"
    body = said((scope["client"] or ("",))[0], scope["scheme"], (scope["server"] or ("", ""))[1])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """For WSGI."""
    start_response("200 OK", [])
    return [said(environ["REMOTE_ADDR"], environ["wsgi.url_scheme"], environ["SERVER_PORT"])]


async def rsgi(scope: Any, protocol: Any) -> None:
    """For RSGI."""
    protocol.response_bytes(200, [], said(scope.client, scope.scheme, ""))
