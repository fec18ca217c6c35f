"""A call of a WSGI app on the loop, and whose turn it is. Told in `wsgi`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from .client_side import Answer, Failed, Receive, RequestBody, Send, asked_for, log, send_head, send_whole
from .pep3333 import App, Environ, Response


class InlineLock:
    """Whose turn it is on the loop: the calls of an app that runs inline are never mixed.

    Attributes:
        busy: an app is in the middle of an answer that takes more than one step of the loop.
        failures: calls that failed when their response was complete, or their client gone.
        freed: called when there is room again after `has_capacity` has denied it.
    """

    def __init__(self) -> None:
        self.busy = False
        self.failures = 0
        self.freed: Callable[[], None] | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._denied = False

    def has_capacity(self) -> bool:
        """Whether an app could be called now."""
        self._denied = self._denied or self.busy
        return not self.busy

    async def wait(self) -> None:
        """Until it can."""
        while self.busy:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    def over(self) -> None:
        """The answer is through."""
        self.busy = False
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()
        if self._denied and self.freed is not None:
            self._denied = False
            self.freed()


def call_inline(
    app: App, environ: Environ, turn: InlineLock, receive: Receive, send: Send, answer: Answer
) -> Coroutine[Any, Any, None] | None:
    """Call an app, and answer for it if its response is there in one piece, as nearly all are.

    Args:
        answer: the server's short cut for a whole response.

    Returns:
        What is left to be done, which raises Failed; None: nothing is. No other app may be called before it is through.
    """
    parts: list[bytes] = []
    response = Response(environ["REQUEST_METHOD"], parts.append)
    result = None
    try:
        result = app(environ, response.start_response)
        if not isinstance(result, list | tuple) or response.begun:
            turn.busy = True  # until the answer is through
            return Parts(environ, response, parts, receive, send).run(result, turn, answer)
        body = response.whole(result)
    except BaseException as error:
        reason = log(error, asked_for(environ))
        _close(result, environ, told=True)
        return _fail(reason, response, parts, send)
    if hasattr(result, "close") and not _close(result, environ):
        turn.failures += response.status < 500
    if (response.complete or response.bodiless) and answer(response, body):
        return None
    return send_whole(response, body, send, answer)


async def _fail(reason: str, response: Response, parts: list[bytes], send: Send) -> None:
    """Send what the app has written before it failed. Raises Failed."""
    if response.begun:
        await send_head(response, send)
        await send({"type": "http.response.body", "body": b"".join(parts), "more_body": True})
    raise Failed(reason)


def _close(result: Any, environ: Environ, *, told: bool = False) -> bool:
    """Call `close()` of what the app has returned; return whether that is the end of it. If not, it was logged that it raised.

    Args:
        told: an error of this request was logged already.
    """
    try:
        if hasattr(result, "close"):
            result.close()
    except BaseException as error:
        if not told:
            log(error, asked_for(environ))
            return False
    return True


class Parts:
    """A response that comes in parts."""

    def __init__(self, environ: Environ, response: Response, parts: list[bytes], receive: Receive, send: Send) -> None:
        """Go on where the app has returned.

        Args:
            parts: what the app has given away, and wasn't sent yet.
        """
        self.environ = environ
        self._response = response
        self._parts = parts
        self._send = send
        self._inbox = RequestBody(receive, self._leave)
        self._begun = self._gone = False

    async def run(self, result: Iterable[bytes], turn: InlineLock, answer: Answer) -> None:
        """Send what the app yields, let it close, and have the next one called. Raises Failed."""
        reason = ""
        try:
            try:
                await self._pass_on(result)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                reason = log(error, asked_for(self.environ))
            finally:
                if not _close(result, self.environ, told=bool(reason)):
                    turn.failures += self._response.status < 500
        finally:
            self._inbox.close()
            turn.over()
        if self._gone:
            turn.failures += bool(reason)
            return
        if reason:
            if self._response.begun:
                await self._flush(last=False)
            raise Failed(reason)
        if self._begun:
            await self._flush(last=True)
        else:
            await send_whole(self._response, b"".join(self._parts), self._send, answer)

    async def _pass_on(self, result: Iterable[bytes]) -> None:
        response, parts = self._response, self._parts
        for part in response.parts(result):
            response.write(part)
            if self._gone or (response.bodiless and response.status):
                return
            if parts and not response.complete:
                await self._flush(last=False)
                self._inbox.listen()
                await asyncio.sleep(0)  # let it go out while the app makes the next part
        response.finish()

    async def _flush(self, *, last: bool) -> None:
        if not self._begun:
            self._begun = True
            await send_head(self._response, self._send)
        data = b"".join(self._parts)
        self._parts.clear()
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    def _leave(self) -> None:
        self._gone = True
