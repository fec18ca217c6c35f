"""The pin of granian's inside: it is what was tested, and another is refused with the way out."""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from cluster2.engines.granian import internals
from cluster2.errors import ConfigError
from cluster2.processes.worker.sampling.steps import StepSampler, TimedSteps


def test_the_installed_one_is_known() -> None:
    """All that the engine uses of the installed granian is there; a new release that breaks it fails here."""
    internals.check()


@pytest.mark.parametrize(("name", "part"), [(name, part) for name, parts in internals._PARTS.items() for part in parts])
def test_a_part_that_is_missing(monkeypatch: pytest.MonkeyPatch, name: str, part: str) -> None:
    """Each part is looked for, and named if it is gone."""
    module = importlib.import_module(name)
    monkeypatch.delattr(module, part)
    with pytest.raises(ConfigError, match=part):
        internals.check()


@pytest.mark.parametrize("found", ["2.7.9", "2.9.0", "3.0.1"])
def test_another_version(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    """A version out of the tested range is refused, naming both."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found)
    with pytest.raises(ConfigError, match=rf"granian {found} is installed; cluster2 is made for granian from 2.8 on"):
        internals.check()


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is missing, the message says how to get it."""

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ConfigError, match=r"granian isn't installed; pip install 'cluster2\[granian\]'"):
        internals.check()


class PyFutureAwaitable:
    """Stands for granian's own, which only its threads can make."""

    __module__ = "granian._granian"

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> None:
        return None


async def direct() -> None:
    """As `await receive()`."""
    await PyFutureAwaitable()


async def pieces() -> AsyncIterator[None]:
    """As a framework's stream of a body."""
    await direct()
    yield


async def by_steps() -> None:
    """As `async for chunk in request.stream()`."""
    async for _ in pieces():
        pass


async def wrapped() -> None:
    """As a class with an `__await__` of its own."""

    class Step:
        def __await__(self) -> Any:
            return by_steps().__await__()

    await Step()


async def measured() -> None:
    """As one of those requests whose steps are timed."""
    await TimedSteps(direct(), StepSampler(lambda length, now: None, 1.0))


async def works() -> None:
    """Waits for something else."""
    await asyncio.sleep(0)


@pytest.mark.parametrize("call", [direct, by_steps, wrapped, measured, works])
def test_what_a_coroutine_waits_for(call: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Whatever stands between it and what granian gave it."""
    coroutine = call()
    assert not internals.waits(coroutine), "it hasn't begun"
    coroutine.send(None)
    assert internals.waits(coroutine) is (call is not works)
    coroutine.close()
