"""Apps that answer with what they were asked: method, path, query, and body."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def described(method: str, path: str, query: str, body: bytes) -> bytes:
    """One line: a request that was smuggled shows up as an answer of its own."""
    target = path.encode("latin-1", "replace").decode("latin-1") + (f"?{query}" if query else "")
    return f"{method} {target} {len(body)} {body[:40].decode('latin-1')}".encode("latin-1")


async def asgi(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    path = scope["path"].encode("utf-8", "surrogateescape").decode("latin-1")
    answer = described(scope["method"], path, scope["query_string"].decode("latin-1"), body)
    headers = [(b"content-length", b"%d" % len(answer)), (b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def wsgi(environ: Any, start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = environ["wsgi.input"].read()
    answer = described(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"], body)
    start_response("200 OK", [("Content-Length", str(len(answer))), ("Content-Type", "text/plain")])
    return [answer]
