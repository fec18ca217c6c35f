"""gunicorn's dirty workers, measured as `talk_app` measures the others: one app for both sides.

`/drive?lanes=N&seconds=S` calls in N lanes for so long, and answers with what it found.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from gunicorn.dirty import DirtyApp
from gunicorn.dirty.client import DirtyClient, get_dirty_socket_path  # type: ignore[import-not-found]

from bench.driving import VALUE, drive

Message = MutableMapping[str, Any]


class Get(DirtyApp):  # type: ignore[misc]
    """Answers each call with the same short text."""

    def get(self, key: str) -> str:
        """The value of any key."""
        return VALUE


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """The ASGI application."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    found: dict[str, Any] = {}
    if scope["path"] == "/drive":
        asked = dict(parse_qsl(scope["query_string"].decode()))
        # A client takes one call at a time, so each lane has one.
        idle = [DirtyClient(get_dirty_socket_path()) for _ in range(int(asked["lanes"]))]

        async def call() -> Any:
            client = idle.pop()
            try:
                return await client.execute_async("bench.dirty_app:Get", "get", "key")
            finally:
                idle.append(client)

        await call()
        found = await drive(call, int(asked["lanes"]), float(asked["seconds"]))
    body = json.dumps(found).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
