"""Call WSGI apps directly from a connection, without a scope, messages, coroutines or tasks of ASGI, wherever that is possible.

It is possible if all of the request has come, and the response comes in one piece. Then an inline app is called, and its response
written, in the step that has parsed the request. A call in a thread costs no more than the way there and back. All other cases
(bodies that come slowly, streams, apps that fail, requests that are sampled) go through `engines.wsgi`.
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

_Rest = Callable[[HttpRequest, Awaitable[None] | None, contextvars.Context | None], None]
"""A callback that takes a request, the work that is left for it (None: nothing), and the context for that work (None: any)."""


class WsgiServer(WsgiBridge):
    """A WSGI app, as an engine's connections call it.

    Attributes:
        rest: takes the work that can't be done at once.
        context: each request gets a copy of it.
    """

    rest: _Rest
    context: contextvars.Context

    def begin(self, request: HttpRequest) -> bool:
        """Call the app with a request. Return False if that isn't possible directly, and nothing has happened."""
        if not request.ended:
            return False
        if self.pool is not None:
            _DirectCall(self._app, self._environ(request), request, self.pool, self.rest).begin()
            return True
        if self._lock.busy:
            return False
        context = self.context.copy()
        send = request.send
        rest = context.run(
            call_inline, self._app, self._environ(request), self._lock, request.receive, send, request.answer
        )
        if rest is not None:
            self.rest(request, rest, context)
        return True

    def short_cut(self, send: Send) -> Answer:
        """Return the request's `answer`, if `send` belongs to a request. A health check calls the app without a connection."""
        request = getattr(send, "__self__", None)
        return request.answer if type(request) is HttpRequest else no_short_cut

    def _environ(self, request: HttpRequest) -> Environ:
        environs, connection = self._environs, request.connection
        # A trusted proxy may name another client and another scheme for each request, so its requests have no common base.
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


class _DirectCall(Call):
    """A call in a thread, whose messages are processed on the loop without a coroutine that waits for them."""

    __slots__ = ("_handed_on", "_request", "_rest")

    def __init__(self, app: App, environ: Environ, request: HttpRequest, pool: ThreadPool, rest: _Rest) -> None:
        super().__init__(app, environ, pool)
        self._request = request
        self._rest = rest
        self._handed_on = False

    def begin(self) -> None:
        """Put the call into the pool's queue."""
        self._pool.run(self)

    def process_messages(self) -> None:
        """Process the first message of the thread: usually the response is complete. Later ones are the coroutine's."""
        if self._handed_on:
            super().process_messages()
            return
        self._handed_on = True
        request, response = self._request, self.response
        # No coroutine waits on the loop so far. A complete response is written here; anything else needs a coroutine.
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
                self.give_up()
