"""WSGI apps, called from the connection without ASGI messages, coroutines or tasks in between, wherever that is possible.

That is where all of the request is there, and all of the response comes in one piece: then an inline app is called, and
answered for, in the very step that has parsed the request, and a call in a thread costs no more than the way there and back. What
else there is (bodies that come slowly, streams, apps that fail, requests that are sampled) goes the way of `engines.wsgi`.
"""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from ..pep3333 import App, Environ
from ..threads import Pool
from ..wsgi import Bridge
from ..wsgi_client import Message, Receive, Send, send_whole
from ..wsgi_inline import Inline
from ..wsgi_threaded import Call, converse
from .request import Request
from .response import InvalidResponse

Rest = Callable[[Request, Coroutine[Any, Any, None] | None], None]
"""Gets a request with what is left to be done for it; None: it is through."""


class WsgiServer(Bridge):
    """A WSGI app, as an engine's connections call it.

    Attributes:
        rest: takes over what can't be done at once.
    """

    rest: Rest

    def __call__(self, scope: Message, receive: Receive, send: Send) -> Awaitable[None]:  # type: ignore[override]
        """Return what answers one request: an `Inline` or a `DirectCall` if all of the request is there, else a coroutine.

        The worker's layer stands around this. It may await what it gets: then the request goes the long way.
        """
        request = getattr(receive, "__self__", None)
        if type(request) is not Request or not request.ended:  # a health check asks the app by no connection
            return super().__call__(scope, receive, send)
        if self.pool is not None:
            return DirectCall(self._app, self._environ(request), request, self.pool, self.rest)
        if self._turn.busy:
            return super().__call__(scope, receive, send)
        return Inline(self._app, self._environ(request), scope, self._turn, receive, send, answer)

    def _environ(self, request: Request) -> Environ:
        environ = self._environs.make(request.scope)
        environ["wsgi.input"] = io.BytesIO(request.take_body())
        return environ


class DirectCall(Call):
    """A call in a thread. What it says is heard on the loop, without a coroutine that waits for it."""

    __slots__ = ("_heard", "_request", "_rest")

    def __init__(self, app: App, environ: Environ, request: Request, pool: Pool, rest: Rest) -> None:
        super().__init__(app, environ, request.scope, pool)
        self._request = request
        self._rest = rest
        self._heard = False

    def begin(self) -> None:
        """Have it made."""
        self._pool.run(self)

    def told(self) -> None:
        """The thread has said something: usually that the response is there."""
        if self._heard:
            super().told()
            return
        self._heard = True
        request, response = self._request, self.response
        if request.disconnected and self.complete:
            self._rest(request, None)
        elif self.complete and not self.failed and (response.complete or response.bodiless):
            body = self.take()
            if request.answer(response.status, response.headers, body):
                self._rest(request, None)
            else:
                self._rest(request, send_whole(response, body, request.send, answer))
        else:
            self._rest(request, self._converse())

    def __await__(self) -> Generator[Any, None, None]:
        """The long way: it is made, and what it says is awaited."""
        return self._made().__await__()

    async def _made(self) -> None:
        self._heard = True
        self.begin()
        try:
            await self.news()
            await self._converse()
        finally:
            if not self.complete:
                self.leave()

    async def _converse(self) -> None:
        request = self._request
        try:
            if self.complete and not self.failed:
                await send_whole(self.response, self.take(), request.send, answer)
            else:
                await converse(self, request.receive, request.send)
        finally:
            if not self.complete:
                self.leave()


def answer(send: Send, status: int, headers: Any, body: bytes) -> bool:
    """Send a whole response in one step, past `send`; see `wsgi_client.Answer`."""
    request = getattr(send, "__self__", None)
    if type(request) is not Request:
        return False
    try:
        return request.answer(status, headers, body)
    except InvalidResponse as error:  # nobody above could take it: this may be called by the threads' pool
        request.failed(error)
        return True
