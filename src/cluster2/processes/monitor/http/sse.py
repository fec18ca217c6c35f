"""Server-sent events, and those who watch.

A viewer has no queue: it is a task that knows the number of the last event and of the last look that it has sent. When
something is new all are woken; one that is still busy sending (its client reads slowly, `send` waits) isn't waiting and
misses it. When it comes back it sends what is new *then*: the latest facts, and of the events those that are still kept. So a
slow viewer costs what one message and the kernel's buffer hold, and loses samples; one that takes nothing at all for
`timeout` seconds is cut off by the engine, as any client is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec

from ..data.event_buffer import EventBuffer, StoredEvent

MAX_VIEWERS = 32
"""Viewers at a time."""
MAX_EVENTS_PER_MESSAGE = 10
"""Events in one message: it bounds what waits for a slow viewer."""
COMMENT_INTERVAL_S = 2.0
"""Seconds without anything to say after which a comment says that we are there."""
SSE_COMMENT = b":\n\n"
_SSE_RETRY_MS = 2000
"""Milliseconds after which a viewer may come back."""
SSE_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold it back
]

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


def message(name: str, data: bytes, number: int | None = None) -> bytes:
    """One event as the stream has it. The data, JSON, has no line breaks; a name may be a user's and have anything."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in name)
    identity = b"" if number is None else b"id: %d\n" % number
    return b"event: %b\n%bdata: %b\n\n" % (plain.encode(errors="replace"), identity, data)


class Latest:
    """What all viewers are sent, made once for all."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.number = 0
        self.content = b""

    def publish(self, facts: Any, sample: Any = None) -> None:
        """Have facts sent, and with them the newest row of the history if there is one."""
        self.number += 1
        encode = msgspec.json.encode
        self.content = message("facts", encode(facts))
        if sample is not None:
            self.content += message("sample", encode(sample))


class Viewers:
    """Those who watch now."""

    def __init__(self, feed: EventBuffer) -> None:
        """There are none yet."""
        self.feed = feed
        feed.listeners.append(lambda event: self.wake())
        self.latest = Latest()
        self.count = 0
        self.watching = 0
        """How many of them want facts."""
        self._news: asyncio.Future[None] | None = None
        self._closed = False

    def wake(self) -> None:
        """Something is new."""
        if self._news is not None:
            self._news.set_result(None)
            self._news = None

    def _next(self) -> asyncio.Future[None]:
        """Done when something more is new; all who wait share it."""
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        return self._news

    def close(self) -> None:
        """End all streams: the process leaves."""
        self._closed = True
        self.wake()

    def refusal(self) -> str | None:
        """Return why no other can be had, or None."""
        if self._closed:
            return "the monitor is leaving"
        return "too many are watching already" if self.count >= MAX_VIEWERS else None

    async def serve(
        self, receive: Receive, send: Send, *, after: int, facts: bool, full: bool, head: bool = False
    ) -> None:
        """Be a viewer until it leaves.

        Args:
            head: it wants to know only whether it could.
            after: the number of the last event that it has seen.
            facts: whether it wants more than events.
            full: whether it may see all fields of events.
        """
        if head:
            await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
            await send({"type": "http.response.body", "body": b""})
            return
        self.count += 1
        self.watching += facts
        gone = asyncio.ensure_future(client_left(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
            await _say(send, b"retry: %d\n\n" % _SSE_RETRY_MS)
            await self._tell(send, gone, after, facts, full)
            if not gone.done():
                await send({"type": "http.response.body", "body": b""})
        finally:
            self.count -= 1
            self.watching -= facts
            gone.cancel()

    async def _tell(self, send: Send, gone: asyncio.Future[None], after: int, facts: bool, full: bool) -> None:
        seen, said_at = 0, time.monotonic()
        while not gone.done() and not self._closed:
            news = self._next()  # before looking what is new: what comes meanwhile must not be missed
            told = self.feed.after(after)[:MAX_EVENTS_PER_MESSAGE]
            content = b"".join(_lines(told, full))
            if told:
                after = told[-1].number
            elif facts and seen != self.latest.number:
                seen, content = self.latest.number, self.latest.content
            if not content and time.monotonic() - said_at >= COMMENT_INTERVAL_S:
                content = SSE_COMMENT
            if content:
                await _say(send, content)
                said_at = time.monotonic()
                continue
            await asyncio.wait({news, gone}, timeout=COMMENT_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)


def _lines(told: list[StoredEvent], full: bool) -> Iterator[bytes]:
    return (message(each.name, each.full if full else each.public, each.number) for each in told)


async def _say(send: Send, content: bytes) -> None:
    await send({"type": "http.response.body", "body": content, "more_body": True})


async def client_left(receive: Receive) -> None:
    """Return when the client has left. A body, if there is one, is dropped on the way."""
    while (await receive())["type"] != "http.disconnect":
        pass
