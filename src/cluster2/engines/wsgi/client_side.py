"""The client of a WSGI app, as the bridge sees it: its request's body, its response, and the log of its request's failure."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from .pep3333 import Environ, Response, WsgiViolation

MAX_READ_AHEAD_BYTES = 65536
"""Bytes of a response that an app may be ahead of its client, and of a request's body that may be ahead of the app."""

Message = dict[str, Any]
Receive = Callable[[], Any]
Send = Callable[[Message], Any]
Answer = Callable[[Response, bytes], bool]
"""A function that sends a whole response with its body, without `send`. It returns whether that was possible."""
DISCONNECT_MESSAGE: Message = {"type": "http.disconnect"}

logger = logging.getLogger("cluster2.wsgi")


class Failed(Exception):
    """The request has failed, and the failure was logged: the server has only to end it. The text is the reason."""


class ClientLeft(Failed):
    """The request has failed because its client left, and by no fault of the app."""


def log(error: BaseException, request: str) -> str:
    """Log an app's error, with the request (`describe_request`). Return the reason."""
    reason = str(error) if isinstance(error, WsgiViolation) else f"the app raised {type(error).__name__}"
    logger.error("%s: %s", request, reason, exc_info=error)
    return reason


def describe_request(environ: Environ) -> str:
    """Return method and path of a request. The path is the raw one, which has no line ends that could forge a log line."""
    # `get` and `str`, since the app may have changed its environ in any way.
    path = str(environ.get("RAW_URI", "")).partition("?")[0].encode("ascii", "replace").decode()
    return f"{environ.get('REQUEST_METHOD', '')} {path}"


async def send_head(response: Response, send: Send) -> None:
    """Send the head of a response."""
    await send({"type": "http.response.start", "status": response.status, "headers": response.headers})


def client_has_left(send: Send) -> bool:
    """Return whether the client of a request has left. It asks the request itself, so it works without a call of `receive`."""
    return bool(getattr(getattr(send, "__self__", None), "disconnected", False))


def no_short_cut(response: Response, body: bytes) -> bool:
    """Send nothing: the server has no function that sends a whole response."""
    return False


async def send_whole(response: Response, body: bytes, send: Send, answer: Answer) -> None:
    """Send a response whose body is complete."""
    if (response.complete or response.bodiless) and answer(response, body):
        return
    await send_head(response, send)
    await send({"type": "http.response.body", "body": body})


class RequestBody:
    """The body of a request, for an app that may read it, and a watch for the client's disconnect meanwhile."""

    def __init__(self, receive: Receive, gone: Callable[[], None]) -> None:
        """Begin without a message.

        Args:
            receive: ASGI's.
            gone: called when the client leaves during the watch.
        """
        self._receive = receive
        self._gone = gone
        self._early: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._left = False

    def watch(self) -> None:
        """Watch for the client's disconnect from now on. Messages that come meanwhile are kept, up to a limit."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._watch())

    async def next(self) -> Message:
        """Return the next message that has a part of the body, or ends it."""
        while True:
            if self._early:
                return self._early.popleft()
            if self._left:
                return DISCONNECT_MESSAGE
            if self._task is not None and not self._task.done():
                self._arrived.clear()
                await self._arrived.wait()
                continue
            self._task = None
            message: Message = await self._receive()
            if message.get("body") or not message.get("more_body"):
                return message

    def close(self) -> None:
        """End the watch."""
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        early = 0
        while early < MAX_READ_AHEAD_BYTES:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._left = True
                self._arrived.set()
                self._gone()
                return
            self._early.append(message)
            early += len(message.get("body", b""))
            self._arrived.set()
