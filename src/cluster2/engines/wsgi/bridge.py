"""The bridge from WSGI to an ASGI server: an ASGI callable around a WSGI app.

The app runs in a thread of a pool (`threads`), or inline on the loop, one request at a time (`threads = 0`). For apps that
compute and never wait, a thread is only a detour. All input and output of a client happens on the loop, in the request's own
coroutine. A thread sends a message to the loop and waits.

*Output.* A part that an app yields or writes is passed on at once, and the app goes on while it is sent. Parts that come faster
than the loop turns go out together. With `MAX_READ_AHEAD_BYTES` under way the thread waits, so a client that doesn't read holds
back its app. A complete body (a list, or as long as declared) goes out before `close()` is called, in one step.

*Input.* A body with a declared length of up to `_MAX_QUEUED_BODY_BYTES` is read before the app is called, so that a slow client
holds no thread. A body that is longer, chunked, or announced by `Expect: 100-continue` is read when the app reads, and no
faster. An inline app holds the loop, which couldn't read meanwhile. So all of its body is read first, beyond
`_SPOOL_THRESHOLD_BYTES` into a temporary file.

*The end.* `close()` is always called: when the app raises, when a HEAD needs no body, and when the client leaves. In the last
case `write` and `wsgi.input` raise ClientGone, and the app's iterator isn't asked for more. An app's error is logged once, with
method and path. Before the first byte was sent it becomes a 500, after it the connection ends. No exception of an app ends a
thread.

*Cost.* `bench/README.md` has the CPU time for each request. These measures helped: one future for each request, one wake-up for
all messages of threads that come meanwhile, caches for names of headers in both directions, parts joined in one write.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from tempfile import SpooledTemporaryFile
from types import FrameType

from ..forked_child import ForkedChildTrap, frames_above
from ..outcomes import reading
from .client_side import (
    MAX_READ_AHEAD_BYTES,
    Answer,
    Message,
    Receive,
    Send,
    describe_request,
    no_short_cut,
    send_whole,
)
from .inline import InlineLock, Parts, call_inline
from .pep3333 import App, Environ, EnvironBuilder, body_length, body_of
from .thread_pool import ThreadPool
from .threaded import Call, run_call

_MAX_QUEUED_BODY_BYTES = MAX_READ_AHEAD_BYTES
"""Bytes of a request's body that are read before a thread is taken."""
_SPOOL_THRESHOLD_BYTES = 512 * 1024
"""Bytes of a request's body that are kept in memory, if all of it is read before the call."""


class WsgiBridge:
    """A WSGI app as an ASGI callable.

    Attributes:
        pool: the threads in which the app runs; None: it runs inline.
    """

    def __init__(self, app: App, threads: int, *, root_path: str = "", multiprocess: bool = True) -> None:
        """Make a bridge to an app.

        Args:
            app: the WSGI app.
            threads: the number of its requests that run at the same time; 0: one, on the loop.
            root_path: the prefix of each path.
            multiprocess: other processes serve the app as well.
        """
        self._app = app
        self._environs = EnvironBuilder(root_path=root_path, multithread=threads > 1, multiprocess=multiprocess)
        self._lock = InlineLock()
        self.pool = ThreadPool(threads) if threads else None

    def start(self) -> None:
        """Start the threads, on the running loop."""
        if self.pool is not None:
            self.pool.start()

    def stop(self) -> None:
        """End the threads, each as soon as it is free."""
        if self.pool is not None:
            self.pool.stop()

    def set_trap(self, trap: ForkedChildTrap) -> None:
        """In a child that the app has forked: end the process as soon as the thread reports something to the loop."""
        if self.pool is not None:
            self.pool.notify_loop = trap.end_process  # type: ignore[method-assign]
            for frame in frames_above():
                if frame.f_code is Call.work.__code__:
                    frame.f_locals["self"].renew_notice()

    def has_capacity(self) -> bool:
        """Return whether a request that came now could begin at once. If not, the callback of `on_capacity` will be called."""
        return (self.pool or self._lock).has_capacity()

    def on_capacity(self, freed: Callable[[], None]) -> None:
        """Call this when a request could begin again, or when one connection from outside may be taken."""
        (self.pool or self._lock).freed = freed

    def serving(self, frame: FrameType) -> str | None:
        """Return method and path of the request whose app was called in this frame."""
        code = frame.f_code
        if code is call_inline.__code__:
            return describe_request(frame.f_locals["environ"])
        if code is Call.work.__code__ or code is Parts.run.__code__:
            return describe_request(frame.f_locals["self"].environ or {})
        return None

    def failures(self) -> int:
        """Return how many calls failed after their response was complete, or their client gone. No connection sees these."""
        return self._lock.failures if self.pool is None else reading(self.pool.failures)

    def short_cut(self, send: Send) -> Answer:
        """Return the server's function that sends a whole response without `send`."""
        return no_short_cut

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Call the app with one request, and send its response. Raises Failed."""
        environ, answer = self._environs.of_scope(scope), self.short_cut(send)
        length = body_length(environ)
        if self.pool is None:
            if length == 0:
                environ["wsgi.input"] = io.BytesIO()
                if self._lock.busy:
                    await self._lock.wait()
                await self._inline(environ, receive, send)
            else:
                await self._spooled(scope, environ, receive, send)
            return
        call = Call(self._app, environ, self.pool)
        if length == 0:
            environ["wsgi.input"] = io.BytesIO()
        elif length is None or length > _MAX_QUEUED_BODY_BYTES or "HTTP_EXPECT" in environ:
            environ["wsgi.input"] = body_of(call.more)
        else:
            environ["wsgi.input"] = body = io.BytesIO()
            if not await _collected(receive, body):
                return
        self.pool.run(call)
        try:
            await call.wait_for_message()
            if call.complete and not call.failed:
                await send_whole(call.response, call.take(), send, answer)
            else:
                await run_call(call, receive, send)
        finally:
            if not call.complete:
                call.give_up()

    async def _spooled(self, scope: Message, environ: Environ, receive: Receive, send: Send) -> None:
        with SpooledTemporaryFile(_SPOOL_THRESHOLD_BYTES) as body:
            if not await _collected(receive, body):
                return
            environ["wsgi.input"] = body
            await self._lock.wait()
            await self._inline(environ, receive, send)

    async def _inline(self, environ: Environ, receive: Receive, send: Send) -> None:
        rest = call_inline(self._app, environ, self._lock, receive, send, self.short_cut(send))
        if rest is not None:
            await rest


async def _collected(receive: Receive, into: io.BytesIO | SpooledTemporaryFile[bytes]) -> bool:
    """Read all of a request's body into a file, and rewind it. Return False if the client left before the end of the body."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return False
        into.write(message.get("body", b""))
        if not message.get("more_body"):
            into.seek(0)
            return True
