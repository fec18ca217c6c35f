"""A call of a WSGI app in a thread, with the loop as its mouth and ears. Told in `wsgi`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any

from .client_side import (
    DISCONNECT_MESSAGE,
    MAX_READ_AHEAD_BYTES,
    ClientLeft,
    Failed,
    Message,
    Receive,
    RequestBody,
    Send,
    asked_for,
    has_left,
    log,
    send_head,
)
from .pep3333 import App, ClientGone, Environ, Response
from .thread_pool import ThreadPool


class Call:
    """One request's call of the app, in a thread; and what the loop knows of it.

    Invariant: `_produced` is written by the thread, `_consumed` by the loop; what is `complete` gets no more parts.

    Attributes:
        complete: nothing more will come for the client.
        failed: and that wasn't all that should.
        reason: what the app did wrong, if anything.
        gone: nobody wants the rest.
        asked: the thread waits for more of the request's body.
    """

    __slots__ = (
        "_answers",
        "_app",
        "_body_ended",
        "_consumed",
        "_event",
        "_loop",
        "_parts",
        "_pool",
        "_produced",
        "_said",
        "_waiter",
        "asked",
        "complete",
        "context",
        "environ",
        "failed",
        "gone",
        "reason",
        "response",
    )

    def __init__(self, app: App, environ: Environ, pool: ThreadPool) -> None:
        self._app = app
        self.environ: Environ | None = environ
        self._pool = pool
        self._loop = pool.loop
        self._waiter: asyncio.Future[None] | None = None
        self._said = self._body_ended = False
        self._event: threading.Event | None = None
        self._answers: SimpleQueue[Message] | None = None
        self._parts: list[bytes] = []
        self._produced = self._consumed = 0
        self.context = copy_context()
        self.response = Response(environ["REQUEST_METHOD"], self._emit)
        self.reason = ""
        self.complete = self.failed = self.gone = self.asked = False

    # On the loop.

    def process_messages(self) -> None:
        """The thread has said something."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def news(self) -> None:
        """Wait until the thread has said something."""
        while not self._said:
            self._waiter = self._loop.create_future()
            await self._waiter
        self._said = False

    def take(self) -> bytes:
        """What the app has given for the client since this was last called."""
        parts = self._parts
        count = len(parts)  # the thread may append meanwhile
        if count == 1:
            return parts.pop(0)
        data = b"".join(parts[:count])
        del parts[:count]
        return data

    def sent(self, size: int) -> None:
        """So many bytes have gone."""
        self._consumed += size
        if self._event is not None:
            self._event.set()

    def answer(self, message: Message) -> None:
        """What the client has sent, for the thread that waits for it."""
        self.asked = False
        assert self._answers is not None
        self._answers.put(message)

    def leave(self) -> None:
        """Nobody wants the rest. The thread notices when it next writes, reads or yields."""
        self.gone = self._said = True
        if self._answers is not None:
            self._answers.put(DISCONNECT_MESSAGE)
        if self._event is not None:
            self._event.set()
        self.process_messages()

    # In the thread.

    def renew_notice(self) -> None:
        """Have the next thing that the thread reports notify the pool, though an earlier notice may not have been heard."""
        self._said = False

    def work(self) -> None:
        """Call the app and pass on what it answers."""
        response = self.response
        result: Any = None
        try:
            assert self.environ is not None
            result = self._app(self.environ, response.start_response)
            if isinstance(result, list | tuple) and not response.begun:
                self._parts.append(response.whole(result))
            else:
                self._pass_on(result)
            self._end()
        except BaseException as error:
            self._fail(error)
        try:
            if hasattr(result, "close"):
                result.close()
        except BaseException as error:
            self._fail(error)
        self.environ = None  # which may hold us
        response.release()  # or it and we would wait for the garbage collector, with the request and its connection

    def more(self) -> bytes:
        """More of the request's body; b"" at its end. Raises ClientGone."""
        if self._body_ended:
            return b""
        if self.environ is None:
            raise ValueError("the request is over: its wsgi.input can't be read any more")
        answers = self._answers = self._answers or SimpleQueue()
        if self.gone:  # before there was a queue to say it, perhaps
            answers.put(DISCONNECT_MESSAGE)
        self.asked = True
        self._tell()
        message = answers.get()
        if message["type"] == "http.disconnect":
            answers.put(DISCONNECT_MESSAGE)
            raise ClientGone("the client left before its request was complete")
        self._body_ended = not message.get("more_body")
        return bytes(message.get("body", b""))

    def _pass_on(self, result: Iterable[bytes]) -> None:
        response = self.response
        for part in response.parts(result):
            response.write(part)
            if self.gone or (response.bodiless and response.status):
                return
        response.finish()

    def _emit(self, data: bytes) -> None:
        """A part of the body. Raises ClientGone."""
        if self.gone:
            raise ClientGone("the client left before its response was complete")
        self._parts.append(data)
        self._produced += len(data)
        if self.response.complete:
            self._end()
            return
        self._tell()
        if self._produced - self._consumed > MAX_READ_AHEAD_BYTES:
            self._wait()

    def _wait(self) -> None:
        """For the client to read."""
        event = self._event = self._event or threading.Event()
        while self._is_ahead():
            event.clear()
            if self._is_ahead():  # else it was set before it was cleared
                event.wait()

    def _is_ahead(self) -> bool:
        return not self.gone and self._produced - self._consumed > MAX_READ_AHEAD_BYTES

    def _end(self) -> None:
        if not self.complete:
            self.complete = True
            self._tell()

    def _fail(self, error: BaseException) -> None:
        first = not self.reason and not isinstance(error, ClientGone)
        if first:
            self.reason = log(error, asked_for(self.environ or {}))
        unheard = self.complete or self.gone
        if not self.complete:
            self.failed = True
            self._end()
        if first and unheard and self.response.status < 500:
            next(self._pool.failures)

    def _tell(self) -> None:
        if not self._said:
            self._said = True
            self._pool.notify_loop(self)


async def run_call(call: Call, receive: Receive, send: Send) -> None:
    """Pass on what a thread has for its client, and to it what the client sends, until the response is complete."""
    inbox = RequestBody(receive, call.leave)
    begun = False
    try:
        while not call.gone:
            complete, failed = call.complete, call.failed  # before the parts: what comes after isn't seen yet
            ends = complete and not failed
            data = call.take()
            if data or ends:
                if not begun:
                    begun = True
                    await send_head(call.response, send)
                await send({"type": "http.response.body", "body": data, "more_body": not ends})
                call.sent(len(data))
                if not complete and has_left(send):
                    call.leave()
                    return
            if failed:
                raise Failed(call.reason) if call.reason else ClientLeft
            if complete:
                return
            if call.asked:
                call.answer(await inbox.next())
            elif begun:
                inbox.listen()
            await call.news()
    finally:
        inbox.close()
