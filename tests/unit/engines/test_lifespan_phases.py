"""The lifespan of ASGI apps: those that have one, those that have none, and those that fail in it."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette

from cluster2.engines.lifespan import Lifespan
from cluster2.errors import AppError
from tests.unit.waiting import PATIENCE

pytestmark = pytest.mark.anyio
Call = Callable[..., Any]
MODES = pytest.mark.parametrize("mode", ["auto", "on"])


class Good:
    """Notes what it gets; puts something into the state."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.tasks: list[Any] = []

    async def __call__(self, scope: Any, receive: Call, send: Call) -> None:
        assert scope["type"] == "lifespan"
        assert scope["asgi"] == {"version": "3.0", "spec_version": "2.0"}
        for phase in ("startup", "shutdown"):
            self.got.append((await receive())["type"])
            self.tasks.append(asyncio.current_task())
            scope["state"][phase] = True
            await send({"type": f"lifespan.{phase}.complete"})
        self.got.append("end")


@MODES
async def test_start_and_stop(mode: str) -> None:
    """Startup and shutdown run in one task. The state is the app's, and the app comes to its end."""
    app, state = Good(), {"before": 1}
    lifespan = Lifespan(app, state, mode)
    await lifespan.start()
    assert app.got == ["lifespan.startup"]
    assert lifespan.state is state
    assert state == {"before": 1, "startup": True}
    await lifespan.stop()
    assert app.got == ["lifespan.startup", "lifespan.shutdown", "end"]
    assert app.tasks[0] is app.tasks[1]


async def test_off() -> None:
    """An app isn't called if the lifespan is off."""
    app = Good()
    lifespan = Lifespan(app, {}, "off")
    await lifespan.start()
    await lifespan.stop()
    assert app.got == []


async def raises(scope: Any, receive: Call, send: Call) -> None:
    raise NotImplementedError(f"no {scope['type']} here")


async def asserts(scope: Any, receive: Call, send: Call) -> None:
    assert scope["type"] == "http"


async def returns(scope: Any, receive: Call, send: Call) -> None:
    pass


async def receives_and_returns(scope: Any, receive: Call, send: Call) -> None:
    await receive()


async def answers(scope: Any, receive: Call, send: Call) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async def reads_and_answers(scope: Any, receive: Call, send: Call) -> None:
    message = await receive()
    while message.get("more_body"):
        message = await receive()
    await answers(scope, receive, send)


async def answers_come_what_may(scope: Any, receive: Call, send: Call) -> None:
    try:
        await answers(scope, receive, send)
    except RuntimeError:
        await receive()
        await receive()  # and waits for ever


def plain(scope: Any, receive: Call, send: Call) -> None:
    raise KeyError("path")


WITHOUT = [raises, asserts, returns, receives_and_returns, answers, reads_and_answers, answers_come_what_may, plain]


@pytest.mark.parametrize("app", WITHOUT, ids=lambda app: app.__name__)
async def test_apps_without_lifespan(app: Call, caplog: pytest.LogCaptureFixture) -> None:
    """An app that doesn't know the lifespan is served under `auto`, and refused under `on`."""
    caplog.set_level(logging.INFO, "cluster2.lifespan")
    lifespan = Lifespan(app, {}, "auto")
    await lifespan.start()
    await lifespan.stop()
    assert [(each.levelname, each.exc_info) for each in caplog.records] == [("INFO", None)]
    assert "the app has no lifespan" in caplog.text
    with pytest.raises(AppError, match="lifespan: it is on, but the app doesn't support it: "):
        await Lifespan(app, {}, "on").start()


async def raises_later(scope: Any, receive: Call, send: Call) -> None:
    await receive()
    raise ConnectionError("no database")


async def raises_in_a_group(scope: Any, receive: Call, send: Call) -> None:
    await receive()
    async with asyncio.TaskGroup() as group:
        group.create_task(raises_later(scope, _nothing, send))


async def _nothing() -> None:
    pass


async def exits(scope: Any, receive: Call, send: Call) -> None:
    await receive()
    sys.exit("no database")


async def exits_early(scope: Any, receive: Call, send: Call) -> None:
    sys.exit("no database")


async def says_it_failed(scope: Any, receive: Call, send: Call) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "Traceback:\n  ...\nno database\n"})


async def says_it_failed_and_stays(scope: Any, receive: Call, send: Call) -> None:
    await says_it_failed(scope, receive, send)
    await receive()


@asynccontextmanager
async def _broken(app: Any) -> Any:
    raise ConnectionError("no database")
    yield


FAILING = [raises_later, raises_in_a_group, exits, exits_early, says_it_failed, says_it_failed_and_stays]
FRAMEWORKS = [Starlette(lifespan=_broken)]


@MODES
@pytest.mark.parametrize("app", [*FAILING, *FRAMEWORKS], ids=lambda app: getattr(app, "__name__", "starlette"))
async def test_apps_that_fail(app: Call, mode: str) -> None:
    """An app that fails in its startup isn't served, under `auto` neither; the error has the reason."""
    with pytest.raises(AppError, match="the app's lifespan failed at startup: .*no database") as error:
        await asyncio.wait_for(Lifespan(app, {}, mode).start(), PATIENCE)
    assert "no database" in error.value.detail


@MODES
async def test_no_reason(mode: str) -> None:
    """An app may fail without a word."""

    async def app(scope: Any, receive: Call, send: Call) -> None:
        await send({"type": "lifespan.startup.failed"})

    with pytest.raises(AppError, match="it gave no reason"):
        await Lifespan(app, {}, mode).start()


async def test_it_raises_while_it_serves(caplog: pytest.LogCaptureFixture) -> None:
    """A lifespan that raises after its startup is logged at once, and raised when it is stopped."""
    broken = asyncio.Event()

    async def app(scope: Any, receive: Call, send: Call) -> None:
        await send({"type": "lifespan.startup.complete"})
        try:
            raise ValueError("background")
        finally:
            broken.set()

    lifespan = Lifespan(app, {}, "on")
    await lifespan.start()
    await broken.wait()
    with pytest.raises(AppError, match="the app's lifespan raised ValueError: background"):
        await lifespan.stop()
    assert "raised after its startup" in caplog.text
    assert "ValueError: background" in caplog.text


async def test_an_app_that_asks_on() -> None:
    """An app that asks for messages in a loop is ended when it has completed its shutdown."""
    ended: list[bool] = []

    async def app(scope: Any, receive: Call, send: Call) -> None:
        try:
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
        finally:
            ended.append(True)

    lifespan = Lifespan(app, {}, "on")
    await lifespan.start()
    await asyncio.wait_for(lifespan.stop(), PATIENCE)
    assert ended == [True]


def ending(how: str) -> Call:
    """Return an app whose shutdown ends in this way."""

    async def app(scope: Any, receive: Call, send: Call) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if how == "raises":
            raise ValueError("at the end")
        if how == "exits":
            sys.exit("at the end")
        if how == "says so":
            await send({"type": "lifespan.shutdown.failed", "message": "at the end"})

    return app


@pytest.mark.parametrize("how", ["raises", "exits", "says so"])
async def test_shutdown_goes_wrong(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """A failed shutdown is logged once, and raised by each `stop`."""
    lifespan = Lifespan(ending(how), {}, "auto")
    await lifespan.start()
    for _ in range(2):
        with pytest.raises(AppError, match="the app's lifespan (raised|failed at shutdown).*at the end"):
            await lifespan.stop()
    assert "at the end" in caplog.text
    assert len(caplog.records) == 1


async def test_shutdown_without_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    """An app may return instead of completing its shutdown."""
    caplog.set_level(logging.INFO, "cluster2.lifespan")
    lifespan = Lifespan(ending("returns"), {}, "auto")
    await lifespan.start()
    await lifespan.stop()
    await lifespan.stop()
    assert [each.getMessage() for each in caplog.records] == [
        "the app has ended its lifespan without lifespan.shutdown.complete"
    ]


@pytest.mark.parametrize("stubborn", [False, True])
async def test_shutdown_is_bounded(
    stubborn: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shutdown that doesn't end is cancelled; one that refuses that is left behind."""
    monkeypatch.setattr("cluster2.engines.lifespan.CANCEL_TIMEOUT_S", 0.01)
    ended, release = [], asyncio.Event()

    async def app(scope: Any, receive: Call, send: Call) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            if stubborn:
                await release.wait()
            raise

    lifespan = Lifespan(app, {}, "auto", shutdown_timeout_s=0.01)
    await lifespan.start()
    with pytest.raises(AppError, match="took longer than 0.01 s"):
        await asyncio.wait_for(lifespan.stop(), PATIENCE)
    assert ended == ["cancelled"]
    assert "took longer than 0.01 s" in caplog.text
    release.set()
    assert lifespan._task is not None
    await asyncio.wait([lifespan._task])


async def test_start_is_cancelled() -> None:
    """A startup that is cancelled from outside ends the app's task as well."""
    waiting, ended = asyncio.Event(), []

    async def app(scope: Any, receive: Call, send: Call) -> None:
        await receive()
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    task = asyncio.ensure_future(Lifespan(app, {}, "auto").start())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


@pytest.mark.parametrize("kind", ["lifespan.startup.complete", "lifespan.shutdown.complete", "http.response.start"])
async def test_messages_out_of_place(kind: str) -> None:
    """A message that doesn't fit raises in the app, and changes nothing once the app has started."""
    raised: list[str] = []

    async def app(scope: Any, receive: Call, send: Call) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        try:
            await send({"type": kind})
        except RuntimeError as error:
            raised.append(str(error))
        assert (await receive()) == {"type": "lifespan.shutdown"}
        await send({"type": "lifespan.shutdown.complete"})
        raised.append("end")

    lifespan = Lifespan(app, {}, "on")
    await lifespan.start()
    await lifespan.stop()
    assert len(raised) == 2
    assert kind in raised[0]
