"""How an RSGI app begins and ends under granian: by its hooks."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

from ...errors import AppError

Call = Callable[..., Any]
logger = logging.getLogger("cluster2.granian")


class RsgiHooks:
    """RSGI's `__rsgi_init__(loop)` and `__rsgi_del__(loop)`.

    granian calls them while the loop stands still, and apps use that to `loop.run_until_complete(...)`. Our loop runs: so a hook
    runs in a thread, with a stand-in for the loop that waits there for what the loop does here.
    """

    def __init__(self, app: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._init: Call | None = getattr(app, "__rsgi_init__", None)
        self._del: Call | None = getattr(app, "__rsgi_del__", None)
        self._loop = loop

    async def init(self) -> None:
        """Raises AppError if the hook raises."""
        try:
            await self._run(self._init)
        except (Exception, SystemExit) as error:
            detail = "".join(traceback.format_exception(error))
            raise AppError(f"the app's __rsgi_init__ raised {type(error).__name__}: {error}", detail=detail) from error

    async def close(self) -> None:
        """The end; what the hook raises is the app's last word, and is logged."""
        try:
            await self._run(self._del)
        except Exception:
            logger.exception("the app's __rsgi_del__ raised")

    async def _run(self, hook: Call | None) -> None:
        if hook is not None:
            await asyncio.to_thread(hook, _StandIn(self._loop))


class _StandIn:
    """A loop as seen from a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.call_soon = loop.call_soon_threadsafe

    def run_until_complete(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def create_task(self, work: Coroutine[Any, Any, Any], **named: Any) -> Any:
        """From here a task can only be made by the loop itself: that is waited for."""

        async def make() -> asyncio.Task[Any]:
            return self._loop.create_task(work, **named)

        return asyncio.run_coroutine_threadsafe(make(), self._loop).result()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)
