"""How an app begins and ends under granian: ASGI's lifespan, RSGI's hooks."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

from ..errors import AppError
from .base import Site
from .granian_internals import module
from .lifespan import Startup

Call = Callable[..., Any]
logger = logging.getLogger("cluster2.granian")


class Lifespan:
    """ASGI's lifespan, by granian's own protocol.

    Attributes:
        state: what the app put there at startup; each request gets a copy.
    """

    def __init__(self, site: Site) -> None:
        self._mode = site.settings.lifespan
        self._startup = Startup(site.app, self._mode)
        self._protocol: Any = module("asgi").LifespanProtocol(self._startup.call)
        self.state: dict[str, Any] = self._protocol.state

    async def startup(self) -> None:
        """Raises AppError if the app refuses, or has no lifespan although it must."""
        if self._mode != "off":
            await self._protocol.startup()
            self._startup.check()

    async def shutdown(self) -> None:
        """The app's own errors are logged by granian. Raises AppError if there was one."""
        if self._mode != "off":
            await self._protocol.shutdown()
            self._startup.check_end()


class Hooks:
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
