"""Call a WSGI app on the loop, one request at a time; see `bridge`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from .client_side import Answer, Failed, Receive, RequestBody, Send, describe_request, log, send_head, send_whole
from .pep3333 import App, Environ, Response


class InlineLock:
    """A lock on the loop, so that the calls of an inline app never overlap.

    Attributes:
        busy: the app is in the middle of a response that takes more than one step of the loop.
        failures: calls that failed after their response was complete, or their client gone.
        freed: called when the lock is free again, after `has_capacity` has returned False.
    """

    def __init__(self) -> None:
        self.busy = False
        self.failures = 0
        self.freed: Callable[[], None] | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._denied = False

    def has_capacity(self) -> bool:
        """Return whether the app could be called now."""
        self._denied = self._denied or self.busy
        return not self.busy

    async def wait(self) -> None:
        """Wait until the app can be called."""
        while self.busy:  # another waiter may have been faster
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    def release(self) -> None:
        """Release the lock, since the response is complete, and wake all waiters."""
        self.busy = False
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()
        if self._denied and self.freed is not None:
            self._denied = False
            self.freed()


def call_inline(
    app: App, environ: Environ, lock: InlineLock, receive: Receive, send: Send, answer: Answer
) -> Coroutine[Any, Any, None] | None:
    """Call an app, and send its response if that is in one piece, as nearly all are.

    Args:
        app, environ: the app and its argument.
        lock: held until the response is complete.
        receive, send: ASGI's.
        answer: the server's function that sends a whole response.

    Returns:
        The rest of the work, which raises Failed; None: there is none. The app isn't called again before it is done.
    """
    parts: list[bytes] = []
    response = Response(environ["REQUEST_METHOD"], parts.append)
    result = None
    try:
        result = app(environ, response.start_response)
        if not isinstance(result, list | tuple) or response.begun:
            lock.busy = True  # until the response is complete
            return Parts(environ, response, parts, receive, send).run(result, lock, answer)
        body = response.whole(result)
    except BaseException as error:
        reason = log(error, describe_request(environ))
        _close(result, environ, logged=True)
        return _fail(reason, response, parts, send)
    if hasattr(result, "close") and not _close(result, environ):
        lock.failures += response.status < 500
    if (response.complete or response.bodiless) and answer(response, body):
        return None
    return send_whole(response, body, send, answer)


async def _fail(reason: str, response: Response, parts: list[bytes], send: Send) -> None:
    """Send the parts that the app has written before it failed. Raises Failed."""
    if response.begun:
        await send_head(response, send)
        await send({"type": "http.response.body", "body": b"".join(parts), "more_body": True})
    raise Failed(reason)


def _close(result: Any, environ: Environ, *, logged: bool = False) -> bool:
    """Call `close()` of the app's result, if it has one. Return False if `close` raised, and that was logged.

    Args:
        result: the app's result.
        environ: the request's environ.
        logged: an error of this request was logged already.
    """
    try:
        if hasattr(result, "close"):
            result.close()
    except BaseException as error:
        if not logged:
            log(error, describe_request(environ))
            return False
    return True


class Parts:
    """A response of an inline app that comes in parts."""

    def __init__(self, environ: Environ, response: Response, parts: list[bytes], receive: Receive, send: Send) -> None:
        """Go on where the app has returned.

        Args:
            environ: the request's environ.
            response: the app's response.
            parts: the parts that the app has written, and that weren't sent yet.
            receive, send: ASGI's.
        """
        self.environ = environ
        self._response = response
        self._parts = parts
        self._send = send
        self._request_body = RequestBody(receive, self._leave)
        self._begun = self._gone = False

    async def run(self, result: Iterable[bytes], lock: InlineLock, answer: Answer) -> None:
        """Send the parts that the app yields, call its `close()`, and release the lock. Raises Failed."""
        reason = ""
        try:
            try:
                await self._pass_on(result)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                reason = log(error, describe_request(self.environ))
            finally:
                if not _close(result, self.environ, logged=bool(reason)):
                    lock.failures += self._response.status < 500
        finally:
            self._request_body.close()
            lock.release()
        if self._gone:
            lock.failures += bool(reason)
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
                self._request_body.watch()
                await asyncio.sleep(0)  # the part goes out before the app, which holds the loop, makes the next one
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
