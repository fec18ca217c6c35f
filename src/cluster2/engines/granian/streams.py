"""Responses that stream through granian: they let the loop turn, and in a drain those whose client has gone are cancelled.

granian's `send` takes a message and doesn't suspend as long as it has room, and never once the client has gone. An app that
streams without an end, and waits for nothing else, would hold the worker's loop for ever. So one of `MESSAGES_PER_TURN` messages lets the loop
turn. Not each, also in a drain: a cancellation that comes while `send` waits leaves the app's generator to the garbage collector,
one that comes while the generator waits by itself closes it at once.

An app that doesn't hear that its client has gone would hold up each drain for `drain_timeout`. So messages are counted in a
drain. A request that goes on sending is looked at, and cancelled if its client has gone. What shows that depends:

- ASGI over HTTP/1.1 on TCP, websockets included: its connection isn't there any more (`kernel.established`). A request pays
  nothing for it.
- ASGI over HTTP/2 and on Unix sockets: streams that were reset leave their connection behind, and the kernel tells no peer. But
  granian's `receive` gives `http.disconnect` after a message that could not be sent. So it is asked (`Receiver`), and what
  else it gives is kept for the app. Websockets there aren't looked at, and are cut when `drain_timeout` is over.
- RSGI: `send_bytes` and `send_str` raise. That ends most apps; one that goes on all the same is cancelled.

RSGI's protocol objects are Rust's. A wrapper of each would be paid for by each request, so the method that begins a stream is
replaced in their class (`granian_answers`): only streams pay.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Generator, Set
from typing import Any, ClassVar

Call = Callable[..., Any]
Peer = tuple[str, int | None]
MESSAGES_PER_TURN = 64
"""Messages."""
MESSAGES_BEFORE_CANCEL = 3
"""An app may be just about to end: with the head of its response, a body and its end."""
_POLL_INTERVAL_S = 0.1
"""Seconds between two looks at those that go on sending."""


class Senders:
    """Requests that stream.

    Attributes:
        draining: each message is counted.
    """

    def __init__(self, peer_of: Callable[[Any], Peer], accepted: Callable[[Any], None]) -> None:
        """Nothing is sent yet.

        Args:
            peer_of: returns the client's host and port of a scope.
            accepted: told of each ASGI websocket that its app accepts, by granian's protocol object.
        """
        self._accepted = accepted
        self.draining = False
        self._peer_of = peer_of
        self._streams: dict[int, _SentStream] = {}
        self._look_at: float | None = None

    def drain(self) -> None:
        """Count each message from now on. A worker drains as a whole, so that holds for the RSGI streams of all engines."""
        self.draining = Transport.watched = True

    def paced(self, app: Call, *, listens: bool) -> Call:
        """Return an ASGI app whose messages let the loop turn.

        Args:
            listens: the kernel doesn't show which clients have gone, so `receive` is to be asked.
        """

        def called(scope: Any, receive: Call, send: Call) -> Any:
            if scope["type"] == "lifespan":
                return app(scope, receive, send)
            if scope["type"] == "websocket":
                send = self._accepting(send)
            client = scope["client"]  # middleware for proxies replaces it
            receiver = Receiver(receive) if listens and scope["type"] == "http" else None
            shown = not listens or receiver is not None
            sent = 0

            def paced(message: Any) -> Any:
                nonlocal sent
                sent += 1
                if self.draining and shown and sent > MESSAGES_BEFORE_CANCEL:
                    self._count(scope, client, receiver, sent)
                return send(message) if sent % MESSAGES_PER_TURN else _turned(send, message)

            if receiver is not None:
                return _closing(app(scope, receiver, paced), receiver)
            return app(scope, receive, paced)

        return called

    def _accepting(self, send: Call) -> Call:
        protocol = send.__self__  # type: ignore[attr-defined]  # it is granian's method

        def sending(message: Any) -> Any:
            if message["type"] == "websocket.accept":
                self._accepted(protocol)
            return send(message)

        return sending

    def going_on(self, now: float, there: Callable[[], Set[Peer]]) -> list[Any]:
        """Return the requests that go on sending, though their client has gone: ASGI's scope or RSGI's protocol of each.

        Args:
            there: returns the clients that the kernel shows as connected; only called if somebody goes on.
        """
        if self._look_at is None:  # until now they had the time to end
            for each in self._streams.values():
                each.seen = each.sent
        elif now < self._look_at:
            return []
        self._look_at = now + _POLL_INTERVAL_S
        gone: list[Any] = [each.protocol for each in list(Transport.known) if each.goes_on()]
        going_on = [each for each in self._streams.values() if each.sent > each.seen + MESSAGES_BEFORE_CANCEL]
        connected: Set[Peer] | None = None
        for each in going_on:
            each.seen = each.sent
            if each.receiver is not None:
                has_gone = each.receiver.has_gone()
            else:
                connected = there() if connected is None else connected
                has_gone = self._peer_of({"client": each.client}) not in connected
            if has_gone:
                gone.append(each.scope)
        return gone

    def _count(self, scope: Any, client: Any, receiver: Receiver | None, sent: int) -> None:
        stream = self._streams.get(id(scope))
        if stream is None:
            stream = self._streams[id(scope)] = _SentStream(scope, client, receiver, sent)
        stream.sent = sent


class _SentStream:
    """An ASGI response in a drain. It keeps its scope, so that no other request's has the same id.

    Attributes:
        client: as granian named it.
        receiver: what the app receives by, if it can be asked.
        sent: messages so far.
        seen: as many when it was last looked at.
    """

    __slots__ = ("client", "receiver", "scope", "seen", "sent")

    def __init__(self, scope: Any, client: Any, receiver: Receiver | None, sent: int) -> None:
        self.scope = scope
        self.client = client
        self.receiver = receiver
        self.sent = self.seen = sent


async def _turned(send: Call, message: Any) -> None:
    """Send a message, and let the loop turn."""
    await send(message)
    await asyncio.sleep(0)


async def _closing(call: Any, receiver: Receiver) -> None:
    """Await an app's call. What still listens at its end is cancelled."""
    try:
        await call
    finally:
        receiver.close()


class Receiver:
    """The `receive` of a request, that can be asked whether the client has gone, behind the app's back.

    Invariant: messages reach the app in their order, each once.
    """

    __slots__ = ("_asked", "_disconnected", "_messages", "_receive")

    def __init__(self, receive: Call) -> None:
        """Args: receive: granian's."""
        self._receive = receive
        self._asked: asyncio.Task[None] | None = None
        self._messages: deque[Any] = deque()
        self._disconnected = False

    def __call__(self) -> Any:
        """Receive the next message."""
        return self._receive() if self._asked is None else self._next()

    def has_gone(self) -> bool:
        """Return whether the client is known to have gone. Listen from now on, unless a part of a body waits for the app."""
        if self._asked is None or (self._asked.done() and not self._messages and not self._disconnected):
            self._asked = asyncio.ensure_future(self._listen())
        return self._disconnected

    def close(self) -> None:
        """Listen no more."""
        if self._asked is not None:
            self._asked.cancel()

    async def _listen(self) -> None:
        more = False
        while not more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._disconnected = True
                return
            self._messages.append(message)
            more = message["more_body"]  # as much is kept as was there, not a whole body

    async def _next(self) -> Any:
        while not self._messages:
            if self._disconnected:
                return {"type": "http.disconnect"}
            assert self._asked is not None
            if self._asked.done():
                return await self._receive()
            await asyncio.wait([self._asked])  # it is not cancelled with the app's wait
        return self._messages.popleft()


class Transport:
    """RSGI's transport of a stream, that lets the loop turn.

    Attributes:
        known: all that there are in this process.
        watched: the worker drains, so each message is looked at.
        protocol: the request's.
        sent: messages so far.
        failed_at: as many when one was first seen to fail, since the client has gone.
    """

    known: ClassVar[weakref.WeakSet[Transport]] = weakref.WeakSet()
    watched: ClassVar[bool] = False
    __slots__ = ("__weakref__", "_inner", "failed_at", "protocol", "sent")

    def __init__(self, protocol: Any, inner: Any) -> None:
        """Args: inner: granian's."""
        self.protocol = protocol
        self._inner = inner
        self.sent = 0
        self.failed_at: int | None = None
        self.known.add(self)

    def send_bytes(self, data: Any) -> Any:
        """Send a part of the body."""
        return self._sent(self._inner.send_bytes(data))

    def send_str(self, data: Any) -> Any:
        """Send a part of the body."""
        return self._sent(self._inner.send_str(data))

    def goes_on(self) -> bool:
        """Return whether its app still sends, though that fails."""
        return self.failed_at is not None and self.sent > self.failed_at + MESSAGES_BEFORE_CANCEL

    def _sent(self, result: Any) -> Any:
        self.sent += 1
        turns = not self.sent % MESSAGES_PER_TURN
        return _Sending(self, result, turns) if turns or Transport.watched else result


class _Sending:
    """What is awaited of a message. It isn't a coroutine: an app need not await it, since granian has taken the message."""

    __slots__ = ("_result", "_transport", "_turns")

    def __init__(self, transport: Transport, result: Any, turns: bool) -> None:
        self._transport = transport
        self._result = result
        self._turns = turns

    def __await__(self) -> Generator[Any, Any, Any]:
        if self._turns:
            yield  # as asyncio.sleep(0) does
        try:
            return (yield from self._result.__await__())
        except Exception:
            if self._transport.failed_at is None:
                self._transport.failed_at = self._transport.sent
            raise
