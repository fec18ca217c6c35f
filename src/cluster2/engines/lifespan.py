"""ASGI's lifespan: run an app's startup and shutdown in one task (ASGI lifespan specification, version 2.0).

The specification has no message by which an app says that it knows the lifespan. So the app's first step decides:

| the app | is taken as | `auto` | `on` |
|---|---|---|---|
| sends `lifespan.startup.complete` | started | go on | go on |
| sends `lifespan.startup.failed` | failed | AppError | AppError |
| raises before it has received `lifespan.startup` | without lifespan: it doesn't know the scope's type | go on | AppError |
| returns without a message | without lifespan | go on | AppError |
| sends a message of another protocol | without lifespan: it takes every scope for a request | go on | AppError |
| raises after it has received `lifespan.startup` | failed: it has received a message of the lifespan | AppError | AppError |
| raises SystemExit, or is cancelled | failed | AppError | AppError |

Under `auto` uvicorn and hypercorn also go on without lifespan in the last case but one. Then the first request finds that a
database couldn't be reached at startup. An app that receives a message before it looks at the scope, and then raises for
another reason, is rare. The error names the option that helps it.
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
"""The time that an app's shutdown may take, if the engine sets no other bound."""
CANCEL_TIMEOUT_S = 1.0
"""The time that a cancelled lifespan may take to clean up."""

# Not the engine's own logger, whose tracebacks are those of requests.
logger = logging.getLogger("cluster2.lifespan")
_App = Callable[..., Any]
_State = MutableMapping[str, Any]


class _Phase(Enum):
    """A phase of the app's lifespan. The value completes an error message."""

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
        state: the dictionary that the app has filled at startup. Each request gets a shallow copy.
    """

    def __init__(
        self, app: _App, state: _State, mode: str = "auto", *, shutdown_timeout_s: float = _SHUTDOWN_TIMEOUT_S
    ) -> None:
        """Prepare the lifespan; nothing is called yet.

        Args:
            app: an ASGI 3 callable.
            state: the app gets it as `scope["state"]`.
            mode: "auto", "on" or "off"; see the table in the module's docstring.
            shutdown_timeout_s: seconds after which a shutdown is cancelled.
        """
        self.state = state
        self._app = app
        self._mode = mode
        self._shutdown_timeout_s = shutdown_timeout_s
        self._phase = _Phase.BEFORE
        self._failure_message = ""  # of the app's `lifespan.*.failed`
        self._error: BaseException | None = None  # by which the app has ended
        self._overdue = False  # the shutdown was cancelled
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # the phase has changed, or the app has ended
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
                await self._next_change()
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
            AppError: it has failed, or the app has raised since its startup. The log has it already.
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
                "the app's lifespan failed at shutdown: "
                f"{(self._failure_message.strip() or 'it gave no reason').splitlines()[-1]}"
            )
        if self._phase in (_Phase.STARTED, _Phase.STOPPING, _Phase.STOPPED):
            if isinstance(self._error, Exception | SystemExit):
                return f"the app's lifespan raised {_summary(self._error)}"
            if self._overdue:
                return f"the app's lifespan shutdown took longer than {self._shutdown_timeout_s:g} s"
        return None

    def _log_shutdown(self) -> None:
        if self._phase is _Phase.FAILED:
            logger.error(
                "the app's lifespan failed at shutdown: %s", self._failure_message.strip() or "it gave no reason"
            )
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
            self._changed.set()

    async def _receive(self) -> dict[str, str]:
        """Return the app's next message: one for startup, later one for shutdown, then none for ever."""
        if self._phase is _Phase.BEFORE:
            self._phase = _Phase.STARTING
            self._changed.set()
            return {"type": "lifespan.startup"}
        await self._shutdown_due.wait()
        if self._phase is _Phase.STARTED:
            self._phase = _Phase.STOPPING
            return {"type": "lifespan.shutdown"}
        if self._phase is not _Phase.STOPPING and self._task is not None:
            self._task.cancel()  # the app has completed its shutdown and receives again: there is no third message
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        """Take a message from the app.

        Raises:
            RuntimeError: the message doesn't fit here.
        """
        kind = message["type"]
        step = _STEPS.get((self._phase, kind))
        if step is None:
            if not kind.startswith("lifespan.") and self._phase in (_Phase.BEFORE, _Phase.STARTING):
                self._phase = _Phase.FOREIGN
                self._changed.set()
            raise RuntimeError(f"Unexpected ASGI message {kind!r} in the lifespan: {self._phase.value}.")
        if step is _Phase.FAILED:
            self._failure_message = str(message.get("message") or "")
        self._phase = step
        self._changed.set()

    async def _next_change(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    async def _cancel(self) -> None:
        """End the task. A task that refuses to be cancelled is left behind, and ends with the worker's process."""
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
        detail = self._failure_message or _traceback(self._error)
        if self._failure_message.strip():
            reason = self._failure_message.strip().splitlines()[-1]
        else:
            reason = _summary(self._error) if self._error is not None else "it gave no reason"
        doubtful = self._mode == "auto" and self._phase is not _Phase.FAILED and isinstance(self._error, Exception)
        hint = "; if the app has no lifespan, set lifespan = off" if doubtful else ""
        return AppError(f"the app's lifespan failed at startup: {reason}{hint}", detail=detail)


def _traceback(error: BaseException | None) -> str:
    return "" if error is None else "".join(traceback.format_exception(error))


def _summary(error: BaseException) -> str:
    """Return the line that names an error. For a group with one error, name that error (anyio's task groups make them)."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
