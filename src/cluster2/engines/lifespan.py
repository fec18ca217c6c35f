"""Tell an app that fails to start from one that has no lifespan.

With `lifespan = auto`, as with uvicorn, hypercorn and granian, an app that raises when it is called with the lifespan scope
is taken for one that doesn't know it. These servers also take an app for that whose startup raises halfway, so that it
serves without its database. The difference can be seen: an app that knows nothing of lifespans (Django, a bare function)
raises at the sight of the scope, or sends a response. An app that has received `lifespan.startup`, has sent nothing of
another protocol, and then raises, has failed to start. So has one that calls `sys.exit`.

Frameworks that follow the specification (Starlette) send `lifespan.startup.failed`, with their traceback as the message.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from typing import Any

from ..errors import AppError, said

logger = logging.getLogger("cluster2.worker")
Call = Callable[..., Any]


class Startup:
    """The lifespan of an app, as seen between the app and the engine that speaks the protocol."""

    def __init__(self, app: Call, mode: str) -> None:
        """Nothing has happened yet.

        Args:
            mode: the option `lifespan`: auto, on or off.
        """
        self._app = app
        self._mode = mode
        self._received = False
        self._complete = False
        self._failed = False
        self._foreign = False
        self._said = ""
        self._error: BaseException | None = None
        self._shutdown_failed: str | None = None

    async def call(self, scope: Any, receive: Call, send: Call) -> None:
        """Be the app, for its lifespan alone. What it raises is kept for `check`: the engine would judge it otherwise."""

        async def received() -> Any:
            message = await receive()
            self._received = self._received or message["type"] == "lifespan.startup"
            return message

        async def sent(message: Any) -> None:
            kind = str(message.get("type", ""))
            self._foreign = self._foreign or not kind.startswith("lifespan.")
            if kind == "lifespan.startup.failed":
                self._failed, self._said = True, str(message.get("message", ""))
                message = {**message, "message": ""}  # ours to report; the engine would log it as well
            if kind == "lifespan.shutdown.failed":
                self._shutdown_failed = str(message.get("message") or "") or "it said no reason"
            await send(message)
            self._complete = self._complete or kind == "lifespan.startup.complete"

        try:
            await self._app(scope, received, sent)
        except asyncio.CancelledError as error:
            self._error = error
            raise
        except BaseException as error:
            self._error = error
            if self._complete:
                logger.exception("the app's lifespan raised after its startup")

    def check(self) -> None:
        """Raise AppError if the startup has failed. Call it when the engine has found it complete, failed or absent."""
        error = self._error
        if self._failed:
            raise _refusal(self._said or _traceback(error))
        if self._complete or error is None:
            return
        if self._mode == "on" or not isinstance(error, Exception):
            raise _refusal(_traceback(error))
        if self._received and not self._foreign:
            raise _refusal(_traceback(error), "; if the app has no lifespan, set lifespan = off")

    def check_end(self) -> None:
        """Raise AppError if the shutdown has failed, or the lifespan has raised since the startup. Call it after the shutdown."""
        if self._shutdown_failed is not None:
            raise AppError(f"the app's lifespan failed at shutdown: {self._shutdown_failed.strip().splitlines()[-1]}")
        if self._complete and isinstance(self._error, Exception | SystemExit):
            raise AppError(f"the app's lifespan raised {said(self._error)}")


def _refusal(detail: str, hint: str = "") -> AppError:
    reason = detail.strip().splitlines()[-1] if detail.strip() else "it said no reason"
    return AppError(f"the app's lifespan failed at startup: {reason}{hint}", detail=detail)


def _traceback(error: BaseException | None) -> str:
    return "" if error is None else "".join(_formatted(error))


def _formatted(error: BaseException) -> list[str]:
    """The traceback from the app's first line on."""
    first = error.__traceback__
    while first is not None and first.tb_frame.f_code.co_filename == __file__:
        first = first.tb_next
    return traceback.format_exception(type(error), error, first)
