"""Apps of ASGI that stream through granian: they let the loop turn, and those whose client has gone are found.

granian's `send` never suspends, whether the client is there or not. An app that streams without an end, and waits for nothing
else, holds the worker's loop for ever. So one of `TURN` messages lets the loop turn. A response of two messages takes 0.5 µs
longer for that (CPython 3.11).

One that doesn't hear that its client has gone would hold up each drain for `drain_timeout`. In a drain messages are counted, by
the client that they are for. A request that goes on sending to one that isn't connected any more is cancelled. Clients on a Unix
socket, and streams of HTTP/2 that were reset while their connection stays, can't be told apart from others: they are left alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

Call = Callable[..., Any]
Peer = tuple[str, int | None]
TURN = 16
"""Messages."""
LAST_MESSAGES = 3
"""An app may be just about to end: with the head of its response, a body and its end."""


class Senders:
    """Requests that stream.

    Attributes:
        draining: each message is counted.
    """

    def __init__(self, peer_of: Callable[[Any], Peer]) -> None:
        """Args: peer_of: returns the client's host and port of a scope."""
        self.draining = False
        self._peer_of = peer_of
        self._sent: Counter[Peer] = Counter()
        self._marked: dict[Peer, int] | None = None

    def paced(self, app: Call) -> Call:
        """Return the app, whose messages let the loop turn."""

        def called(scope: Any, receive: Call, send: Call) -> Any:
            if scope["type"] != "http":
                return app(scope, receive, send)
            sent = 0

            def paced(message: Any) -> Any:
                nonlocal sent
                sent += 1
                return send(message) if sent % TURN and not self.draining else self._turned(scope, send, message)

            return app(scope, receive, paced)

        return called

    async def _turned(self, scope: Any, send: Call, message: Any) -> None:
        """Send a message, count it in a drain, and let the loop turn."""
        await send(message)
        if self.draining:
            self._sent[self._peer_of(scope)] += 1
        await asyncio.sleep(0)

    def going_on(self) -> set[Peer]:
        """Return the clients that have been sent more than a last response since this was called first."""
        if self._marked is None:
            self._marked = dict(self._sent)
        return {
            peer for peer, sent in self._sent.items() if peer[1] and sent > self._marked.get(peer, 0) + LAST_MESSAGES
        }
