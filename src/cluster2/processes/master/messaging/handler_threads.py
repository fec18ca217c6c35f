"""Run the app's sync handlers in threads, so that the master's loop never waits for one.

This is no ThreadPoolExecutor: the interpreter joins its threads at exit, and would wait for a handler that hangs. These threads
are daemons, so a handler that hangs is abandoned.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

_MAX_HANDLER_THREADS = 16
_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]


class HandlerThreads:
    """A pool of threads, made when they are needed."""

    def __init__(self, most: int = _MAX_HANDLER_THREADS) -> None:
        self._most = most
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._made = 0
        self._idle = 0

    def run(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """Call a function in a thread. The future has its result or exception."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._lock:
            if self._idle:
                self._idle -= 1  # promised to this job
            elif self._made < self._most:
                try:
                    threading.Thread(target=self._work, name=f"cluster2-handler-{self._made + 1}", daemon=True).start()
                except RuntimeError as error:  # the system can't start a thread
                    if not self._made:
                        future.set_exception(RuntimeError(f"no thread can be started: {error}"))
                        return future
                    self._idle -= 1  # it waits for one of the existing threads
                else:
                    self._made += 1
            else:
                self._idle -= 1
        self._jobs.put((loop, future, call))
        return future

    def close(self) -> None:
        """Let the threads end when they have done the waiting jobs."""
        for _ in range(self._made):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, future, call = job
            try:
                done: tuple[Callable[..., None], Any] = (_succeed, call())
            except (
                BaseException
            ) as error:  # also SystemExit: it would end this thread, and the caller would get no response
                done = (_fail, error)
            with self._lock:
                self._idle += 1
            try:
                loop.call_soon_threadsafe(done[0], future, done[1])
            except RuntimeError:  # the loop is closed: the master has ended
                return
            del job, done, future, call


def _succeed(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        plain = isinstance(error, Exception) and not isinstance(error, StopIteration)  # a future refuses it
        future.set_exception(error if plain else RuntimeError(f"it raised {error!r}"))
