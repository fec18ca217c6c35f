"""The bridge from WSGI to an ASGI server: an ASGI callable around a WSGI app.

The app runs in a thread of a pool (`threads`), or inline on the loop, one request at a time (`threads = 0`): for apps that
compute and never wait, a thread is only a detour. All that goes to the client or comes from it does so on the loop, in the
request's own coroutine; a thread says what it wants and waits.

*Out.* What an app yields or writes is passed on at once, and the app goes on while it is sent; parts that come faster than
the loop turns go out together. With `AHEAD` bytes under way the thread waits: so a client that doesn't read holds back its
app. A body that is complete (a list, or as long as declared) goes out before `close()` is called, in one turn.

*In.* A body of a declared length up to `MAX_QUEUED_BODY_BYTES` is there before the app is called, so that a slow client holds no thread.
What is longer, chunked, or announced by `Expect: 100-continue` is read when the app asks, and no faster. Inline there is
nobody who could read meanwhile: there all of a body is read first, beyond `_SPOOL_THRESHOLD_BYTES` bytes into a temporary file.

*The end.* `close()` is called whatever happens: the app raises, the client leaves (its app then sees ClientGone from `write`
or from `wsgi.input`, or is asked for no more), a HEAD needs no body. What an app does wrong is logged once, with method and
path; before the first byte is out it becomes a 500, after it the connection ends. A thread survives whatever an app raises.

What was measured, CPU a request, empty handler, keep-alive: the figures stand in `bench/README.md`. What helped: one future a
request and one wake-up for all that threads say meanwhile; names of headers remembered both ways; parts joined in one write.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from tempfile import SpooledTemporaryFile
from types import FrameType

from ..forked_child import ForkedChildTrap, frames_above
from ..outcomes import reading
from .client_side import MAX_READ_AHEAD_BYTES, Answer, Message, Receive, Send, asked_for, no_short_cut, send_whole
from .inline import InlineLock, Parts, call_inline
from .pep3333 import App, Environ, EnvironBuilder, body_length, body_of
from .thread_pool import ThreadPool
from .threaded import Call, run_call

MAX_QUEUED_BODY_BYTES = MAX_READ_AHEAD_BYTES
"""Bytes of a request's body that are read before a thread is taken."""
_SPOOL_THRESHOLD_BYTES = 512 * 1024
"""Bytes of a request's body that are kept in memory where all of it is read before the call."""


class WsgiBridge:
    """A WSGI app as an ASGI callable.

    Attributes:
        pool: the threads that the app runs in; None: it runs inline.
    """

    def __init__(self, app: App, threads: int, *, root_path: str = "", multiprocess: bool = True) -> None:
        """Bridge to an app.

        Args:
            threads: how many of its requests run at the same time; 0: one, on the loop.
            multiprocess: other processes serve the app as well.
        """
        self._app = app
        self._environs = EnvironBuilder(root_path=root_path, multithread=threads > 1, multiprocess=multiprocess)
        self._turn = InlineLock()
        self.pool = ThreadPool(threads) if threads else None

    def start(self) -> None:
        """Start the threads, on the running loop."""
        if self.pool is not None:
            self.pool.start()

    def stop(self) -> None:
        """Let the threads go."""
        if self.pool is not None:
            self.pool.stop()

    def set_trap(self, trap: ForkedChildTrap) -> None:
        """In a child that the app has forked: end the process as soon as the thread reports something to the loop."""
        if self.pool is not None:
            self.pool.notify_loop = trap.end_process  # type: ignore[assignment,method-assign]
            for frame in frames_above():
                if frame.f_code is Call.work.__code__:
                    frame.f_locals["self"].renew_notice()

    def has_capacity(self) -> bool:
        """Whether a request that came now could begin at once. If not, what `on_capacity` was given will be called."""
        return (self.pool or self._turn).has_capacity()

    def on_capacity(self, freed: Callable[[], None]) -> None:
        """Call this when there is room again, or when one from outside is let in."""
        (self.pool or self._turn).freed = freed

    def serving(self, frame: FrameType) -> str | None:
        """Return method and path of the request whose app was called in this frame."""
        code = frame.f_code
        if code is call_inline.__code__:
            return asked_for(frame.f_locals["environ"])
        if code is Call.work.__code__ or code is Parts.run.__code__:
            return asked_for(frame.f_locals["self"].environ or {})
        return None

    def failures(self) -> int:
        """Return how many calls failed when their response was complete, or their client gone: no connection sees these."""
        return self._turn.failures if self.pool is None else reading(self.pool.failures)

    def short_cut(self, send: Send) -> Answer:
        """The server's way to send a whole response past `send`."""
        return no_short_cut

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request. Raises Failed."""
        environ, answer = self._environs.of_scope(scope), self.short_cut(send)
        length = body_length(environ)
        if self.pool is None:
            if length == 0:
                environ["wsgi.input"] = io.BytesIO()
                if self._turn.busy:
                    await self._turn.wait()
                await self._inline(environ, receive, send)
            else:
                await self._spooled(scope, environ, receive, send)
            return
        call = Call(self._app, environ, self.pool)
        if length == 0:
            environ["wsgi.input"] = io.BytesIO()
        elif length is None or length > MAX_QUEUED_BODY_BYTES or "HTTP_EXPECT" in environ:
            environ["wsgi.input"] = body_of(call.more)
        else:
            environ["wsgi.input"] = body = io.BytesIO()
            if not await _collected(receive, body):
                return
        self.pool.run(call)
        try:
            await call.news()
            if call.complete and not call.failed:
                await send_whole(call.response, call.take(), send, answer)
            else:
                await run_call(call, receive, send)
        finally:
            if not call.complete:
                call.leave()

    async def _spooled(self, scope: Message, environ: Environ, receive: Receive, send: Send) -> None:
        with SpooledTemporaryFile(_SPOOL_THRESHOLD_BYTES) as body:
            if not await _collected(receive, body):
                return
            environ["wsgi.input"] = body
            await self._turn.wait()
            await self._inline(environ, receive, send)

    async def _inline(self, environ: Environ, receive: Receive, send: Send) -> None:
        rest = call_inline(self._app, environ, self._turn, receive, send, self.short_cut(send))
        if rest is not None:
            await rest


async def _collected(receive: Receive, into: io.BytesIO | SpooledTemporaryFile[bytes]) -> bool:
    """All of a request's body, to be read from its start; false if the client left before it had said what it wants."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return False
        into.write(message.get("body", b""))
        if not message.get("more_body"):
            into.seek(0)
            return True
