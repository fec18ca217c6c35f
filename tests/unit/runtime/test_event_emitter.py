"""Handlers: called in order, sync or async, and unable to hurt whoever emits."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import time

import pytest

from cluster2.events import Event, Signalled, Warned
from cluster2.runtime import event_emitter
from cluster2.runtime.event_emitter import Emitter

pytestmark = pytest.mark.anyio


def warned(text: str = "look") -> Warned:
    return Warned(time=0.0, text=text)


def test_handlers_in_order_of_registration() -> None:
    """Those of the name come first, then those of every event; each as often as it was registered."""
    called: list[str] = []
    source = Emitter()
    for name, tag in (("*", "all"), ("warning", "a"), ("died", "other"), ("warning", "b"), ("warning", "a")):
        source.on(name, lambda event, tag=tag: called.append(tag))
    source.emit(warned())
    assert called == ["a", "b", "a", "all"]


def test_the_event_arrives_as_it_is() -> None:
    """A handler is called with the very event."""
    seen: list[Event] = []
    source = Emitter()
    source.on("warning", seen.append)
    event = warned()
    source.emit(event)
    assert seen[0] is event


def test_signals_by_their_own_name() -> None:
    """`SIGTERM` is a name to listen on."""
    seen: list[Event] = []
    source = Emitter()
    source.on("SIGTERM", seen.append)
    source.emit(Signalled(time=0.0, signal="SIGINT", action="shutdown"))
    source.emit(Signalled(time=0.0, signal="SIGTERM", action="shutdown"))
    assert [event.signal for event in seen] == ["SIGTERM"]  # type: ignore[attr-defined]


def test_off() -> None:
    """A handler that was taken off isn't called; taking off one that isn't there is an error."""
    seen: list[Event] = []
    source = Emitter()
    source.on("warning", seen.append)
    source.off("warning", seen.append)
    source.emit(warned())
    assert seen == []
    for name in ("warning", "died"):
        with pytest.raises(ValueError):
            source.off(name, seen.append)


def test_a_handler_may_take_itself_off() -> None:
    """What a handler changes among the handlers counts from the next event on; the others of this one are called."""
    called: list[str] = []
    source = Emitter()

    def once(event: Event) -> None:
        called.append("once")
        source.off("warning", once)

    source.on("warning", once)
    source.on("warning", lambda event: called.append("always"))
    source.emit(warned())
    source.emit(warned())
    assert called == ["once", "always", "always"]


def test_one_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A handler that raises is logged with its traceback, and the next one is called all the same."""
    called: list[Event] = []
    source = Emitter()
    source.on("warning", lambda event: 1 // 0)
    source.on("warning", called.append)
    source.emit(warned())
    assert len(called) == 1
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "a handler of 'warning' raised")
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


class Slow:
    """A handler that is an object."""

    def __call__(self, event: Event) -> None:
        time.sleep(0.01)


@pytest.mark.parametrize("way", ["function", "once", "partial", "object"])
def test_one_that_is_slow_is_named(way: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync handler that holds the loop is told of, with its name, where it stands, and for how long it took."""
    monkeypatch.setattr(event_emitter, "SLOW_HANDLER_S", 0.005)
    source = Emitter()

    def note(event: Event) -> None:
        time.sleep(0.01)

    handler = {"partial": functools.partial(note), "object": Slow()}.get(way, note)
    (source.once if way == "once" else source.on)("warning", handler)
    source.on("warning", lambda event: None)
    source.emit(warned())
    (said,) = [record.getMessage() for record in caplog.records]
    assert re.search(r", held the event loop for 0\.\d\d s; make it async", said)
    named = {"object": "Slow"}.get(way, "note")
    assert named in said
    assert re.search(rf"\({re.escape(__file__)}:\d+\)", said)


async def test_async_handlers(caplog: pytest.LogCaptureFixture) -> None:
    """Async handlers run beside the emitter, `settle` waits for them, and one that raises is logged."""
    called: list[str] = []
    gate = asyncio.Event()
    source = Emitter()

    @(lambda handler: source.on("warning", handler))
    async def slow(event: Warned) -> None:
        await gate.wait()
        called.append(event.text)

    @(lambda handler: source.on("warning", handler))
    async def broken(event: Warned) -> None:
        raise LookupError(event.text)

    source.emit(warned("one"))
    source.emit(warned("two"))
    assert called == [], "emitting doesn't wait"
    gate.set()
    await source.settle()
    assert called == ["one", "two"]
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["one", "two"]
    await source.settle()  # with nothing under way it returns at once


async def test_settle_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that never ends doesn't keep the master."""
    monkeypatch.setattr(event_emitter, "EMITTER_SHUTDOWN_GRACE_S", 0.01)
    source = Emitter()
    started: list[asyncio.Task[None] | None] = []

    @(lambda handler: source.on("warning", handler))
    async def endless(event: Warned) -> None:
        started.append(asyncio.current_task())
        await asyncio.Event().wait()

    source.emit(warned())
    await source.settle()
    (task,) = started
    assert task is not None
    assert not task.done()
    task.cancel()  # a cancelled handler isn't an error
    await source.settle()
    assert task.cancelled()


async def test_a_handler_does_not_end_the_process(caplog: pytest.LogCaptureFixture) -> None:
    """SystemExit in a handler, sync or async, is an error of that handler."""
    source = Emitter()
    called: list[Event] = []

    def leaves(event: Event) -> None:
        raise SystemExit(3)

    async def leaves_later(event: Event) -> None:
        raise SystemExit(4)

    for handler in (leaves, leaves_later, called.append):
        source.on("warning", handler)
    source.emit(warned())
    await source.settle()
    assert len(called) == 1
    assert [record.getMessage() for record in caplog.records] == ["a handler of 'warning' raised"] * 2
