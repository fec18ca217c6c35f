"""Run the hooks by which an RSGI app starts and stops under granian."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

from ...errors import AppError

_Call = Callable[..., Any]
_logger = logging.getLogger("cluster2.granian")


class RsgiHooks:
    """RSGI's `__rsgi_init__(loop)` and `__rsgi_del__(loop)`.

    granian calls them while the loop is stopped, and apps use that for `loop.run_until_complete(...)`. In a worker the loop runs.
    So a hook runs in a thread, with an object in place of the loop that waits there for the work that the loop does here.
    """

    def __init__(self, app: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._init: _Call | None = getattr(app, "__rsgi_init__", None)
        self._del: _Call | None = getattr(app, "__rsgi_del__", None)
        self._loop = loop

    async def init(self) -> None:
        """Run `__rsgi_init__`, if the app has one.

        Raises:
            AppError: the hook has raised.
        """
        try:
            await self._run(self._init)
        except (Exception, SystemExit) as error:
            detail = "".join(traceback.format_exception(error))
            raise AppError(f"the app's __rsgi_init__ raised {type(error).__name__}: {error}", detail=detail) from error

    async def close(self) -> None:
        """Run `__rsgi_del__`, if the app has one. Log what it raises, since the worker ends in any case."""
        try:
            await self._run(self._del)
        except Exception:
            _logger.exception("the app's __rsgi_del__ raised")

    async def _run(self, hook: _Call | None) -> None:
        if hook is not None:
            # A hook that blocked the loop would also block the work that it waits for.
            await asyncio.to_thread(hook, _ThreadLoop(self._loop))


class _ThreadLoop:
    """The loop, as an app may use it from another thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.call_soon = loop.call_soon_threadsafe

    def run_until_complete(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def create_task(self, work: Coroutine[Any, Any, Any], **named: Any) -> Any:
        """Let the loop make the task, since only its own thread can, and wait for that."""

        async def make() -> asyncio.Task[Any]:
            return self._loop.create_task(work, **named)

        return asyncio.run_coroutine_threadsafe(make(), self._loop).result()

    # Other methods are the loop's own. Those that aren't safe in a thread fail there as in any program.
    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)
