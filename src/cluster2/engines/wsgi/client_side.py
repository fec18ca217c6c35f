"""The client of a WSGI app, as the bridge sees it: what it sends, what it gets, and what is said of its request when it fails."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from .pep3333 import Environ, Response, WsgiViolation

MAX_READ_AHEAD_BYTES = 65536
"""Bytes of a response that an app may be ahead of its client; and of a request that may come before the app asks for them."""

Message = dict[str, Any]
Receive = Callable[[], Any]
Send = Callable[[Message], Any]
Answer = Callable[[Response, bytes], bool]
"""Sends a whole response, with its body, past `send`; returns whether it could."""
DISCONNECT_MESSAGE: Message = {"type": "http.disconnect"}

logger = logging.getLogger("cluster2.wsgi")


class Failed(Exception):
    """The request has failed, and it was logged: the server has only to end it. The text says why."""


class ClientLeft(Failed):
    """It has failed because its client left, and by no fault of the app."""


def log(error: BaseException, asked: str) -> str:
    """Log what went wrong, with the request (`asked_for`); returns what."""
    what = str(error) if isinstance(error, WsgiViolation) else f"the app raised {type(error).__name__}"
    logger.error("%s: %s", asked, what, exc_info=error)
    return what


def asked_for(environ: Environ) -> str:
    """Return method and path of a request. The path is the raw one: it has no line ends to forge a log with."""
    path = str(environ.get("RAW_URI", "")).partition("?")[0].encode("ascii", "replace").decode()
    return f"{environ.get('REQUEST_METHOD', '')} {path}"  # the app may have done with it as it likes


async def send_head(response: Response, send: Send) -> None:
    """Send the head."""
    await send({"type": "http.response.start", "status": response.status, "headers": response.headers})


def has_left(send: Send) -> bool:
    """Whether the client of a request has left, as the server itself sees it: also where nobody listens any more."""
    return bool(getattr(getattr(send, "__self__", None), "disconnected", False))


def no_short_cut(response: Response, body: bytes) -> bool:
    """There is none."""
    return False


async def send_whole(response: Response, body: bytes, send: Send, answer: Answer) -> None:
    """Send a response that is all there."""
    if (response.complete or response.bodiless) and answer(response, body):
        return
    await send_head(response, send)
    await send({"type": "http.response.body", "body": body})


class RequestBody:
    """What a client sends, for an app that may ask for it, while somebody wants to know whether the client is still there."""

    def __init__(self, receive: Receive, gone: Callable[[], None]) -> None:
        """Nothing is received yet.

        Args:
            gone: called when the client has left while we listened.
        """
        self._receive = receive
        self._gone = gone
        self._early: deque[Message] = deque()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._left = False

    def listen(self) -> None:
        """Notice from now on when the client leaves. What it sends meanwhile is kept, up to a bound."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._listen())

    async def next(self) -> Message:
        """The next message that has a body or ends it."""
        while True:
            if self._early:
                return self._early.popleft()
            if self._left:
                return DISCONNECT_MESSAGE
            if self._task is not None and not self._task.done():
                self._news.clear()
                await self._news.wait()
                continue
            self._task = None
            message: Message = await self._receive()
            if message.get("body") or not message.get("more_body"):
                return message

    def close(self) -> None:
        """Listen no more."""
        if self._task is not None:
            self._task.cancel()

    async def _listen(self) -> None:
        early = 0
        while early < MAX_READ_AHEAD_BYTES:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._left = True
                self._news.set()
                self._gone()
                return
            self._early.append(message)
            early += len(message.get("body", b""))
            self._news.set()
