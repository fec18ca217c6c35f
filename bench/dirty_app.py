"""gunicorn's dirty workers, measured as `talk_app` measures the alternatives: one app for both sides.

`/drive?lanes=N&seconds=S` calls in N lanes for S seconds, and answers with its results.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from gunicorn.dirty import DirtyApp
from gunicorn.dirty.client import DirtyClient, get_dirty_socket_path  # type: ignore[import-not-found]

from bench.driving import VALUE, drive

_Message = MutableMapping[str, Any]


class Get(DirtyApp):  # type: ignore[misc]
    """A dirty worker that answers each call with the same short text."""

    def get(self, key: str) -> str:
        """Return the value of any key."""
        return VALUE


async def app(
    scope: _Message, receive: Callable[[], Awaitable[_Message]], send: Callable[[_Message], Awaitable[None]]
) -> None:
    """Serve ASGI."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    found: dict[str, Any] = {}
    if scope["path"] == "/drive":
        asked = dict(parse_qsl(scope["query_string"].decode()))
        # A client takes one call at a time, so each lane has a client of its own.
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
