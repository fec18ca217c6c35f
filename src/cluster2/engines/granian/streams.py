"""Responses that stream through granian let the loop run, and are cancelled in a drain when their client has gone.

granian's `send` takes a message and doesn't suspend while it has capacity, and never once the client has gone. An app that
streams without an end, and waits for nothing else, would hold the worker's loop forever. So one message in `_MESSAGES_PER_TURN`
gives the loop a turn. Not every message does, also not in a drain. A cancellation that arrives while `send` waits leaves the app's
generator to the garbage collector, while one that arrives while the generator itself waits closes it at once.

An app that doesn't learn that its client has gone would delay each drain until `drain_timeout`. So messages are counted in a
drain. The engine checks a request that goes on sending, and cancels it if its client has gone. The evidence depends:

- ASGI over HTTP/1.1 on TCP, websockets included: the connection no longer exists (`linux.established_connections`). A request
  pays nothing for that.
- ASGI over HTTP/2 and on Unix sockets: a stream that was reset leaves its connection open, and the kernel shows no peer of a Unix
  socket. But granian's `receive` returns `http.disconnect` after a message that could not be sent. So the engine calls it
  (`_Receiver`), and keeps other messages for the app. Websockets there are not checked, and are cut when `drain_timeout` is over.
- RSGI: `send_bytes` and `send_str` raise. That ends most apps, and the engine cancels one that goes on all the same.

RSGI's protocol objects are written in Rust. A wrapper of each would cost every request, so the method that begins a stream is
replaced in their class (`response_counts`), and only streams pay.

RSGI streams have no backpressure. granian 2.8 puts each message into an unbounded channel, so `send_bytes` completes at once,
however slowly the client reads. Measured with a client that reads nothing of 200 MiB: the worker grows by 215 MiB, with ASGI by
2.3 MiB. Waiting for the client here was considered and rejected, because nothing shows how full the channel is. The kernel's
counters are of a connection, which over HTTP/2 is shared by many streams, under TLS carries other bytes than the app's, and
which on Unix sockets has no counters at all.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Generator, Set
from typing import Any, ClassVar

_Call = Callable[..., Any]
_Peer = tuple[str, int | None]
_MESSAGES_PER_TURN = 64
"""Messages of a response for each turn that it gives the loop."""
_MESSAGES_BEFORE_CANCEL = 3
"""Messages that an app may send after its client has gone: the head of a response, a body and its end."""
_POLL_INTERVAL_S = 0.1
"""Seconds between two checks of the requests that go on sending."""


class Senders:
    """The requests that stream.

    Attributes:
        draining: messages are counted.
    """

    def __init__(self, peer_of: Callable[[Any], _Peer], accepted: Callable[[Any], None]) -> None:
        """Start without a stream.

        Args:
            peer_of: returns the client's host and port of a scope.
            accepted: called with granian's protocol object of each ASGI websocket that its app accepts.
        """
        self._accepted = accepted
        self.draining = False
        self._peer_of = peer_of
        self._streams: dict[int, _SentStream] = {}
        self._check_at: float | None = None

    def drain(self) -> None:
        """Count each message from now on. A worker drains as a whole, so this includes the RSGI streams of all engines."""
        self.draining = Transport.watched = True

    def paced(self, app: _Call, *, listens: bool) -> _Call:
        """Return an ASGI app whose messages let the loop run.

        Args:
            app: the app.
            listens: the kernel doesn't show which clients have gone, so the engine has to call `receive`.
        """

        def called(scope: Any, receive: _Call, send: _Call) -> Any:
            if scope["type"] == "lifespan":
                return app(scope, receive, send)
            if scope["type"] == "websocket":
                send = self._accepting(send)
            client = scope["client"]  # kept, since middleware for proxies replaces it in the scope
            receiver = _Receiver(receive) if listens and scope["type"] == "http" else None
            shown = not listens or receiver is not None  # something shows whether the client has gone
            sent = 0

            # This is no coroutine function: most messages get granian's own awaitable, without one around it.
            def paced(message: Any) -> Any:
                nonlocal sent
                sent += 1
                if self.draining and shown and sent > _MESSAGES_BEFORE_CANCEL:
                    self._count(scope, client, receiver, sent)
                return send(message) if sent % _MESSAGES_PER_TURN else _send_and_yield(send, message)

            if receiver is not None:
                return _await_and_close(app(scope, receiver, paced), receiver)
            return app(scope, receive, paced)

        return called

    def _accepting(self, send: _Call) -> _Call:
        # The counts know a websocket by granian's protocol object, of which the app gets only this method.
        protocol = send.__self__  # type: ignore[attr-defined]  # it is granian's method

        def sending(message: Any) -> Any:
            if message["type"] == "websocket.accept":
                self._accepted(protocol)
            return send(message)

        return sending

    def going_on(self, now: float, there: Callable[[], Set[_Peer]]) -> list[Any]:
        """Return the requests that go on sending although their client has gone.

        Args:
            now: the time on the monotonic clock.
            there: returns the clients that the kernel shows as connected. It is called only if a request goes on sending.

        Returns:
            ASGI's scope or RSGI's protocol of each request.
        """
        if self._check_at is None:  # the first check only counts: until now the requests had time to end
            for each in self._streams.values():
                each.sent_at_check = each.sent
        elif now < self._check_at:
            return []
        self._check_at = now + _POLL_INTERVAL_S
        gone: list[Any] = [each.protocol for each in list(Transport.known) if each.goes_on()]
        going_on = [each for each in self._streams.values() if each.sent > each.sent_at_check + _MESSAGES_BEFORE_CANCEL]
        connected: Set[_Peer] | None = None
        for each in going_on:
            each.sent_at_check = each.sent
            if each.receiver is not None:
                has_gone = each.receiver.has_gone()
            else:
                connected = there() if connected is None else connected  # a system call for each connection, so once
                has_gone = self._peer_of({"client": each.client}) not in connected
            if has_gone:
                gone.append(each.scope)
        return gone

    def _count(self, scope: Any, client: Any, receiver: _Receiver | None, sent: int) -> None:
        stream = self._streams.get(id(scope))
        if stream is None:
            stream = self._streams[id(scope)] = _SentStream(scope, client, receiver, sent)
        stream.sent = sent


class _SentStream:
    """An ASGI response in a drain. It keeps its scope alive, so that no other request's scope gets the same id.

    Attributes:
        client: the client, as granian named it.
        receiver: the app's `receive`, if the engine may call it.
        sent: messages so far.
        sent_at_check: messages at the last check.
    """

    __slots__ = ("client", "receiver", "scope", "sent", "sent_at_check")

    def __init__(self, scope: Any, client: Any, receiver: _Receiver | None, sent: int) -> None:
        self.scope = scope
        self.client = client
        self.receiver = receiver
        self.sent = self.sent_at_check = sent


async def _send_and_yield(send: _Call, message: Any) -> None:
    """Send a message, and give the loop a turn."""
    await send(message)  # first, so that a cancellation during the turn loses no message
    await asyncio.sleep(0)


async def _await_and_close(call: Any, receiver: _Receiver) -> None:
    """Await an app's call. At its end cancel the receiver's own task."""
    try:
        await call
    finally:
        receiver.close()


class _Receiver:
    """The `receive` of a request. The engine can ask it whether the client has gone, without the app's knowledge.

    Invariant: messages reach the app in their order, each once.
    """

    __slots__ = ("_disconnected", "_listener_task", "_messages", "_receive")

    def __init__(self, receive: _Call) -> None:
        """Receive for the app until the engine asks.

        Args:
            receive: granian's own function.
        """
        self._receive = receive
        self._listener_task: asyncio.Task[None] | None = None
        self._messages: deque[Any] = deque()
        self._disconnected = False

    def __call__(self) -> Any:
        """Receive the next message."""
        return self._receive() if self._listener_task is None else self._next()

    def has_gone(self) -> bool:
        """Return whether the client is known to have gone. Receive in a task from now on, unless a message waits for the app."""
        task = self._listener_task
        if task is None or (task.done() and not self._messages and not self._disconnected):
            self._listener_task = asyncio.ensure_future(self._listen())
        return self._disconnected

    def close(self) -> None:
        """Stop receiving."""
        if self._listener_task is not None:
            self._listener_task.cancel()

    async def _listen(self) -> None:
        more = False
        while not more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._disconnected = True
                return
            self._messages.append(message)
            # Stop at the first part of a body, so that only the part that has arrived is kept, not a whole body.
            more = message["more_body"]

    async def _next(self) -> Any:
        while not self._messages:
            if self._disconnected:
                return {"type": "http.disconnect"}
            assert self._listener_task is not None
            if self._listener_task.done():
                return await self._receive()
            # Unlike `await`, this doesn't cancel the task together with the app's wait.
            await asyncio.wait([self._listener_task])
        return self._messages.popleft()


class Transport:
    """RSGI's transport of a stream, which gives the loop turns.

    Attributes:
        known: all transports in this process.
        watched: the worker drains, so each message is watched for a failure.
        protocol: the protocol object of the request.
        sent: messages so far.
        failed_at: the value of `sent` when a message first failed because the client had gone. None: none has failed.
    """

    known: ClassVar[weakref.WeakSet[Transport]] = weakref.WeakSet()
    watched: ClassVar[bool] = False
    __slots__ = ("__weakref__", "_inner", "failed_at", "protocol", "sent")

    def __init__(self, protocol: Any, inner: Any) -> None:
        """Wrap granian's transport of a stream.

        Args:
            protocol: the protocol object of the request.
            inner: granian's own transport.
        """
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
        """Return whether the app still sends although its messages fail."""
        return self.failed_at is not None and self.sent > self.failed_at + _MESSAGES_BEFORE_CANCEL

    def _sent(self, result: Any) -> Any:
        self.sent += 1
        turns = not self.sent % _MESSAGES_PER_TURN
        return _Sending(self, result, turns) if turns or Transport.watched else result


class _Sending:
    """The awaitable of a message. It is no coroutine, because an app need not await it: granian has the message already."""

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
