"""Server-sent events (`/events`), and the viewers that get them.

A viewer has no queue. It is a task that knows the number of the last event and of the last report that it has sent. Anything new
wakes all viewers. One that is still sending, since its client reads slowly, isn't waiting and misses it. When its `send` returns,
it sends what is new *then*: the latest report, and the events that are still kept. So a slow viewer loses samples, and costs one
message and the kernel's buffer. If a client takes nothing for `timeout` seconds, the engine ends its connection, as any other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from ..data.event_buffer import StoredEvent
from ..data.viewers import Viewers

MAX_EVENTS_PER_MESSAGE = 10
"""Events in one message. It limits the bytes that wait for a slow viewer."""
COMMENT_INTERVAL_S = 2.0
"""Seconds without a message after which a comment is sent, so that the connection doesn't look dead."""
SSE_COMMENT = b":\n\n"  # clients ignore a line that begins with a colon
_SSE_RETRY_MS = 2000
"""Milliseconds after which an EventSource reconnects."""
SSE_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # without it nginx buffers the stream
]

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


def message(name: str, data: bytes, number: int | None = None) -> bytes:
    """Return a message of the stream.

    Args:
        name: an app's event may have any character in its name. A line break there could forge a message, so it is replaced.
        data: JSON, which has no line breaks.
    """
    plain = "".join(letter if letter.isprintable() else "?" for letter in name)
    identity = b"" if number is None else b"id: %d\n" % number
    return b"event: %b\n%bdata: %b\n\n" % (plain.encode(errors="replace"), identity, data)


async def serve(
    viewers: Viewers, receive: Receive, send: Send, *, after: int, reports: bool, full: bool, head: bool = False
) -> None:
    """Serve a viewer until it leaves.

    Args:
        after: the number of the last event that it got.
        reports: it gets reports and samples, too.
        full: it may see private fields of events.
        head: the request is a HEAD, which gets the headers alone.
    """
    if head:
        await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
        await send({"type": "http.response.body", "body": b""})
        return
    viewers.count += 1
    viewers.report_viewers += reports
    left = asyncio.ensure_future(client_left(receive))
    try:
        await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
        await _send_chunk(send, b"retry: %d\n\n" % _SSE_RETRY_MS)
        await _stream(viewers, send, left, after, reports, full)
        if not left.done():
            await send({"type": "http.response.body", "body": b""})
    finally:
        viewers.count -= 1
        viewers.report_viewers -= reports
        left.cancel()


async def _stream(
    viewers: Viewers, send: Send, left: asyncio.Future[None], after: int, reports: bool, full: bool
) -> None:
    report = sample = 0  # the numbers of the last ones that were sent
    sent_at, latest = time.monotonic(), viewers.latest
    while not left.done() and not viewers.closed:
        # Taken before the checks below, so that no change between them and the wait is lost.
        change = viewers.next_change()
        events = viewers.events.newer_than(after)[:MAX_EVENTS_PER_MESSAGE]
        content = b"".join(_messages(events, full))
        if events:
            after = events[-1].number
        elif reports and report != latest.reports:
            content = message("facts", latest.report)
            if sample != latest.samples:
                content += message("sample", latest.sample)
            report, sample = latest.reports, latest.samples
        # Other viewers' changes wake this one as well, so the wait below may never time out.
        if not content and time.monotonic() - sent_at >= COMMENT_INTERVAL_S:
            content = SSE_COMMENT
        if content:
            await _send_chunk(send, content)
            sent_at = time.monotonic()
            continue
        await asyncio.wait({change, left}, timeout=COMMENT_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)


def _messages(events: list[StoredEvent], full: bool) -> Iterator[bytes]:
    return (message(each.name, each.full if full else each.public, each.number) for each in events)


async def _send_chunk(send: Send, content: bytes) -> None:
    await send({"type": "http.response.body", "body": content, "more_body": True})


async def client_left(receive: Receive) -> None:
    """Return when the client has left. A request body, if there is one, is dropped on the way."""
    while (await receive())["type"] != "http.disconnect":
        pass
