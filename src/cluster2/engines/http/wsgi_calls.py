"""WSGI apps, called from the connection without a scope, messages, coroutines or tasks of ASGI's, wherever that is possible.

That is where all of the request is there, and all of the response comes in one piece: then an inline app is called, and
answered for, in the very step that has parsed the request, and a call in a thread costs no more than the way there and back. What
else there is (bodies that come slowly, streams, apps that fail, requests that are sampled) goes the way of `engines.wsgi`.
"""

from __future__ import annotations

import contextvars
import io
from collections.abc import Awaitable, Callable

from ..wsgi.bridge import WsgiBridge
from ..wsgi.client_side import Answer, Send, no_short_cut, send_whole
from ..wsgi.inline import call_inline
from ..wsgi.pep3333 import App, Environ
from ..wsgi.thread_pool import ThreadPool
from ..wsgi.threaded import Call, run_call
from .request import HttpRequest

Rest = Callable[[HttpRequest, Awaitable[None] | None, contextvars.Context | None], None]
"""Gets a request with what is left to be done for it (None: it is through), and in which context (None: in any)."""


class WsgiServer(WsgiBridge):
    """A WSGI app, as an engine's connections call it.

    Attributes:
        rest: takes over what can't be done at once.
        context: that each request gets a copy of.
    """

    rest: Rest
    context: contextvars.Context

    def begin(self, request: HttpRequest) -> bool:
        """Call the app with a request. Returns false where it can't be done this way, and nothing has happened."""
        if not request.ended:
            return False
        if self.pool is not None:
            DirectCall(self._app, self._environ(request), request, self.pool, self.rest).begin()
            return True
        if self._turn.busy:
            return False
        context = self.context.copy()
        send = request.send
        rest = context.run(
            call_inline, self._app, self._environ(request), self._turn, request.receive, send, request.answer
        )
        if rest is not None:
            self.rest(request, rest, context)
        return True

    def short_cut(self, send: Send) -> Answer:
        """That of the request, if it is one: a health check asks the app by no connection."""
        request = getattr(send, "__self__", None)
        return request.answer if type(request) is HttpRequest else no_short_cut

    def _environ(self, request: HttpRequest) -> Environ:
        environs, connection = self._environs, request.connection
        # A proxy may say for each request by which scheme it has come, and nothing of the client.
        if request.client is connection.client and request.scheme == "http":
            base = connection.environ
            if base is None:
                base = connection.environ = environs.base(request.scheme, request.client, connection.server)
        else:
            base = environs.base(request.scheme, request.client, connection.server)
        environ = environs.make(base, request.method, request.version, request.path, request.raw_path, request.query)
        environs.put_headers(environ, request.headers)
        environ["wsgi.input"] = io.BytesIO(request.take_body())
        return environ


class DirectCall(Call):
    """A call in a thread. What it says is heard on the loop, without a coroutine that waits for it."""

    __slots__ = ("_heard", "_request", "_rest")

    def __init__(self, app: App, environ: Environ, request: HttpRequest, pool: ThreadPool, rest: Rest) -> None:
        super().__init__(app, environ, pool)
        self._request = request
        self._rest = rest
        self._heard = False

    def begin(self) -> None:
        """Have it made."""
        self._pool.run(self)

    def process_messages(self) -> None:
        """The thread has said something: usually that the response is there."""
        if self._heard:
            super().process_messages()
            return
        self._heard = True
        request, response = self._request, self.response
        if request.disconnected and self.complete:
            if self.failed and self.reason:
                request.connection.engine.outcomes.failed += 1
            self._rest(request, None, None)
        elif self.complete and not self.failed and (response.complete or response.bodiless):
            body = self.take()
            if request.answer(response, body):
                self._rest(request, None, None)
            else:
                self._rest(request, send_whole(response, body, request.send, request.answer), None)
        else:
            self._rest(request, self._converse(), None)

    async def _converse(self) -> None:
        request = self._request
        try:
            if self.complete and not self.failed:
                await send_whole(self.response, self.take(), request.send, request.answer)
            else:
                await run_call(self, request.receive, request.send)
        finally:
            if not self.complete:
                self.leave()
