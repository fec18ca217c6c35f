"""Call a WSGI app in a thread, while the loop does its input and output; see `bridge`."""

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
    client_has_left,
    describe_request,
    log,
    send_head,
)
from .pep3333 import App, ClientGone, Environ, Response
from .thread_pool import ThreadPool


class Call:
    """One request's call of the app in a thread, and its state as the loop sees it.

    Invariant: the thread writes `_produced`, the loop writes `_consumed`. A call that is `complete` gets no more parts.

    Attributes:
        environ: the request's environ; None: the call has ended.
        context: the context variables of the call.
        response: the app's response.
        complete: no more parts will come.
        failed: the response is complete too early.
        reason: the app's error, if there was one.
        gone: the client has left.
        asked: the thread waits for more of the request's body.
    """

    __slots__ = (
        "_answers",
        "_app",
        "_body_ended",
        "_consumed",
        "_event",
        "_loop",
        "_notified",
        "_parts",
        "_pool",
        "_produced",
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
        self._notified = self._body_ended = False
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
        """Wake the coroutine that waits for a message of the thread."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait_for_message(self) -> None:
        """Wait until the thread has sent a message."""
        while not self._notified:
            self._waiter = self._loop.create_future()
            await self._waiter
        self._notified = False

    def take(self) -> bytes:
        """Return the parts that the app has written since the last call of this."""
        parts = self._parts
        count = len(parts)  # the thread may append meanwhile
        if count == 1:
            return parts.pop(0)
        data = b"".join(parts[:count])
        del parts[:count]
        return data

    def count_sent(self, size: int) -> None:
        """Count bytes that were sent to the client, and wake the thread if it waits for that."""
        self._consumed += size
        if self._event is not None:
            self._event.set()

    def put_body(self, message: Message) -> None:
        """Pass a message with a part of the request's body to the thread, which waits for it."""
        self.asked = False
        assert self._answers is not None
        self._answers.put(message)

    def give_up(self) -> None:
        """Drop the rest of the response. The thread notices when it next writes, reads or yields."""
        self.gone = self._notified = True
        if self._answers is not None:
            self._answers.put(DISCONNECT_MESSAGE)
        if self._event is not None:
            self._event.set()
        self.process_messages()

    # In the thread.

    def renew_notice(self) -> None:
        """Have the next message notify the loop, even if the loop hasn't processed an earlier one (see `forked_child`)."""
        self._notified = False

    def work(self) -> None:
        """Call the app, and pass its response on to the loop."""
        response = self.response
        result: Any = None
        try:
            assert self.environ is not None
            result = self._app(self.environ, response.start_response)
            if isinstance(result, list | tuple) and not response.begun:  # one message for head, body and end
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
        # Break the reference cycles: else the call would wait for the garbage collector, with the request and its connection.
        self.environ = None
        response.release()

    def more(self) -> bytes:
        """Return more of the request's body, or b"" at its end. Raises ClientGone."""
        if self._body_ended:
            return b""
        if self.environ is None:
            raise ValueError("the request is over: its wsgi.input can't be read any more")
        answers = self._answers = self._answers or SimpleQueue()
        if self.gone:  # `give_up` may have run before there was a queue
            answers.put(DISCONNECT_MESSAGE)
        self.asked = True
        self._notify_loop()
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
        """Take a part of the body, and wait if the client is too far behind. Raises ClientGone."""
        if self.gone:
            raise ClientGone("the client left before its response was complete")
        self._parts.append(data)
        self._produced += len(data)
        if self.response.complete:
            self._end()
            return
        self._notify_loop()
        if self._produced - self._consumed > MAX_READ_AHEAD_BYTES:
            self._wait()

    def _wait(self) -> None:
        """Wait for the client to read."""
        event = self._event = self._event or threading.Event()
        while self._is_ahead():
            event.clear()
            if self._is_ahead():  # checked again: the event may have been set before it was cleared
                event.wait()

    def _is_ahead(self) -> bool:
        return not self.gone and self._produced - self._consumed > MAX_READ_AHEAD_BYTES

    def _end(self) -> None:
        if not self.complete:
            self.complete = True
            self._notify_loop()

    def _fail(self, error: BaseException) -> None:
        first = not self.reason and not isinstance(error, ClientGone)
        if first:
            self.reason = log(error, describe_request(self.environ or {}))
        unheard = self.complete or self.gone
        if not self.complete:
            self.failed = True
            self._end()
        if first and unheard and self.response.status < 500:
            next(self._pool.failures)

    def _notify_loop(self) -> None:
        if not self._notified:
            self._notified = True
            self._pool.notify_loop(self)


async def run_call(call: Call, receive: Receive, send: Send) -> None:
    """Send a thread's response to the client, and pass the client's body to the thread, until the response is complete."""
    request_body = RequestBody(receive, call.give_up)
    begun = False
    try:
        while not call.gone:
            complete, failed = (
                call.complete,
                call.failed,
            )  # read before the parts: a part that comes later is sent next time
            ends = complete and not failed
            data = call.take()
            if data or ends:
                if not begun:
                    begun = True
                    await send_head(call.response, send)
                await send({"type": "http.response.body", "body": data, "more_body": not ends})
                call.count_sent(len(data))
                if not complete and client_has_left(send):
                    call.give_up()
                    return
            if failed:
                raise Failed(call.reason) if call.reason else ClientLeft
            if complete:
                return
            if call.asked:
                call.put_body(await request_body.next())
            elif begun:
                request_body.watch()
            await call.wait_for_message()
    finally:
        request_body.close()
