"""Who listens to events: handlers by name, sync or async, that can't hurt whoever emits."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from .events import Event, name_of

logger = logging.getLogger("cluster2.master")
Handler = Callable[[Any], Any]
LAST_WORDS = 5.0
"""Seconds that async handlers may take after the last event."""


class Emitter:
    """Calls handlers. One that raises is logged, and the others are called all the same."""

    def __init__(self) -> None:
        self._handlers: dict[str, list[Handler]] = {}
        self._running: set[asyncio.Future[Any]] = set()

    def on(self, name: str, handler: Handler) -> None:
        """Call `handler(event)` whenever the event of that name happens; `*` means every event."""
        self._handlers.setdefault(name, []).append(handler)

    def off(self, name: str, handler: Handler) -> None:
        """Call it no more. Raises ValueError if it wasn't called on that event."""
        self._handlers.get(name, []).remove(handler)

    def emit(self, event: Event) -> None:
        """Call the handlers of an event, in order of registration. Called on the master's loop."""
        name = name_of(event)
        for handler in [*self._handlers.get(name, ()), *self._handlers.get("*", ())]:
            try:
                result = handler(event)
            except Exception:
                logger.exception("a handler of %r raised", name)
                continue
            if inspect.isawaitable(result):
                task = asyncio.ensure_future(result)
                self._running.add(task)
                task.add_done_callback(functools.partial(self._done, name))

    async def settle(self) -> None:
        """Wait for async handlers that are still running, for a bounded time."""
        if self._running:
            await asyncio.wait(self._running, timeout=LAST_WORDS)

    def _done(self, name: str, task: asyncio.Future[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a handler of %r raised", name, exc_info=error)
