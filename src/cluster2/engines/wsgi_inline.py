"""A call of a WSGI app on the loop, and whose turn it is. Told in `wsgi`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any

from .pep3333 import App, Environ, Response
from .wsgi_client import Answer, Failed, Inbox, Receive, Send, asked_for, begin, log, send_whole


class Turn:
    """Whose turn it is on the loop: the calls of an app that runs inline are never mixed.

    Attributes:
        busy: an app is in the middle of an answer that takes more than one step of the loop.
        freed: called when there is room again after `room` has denied it.
    """

    def __init__(self) -> None:
        self.busy = False
        self.freed: Callable[[], None] | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._denied = False

    def room(self) -> bool:
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


class Inline:
    """One request's call of the app, on the loop: `call`, and if that wasn't all, `rest`."""

    __slots__ = (
        "_answer",
        "_app",
        "_begun",
        "_environ",
        "_gone",
        "_inbox",
        "_parts",
        "_reason",
        "_receive",
        "_response",
        "_result",
        "_send",
        "_turn",
        "_whole",
    )

    def __init__(self, app: App, environ: Environ, turn: Turn, receive: Receive, send: Send, answer: Answer) -> None:
        """Nothing is called yet.

        Args:
            answer: the server's short cut for a whole response.
        """
        self._app = app
        self._environ = environ
        self._turn = turn
        self._receive = receive
        self._send = send
        self._answer = answer
        self._parts: list[bytes] = []
        self._response = Response(environ["REQUEST_METHOD"], self._parts.append)
        self._result: Any = None
        self._reason = ""
        self._begun = self._gone = self._whole = False

    def __await__(self) -> Generator[Any, None, None]:
        """The same as `run`."""
        return self.run().__await__()

    def call(self) -> bool:
        """Call the app. Returns whether that was all: the response was there in one piece, and was sent. Else `rest` is due."""
        response = self._response
        try:
            result = self._result = self._app(self._environ, response.start_response)
            if not isinstance(result, list | tuple) or response.begun:
                self._turn.busy = True  # until `rest` is through
                return False
            body = response.whole(result)
        except BaseException as error:
            self._reason = log(error, asked_for(self._environ))
            self._close()
            return False
        if hasattr(result, "close"):
            self._close()
        if (response.complete or response.bodiless) and self._answer(response, body):
            return True
        self._parts.append(body)
        self._whole = True
        return False

    async def run(self) -> None:
        """Call the app and send what it answers. Raises Failed."""
        if not self.call():
            await self.rest()

    async def rest(self) -> None:
        """What `call` couldn't do at once. Raises Failed."""
        if not self._whole and not self._reason:
            self._inbox = Inbox(self._receive, self._leave)
            try:
                try:
                    await self._pass_on(self._result)
                except asyncio.CancelledError:
                    raise
                except BaseException as error:
                    self._reason = log(error, asked_for(self._environ))
                finally:
                    self._close()
            finally:
                self._inbox.close()
                self._turn.over()
        if self._gone:
            return
        if not self._reason:
            if self._begun:
                await self._flush(last=True)
            else:
                await send_whole(self._response, b"".join(self._parts), self._send, self._answer)
            return
        if self._response.begun:
            await self._flush(last=False)
        raise Failed(self._reason)

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
            await begin(self._response, self._send)
        data = b"".join(self._parts)
        self._parts.clear()
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    def _close(self) -> None:
        result, self._result = self._result, None
        try:
            if hasattr(result, "close"):
                result.close()
        except BaseException as error:
            if not self._reason:
                log(error, asked_for(self._environ))

    def _leave(self) -> None:
        self._gone = True
