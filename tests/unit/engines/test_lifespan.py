"""An app without a lifespan is served under `lifespan = auto`; one that fails to start isn't, on each engine for ASGI."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cluster2.config.settings import Settings
from cluster2.engines.base import AppContext, Interface
from cluster2.engines.granian.granian_engine import GranianEngine
from cluster2.engines.http.http_engine import HttpEngine
from cluster2.errors import AppError

pytestmark = pytest.mark.anyio
App = Callable[[Any, Any, Any], Awaitable[None]]
ENGINES = pytest.mark.parametrize("engine", [HttpEngine, GranianEngine], ids=lambda each: each.name)


async def raises_at_the_scope(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError("only http and websocket")


async def answers_anything(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def returns(scope: Any, receive: Any, send: Any) -> None:
    await receive()


async def raises_after_it_has_received(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    raise LookupError("no such table")


async def exits(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    sys.exit(3)


async def exits_at_the_scope(scope: Any, receive: Any, send: Any) -> None:
    sys.exit(3)


async def says_that_it_failed(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no such table"})
    raise LookupError("no such table")


async def fails_later(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    raise LookupError("no such table")


def made(engine: type[Any], app: App, mode: str) -> Any:
    """Return an engine for the app."""
    return engine(AppContext(app, Interface.ASGI, Settings(lifespan=mode), None))


@ENGINES
@pytest.mark.parametrize("app", [raises_at_the_scope, answers_anything, returns], ids=lambda each: each.__name__)
async def test_without_a_lifespan(engine: type[Any], app: App) -> None:
    """An app that knows no lifespan starts and stops."""
    found = made(engine, app, "auto")
    await found.start()
    await found.stop()


@ENGINES
@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize(
    ("app", "reason"),
    [
        (raises_after_it_has_received, "LookupError: no such table"),
        (exits, "SystemExit: 3"),
        (exits_at_the_scope, "SystemExit: 3"),
        (says_that_it_failed, "no such table"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
async def test_a_startup_that_fails(engine: type[Any], app: App, reason: str, mode: str) -> None:
    """An app that has begun to start and raises, exits or says so fails, with its own reason and traceback."""
    with pytest.raises(AppError, match=f"the app's lifespan failed at startup: {reason}") as raised:
        await made(engine, app, mode).start()
    assert ("lifespan = off" in raised.value.message) == (mode == "auto" and app is raises_after_it_has_received)
    assert app is says_that_it_failed or app.__name__ in raised.value.detail


@ENGINES
async def test_a_lifespan_that_must_be(engine: type[Any]) -> None:
    """With `lifespan = on` an app that raises at the sight of the scope fails."""
    with pytest.raises(AppError, match="only http and websocket"):
        await made(engine, raises_at_the_scope, "on").start()


@ENGINES
async def test_a_lifespan_that_fails_later(engine: type[Any], caplog: pytest.LogCaptureFixture) -> None:
    """An app whose lifespan raises after its startup serves on; the error is logged, and raised at the end."""
    found = made(engine, fails_later, "auto")
    await found.start()
    with pytest.raises(AppError, match="the app's lifespan raised LookupError: no such table"):
        await found.stop()
    assert "the app's lifespan raised after its startup" in caplog.text
    assert "no such table" in caplog.text
