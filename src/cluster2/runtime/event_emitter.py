"""Call the handlers of events. A handler that raises or is slow is logged, and doesn't disturb the process that emits."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import raised_in
from ..events import Event, name_of

logger = logging.getLogger("cluster2.app")
Handler = Callable[[Any], Any]
_MAX_RUNNING_HANDLERS = 4096
"""The number of running async handlers above which the caller should accept no more events."""
SLOW_HANDLER_S = 0.1
"""Seconds that a sync handler may take without a warning. It blocks the event loop that calls it."""
EMITTER_SHUTDOWN_GRACE_S = 5.0
"""Seconds that async handlers may run on after the last event."""


class Emitter:
    """Calls the handlers of events, by name."""

    def __init__(self) -> None:
        self._handlers: dict[str, list[Handler]] = {}
        self._firsts: dict[tuple[str, Handler], list[Handler]] = {}
        self._running: set[asyncio.Future[Any]] = set()

    def on(self, name: str, handler: Handler) -> None:
        """Register `handler(event)`, sync or async, for the events of that name; `*`: for all events."""
        self._handlers.setdefault(name, []).append(handler)

    def off(self, name: str, handler: Handler) -> None:
        """Remove a handler. Raises ValueError: it isn't registered for that event."""
        firsts = self._firsts.get((name, handler))
        if firsts:
            first = firsts.pop(0)
            if not firsts:
                del self._firsts[name, handler]
            self._handlers[name].remove(first)
        else:
            self._handlers.get(name, []).remove(handler)

    def once(self, name: str, handler: Handler) -> None:
        """Register a handler for the next event of that name only."""

        # This sets `__wrapped__` only, by which `described` finds the handler.
        @functools.wraps(handler, assigned=(), updated=())
        def first(event: Any) -> Any:
            self.off(name, handler)
            return handler(event)

        self._handlers.setdefault(name, []).append(first)
        self._firsts.setdefault((name, handler), []).append(first)

    def crowded(self) -> bool:
        """Return whether so many async handlers are running that the caller should accept no more events."""
        return len(self._running) > _MAX_RUNNING_HANDLERS

    def emit(self, event: Event) -> None:
        """Call the handlers of an event in order of registration. Must be called on the event loop."""
        name = name_of(event)
        for handler in [*self._handlers.get(name, ()), *self._handlers.get("*", ())]:
            begun = time.monotonic()
            try:
                result = handler(event)
            except (Exception, SystemExit) as error:  # a handler doesn't end the process
                logger.error("a handler of %r raised", name, exc_info=raised_in(error))
                continue
            finally:
                if (took := time.monotonic() - begun) > SLOW_HANDLER_S:
                    logger.warning(
                        "a handler of %r, %s, held the event loop for %.2f s; make it async, or let it use a thread",
                        name, described(handler), took,
                    )  # fmt: skip
            if inspect.isawaitable(result):
                task = asyncio.ensure_future(_contained(result))
                self._running.add(task)
                task.add_done_callback(functools.partial(self._done, name))

    async def settle(self) -> None:
        """Wait for the async handlers that still run, for at most `EMITTER_SHUTDOWN_GRACE_S`."""
        if self._running:
            await asyncio.wait(self._running, timeout=EMITTER_SHUTDOWN_GRACE_S)

    def _done(self, name: str, task: asyncio.Future[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a handler of %r raised", name, exc_info=raised_in(error))


def described(function: Callable[..., Any]) -> str:
    """Return the name of a user's function with its file and line, as far as they are known."""
    inner: Any = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    name = getattr(inner, "__qualname__", None) or repr(inner)
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code is not None else name


async def _contained(work: Awaitable[Any]) -> None:
    """Await the rest of an async handler. A SystemExit is converted, since it would pass all callbacks of a task and end the loop."""
    try:
        await work
    except SystemExit as error:
        raise RuntimeError(f"it raised {error!r}") from error
