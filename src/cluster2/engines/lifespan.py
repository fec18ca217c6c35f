"""ASGI's lifespan: run an app's startup and shutdown in one task (ASGI lifespan specification, version 2.0).

The specification has no message by which an app says that it knows the lifespan. So the first thing that the app does tells:

| the app | is taken as | `auto` | `on` |
|---|---|---|---|
| sends `lifespan.startup.complete` | started | go on | go on |
| sends `lifespan.startup.failed` | failed | AppError | AppError |
| raises before it has received `lifespan.startup` | without lifespan: it doesn't know the scope's type | go on | AppError |
| returns without a word | without lifespan | go on | AppError |
| sends a message of another protocol | without lifespan: it takes every scope for a request | go on | AppError |
| raises after it has received `lifespan.startup` | failed: it has asked for a message of the lifespan | AppError | AppError |
| raises SystemExit, or is cancelled | failed | AppError | AppError |

uvicorn and hypercorn go on under `auto` in the last two cases but one as well, so a database that cannot be reached at startup is
found by the first request. Apps that ask for a message before they look at the scope and then raise for another reason are
rare; the error names the option that helps them.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, MutableMapping
from enum import Enum
from typing import Any

from ..errors import AppError

_SHUTDOWN_TIMEOUT_S = 30.0
"""How long an app's shutdown may take, if the engine sets no other bound."""
CANCEL_TIMEOUT_S = 1.0
"""How long a cancelled lifespan may take to clean up."""

# Not the engine's own logger, whose tracebacks are those of requests.
logger = logging.getLogger("cluster2.lifespan")
App = Callable[..., Any]
State = MutableMapping[str, Any]


class _Phase(Enum):
    """How far the app has come."""

    BEFORE = "it has received no message"
    STARTING = "it has received lifespan.startup"
    STARTED = "it has completed its startup"
    STOPPING = "it has received lifespan.shutdown"
    STOPPED = "it has completed its shutdown"
    FAILED = "it has said that startup or shutdown failed"
    FOREIGN = "it has sent a message that isn't lifespan's"


_STEPS: dict[tuple[_Phase, str], _Phase] = {
    # An app may complete its startup without having asked for the message.
    (_Phase.BEFORE, "lifespan.startup.complete"): _Phase.STARTED,
    (_Phase.BEFORE, "lifespan.startup.failed"): _Phase.FAILED,
    (_Phase.STARTING, "lifespan.startup.complete"): _Phase.STARTED,
    (_Phase.STARTING, "lifespan.startup.failed"): _Phase.FAILED,
    (_Phase.STOPPING, "lifespan.shutdown.complete"): _Phase.STOPPED,
    (_Phase.STOPPING, "lifespan.shutdown.failed"): _Phase.FAILED,
}


class Lifespan:
    """The lifespan of one app in one worker.

    Attributes:
        state: what the app has put there at startup. Each request gets a shallow copy.
    """

    def __init__(
        self, app: App, state: State, mode: str = "auto", *, shutdown_timeout_s: float = _SHUTDOWN_TIMEOUT_S
    ) -> None:
        """Prepare the lifespan; nothing is called yet.

        Args:
            app: an ASGI 3 callable.
            state: is given to the app as `scope["state"]`.
            mode: "auto", "on" or "off"; see the table above.
            shutdown_timeout_s: seconds after which a shutdown is cancelled.
        """
        self.state = state
        self._app = app
        self._mode = mode
        self._shutdown_timeout_s = shutdown_timeout_s
        self._phase = _Phase.BEFORE
        self._said = ""  # by the app, when it failed
        self._error: BaseException | None = None  # by which the app has ended
        self._overdue = False  # the shutdown was cancelled
        self._task: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()  # the phase has changed, or the app has ended
        self._shutdown_due = asyncio.Event()

    async def start(self) -> None:
        """Run the app's startup to its end.

        Raises:
            AppError: the app failed to start, or has no lifespan although the mode is "on".
        """
        if self._mode == "off":
            return
        self._task = asyncio.create_task(self._run(), name="lifespan")
        try:
            while self._phase in (_Phase.BEFORE, _Phase.STARTING) and not self._task.done():
                await self._next_move()
        except asyncio.CancelledError:
            await self._cancel()
            raise
        if self._phase is _Phase.STARTED:
            return
        await self._cancel()
        if self._lacks_lifespan():
            self._go_on_without()
        else:
            raise self._failure()

    async def stop(self) -> None:
        """Run the app's shutdown to its end.

        Raises:
            AppError: it has failed, or the app has raised since its startup. That was logged.
        """
        await self._shut_down()
        if (fault := self._fault()) is not None:
            raise AppError(fault)

    async def _shut_down(self) -> None:
        task = self._task
        if self._phase is not _Phase.STARTED or task is None or task.done():
            return
        self._shutdown_due.set()
        done, _ = await asyncio.wait([task], timeout=self._shutdown_timeout_s)
        if not done:
            self._overdue = True
            logger.error("the app's lifespan shutdown took longer than %g s and is cancelled", self._shutdown_timeout_s)
            await self._cancel()
        else:
            self._log_shutdown()

    def _fault(self) -> str | None:
        """Return how the app has failed since its startup, or None."""
        if self._phase is _Phase.FAILED:
            return (
                f"the app's lifespan failed at shutdown: {(self._said.strip() or 'it said no reason').splitlines()[-1]}"
            )
        if self._phase in (_Phase.STARTED, _Phase.STOPPING, _Phase.STOPPED):
            if isinstance(self._error, Exception | SystemExit):
                return f"the app's lifespan raised {_summary(self._error)}"
            if self._overdue:
                return f"the app's lifespan shutdown took longer than {self._shutdown_timeout_s:g} s"
        return None

    def _log_shutdown(self) -> None:
        if self._phase is _Phase.FAILED:
            logger.error("the app's lifespan failed at shutdown: %s", self._said.strip() or "it said no reason")
        elif self._phase is not _Phase.STOPPED and self._error is None:
            logger.info("the app has ended its lifespan without lifespan.shutdown.complete")

    async def _run(self) -> None:
        """Call the app. Never raises: SystemExit would end the event loop from inside the task."""
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._receive, self._send)
        except asyncio.CancelledError as error:
            self._error = error
        except BaseException as error:
            self._error = error
            if self._phase in (_Phase.STARTED, _Phase.STOPPING, _Phase.STOPPED):
                logger.exception("the app's lifespan raised after its startup")
        finally:
            self._moved.set()

    async def _receive(self) -> dict[str, str]:
        """The app's `receive`: one message for startup, later one for shutdown, then none for ever."""
        if self._phase is _Phase.BEFORE:
            self._phase = _Phase.STARTING
            self._moved.set()
            return {"type": "lifespan.startup"}
        await self._shutdown_due.wait()
        if self._phase is _Phase.STARTED:
            self._phase = _Phase.STOPPING
            return {"type": "lifespan.shutdown"}
        if self._phase is not _Phase.STOPPING and self._task is not None:
            self._task.cancel()  # it has completed its shutdown and asks on: there is no third message
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        """The app's `send`.

        Raises:
            RuntimeError: the message doesn't fit here.
        """
        kind = message["type"]
        step = _STEPS.get((self._phase, kind))
        if step is None:
            if not kind.startswith("lifespan.") and self._phase in (_Phase.BEFORE, _Phase.STARTING):
                self._phase = _Phase.FOREIGN
                self._moved.set()
            raise RuntimeError(f"Unexpected ASGI message {kind!r} in the lifespan: {self._phase.value}.")
        if step is _Phase.FAILED:
            self._said = str(message.get("message") or "")
        self._phase = step
        self._moved.set()

    async def _next_move(self) -> None:
        await self._moved.wait()
        self._moved.clear()

    async def _cancel(self) -> None:
        """End the task. One that refuses to be cancelled is left behind: the worker's exit ends it."""
        task = self._task
        assert task is not None
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_TIMEOUT_S)

    def _lacks_lifespan(self) -> bool:
        """Return whether the app doesn't know the lifespan, rather than having failed in it."""
        if self._phase is _Phase.FOREIGN:
            return True
        if self._error is None:
            return self._phase in (_Phase.BEFORE, _Phase.STARTING)
        return self._phase is _Phase.BEFORE and isinstance(self._error, Exception)

    def _go_on_without(self) -> None:
        """Serve an app that doesn't know the lifespan.

        Raises:
            AppError: the mode is "on".
        """
        reason = _summary(self._error) if self._error is not None else "it returned without a message"
        if self._mode == "on":
            raise AppError(
                f"lifespan: it is on, but the app doesn't support it: {reason}", detail=_traceback(self._error)
            )
        logger.info("the app has no lifespan: %s", reason)

    def _failure(self) -> AppError:
        detail = self._said or _traceback(self._error)
        if self._said.strip():
            reason = self._said.strip().splitlines()[-1]
        else:
            reason = _summary(self._error) if self._error is not None else "it said no reason"
        doubtful = self._mode == "auto" and self._phase is not _Phase.FAILED and isinstance(self._error, Exception)
        hint = "; if the app has no lifespan, set lifespan = off" if doubtful else ""
        return AppError(f"the app's lifespan failed at startup: {reason}{hint}", detail=detail)


def _traceback(error: BaseException | None) -> str:
    return "" if error is None else "".join(traceback.format_exception(error))


def _summary(error: BaseException) -> str:
    """Return the line that names an error; of a group with one error in it, that one's (anyio's task groups make them)."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
