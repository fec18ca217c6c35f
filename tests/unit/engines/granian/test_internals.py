"""The check of granian's internals: a tested version passes, and any other is refused with the way out."""

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
    """The installed granian has all parts that the engine uses. A new release without one of them fails here."""
    internals.check()


@pytest.mark.parametrize(("name", "part"), [(name, part) for name, parts in internals._PARTS.items() for part in parts])
def test_a_part_that_is_missing(monkeypatch: pytest.MonkeyPatch, name: str, part: str) -> None:
    """The check looks for each part, and names one that is missing."""
    module = importlib.import_module(name)
    monkeypatch.delattr(module, part)
    with pytest.raises(ConfigError, match=part):
        internals.check()


@pytest.mark.parametrize("found", ["2.7.9", "2.9.0", "3.0.1"])
def test_another_version(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    """A version outside of the tested range is refused with a message that names both."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found)
    with pytest.raises(ConfigError, match=rf"granian {found} is installed; cluster2 is made for granian from 2.8 on"):
        internals.check()


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without granian the message says how to install it."""

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ConfigError, match=r"granian isn't installed; pip install 'cluster2\[granian\]'"):
        internals.check()


class PyFutureAwaitable:
    """A stand-in for granian's awaitable, which only granian's threads can make."""

    __module__ = "granian._granian"

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> None:
        return None


async def direct() -> None:
    """Wait as `await receive()` does."""
    await PyFutureAwaitable()


async def pieces() -> AsyncIterator[None]:
    """Yield as a framework's stream of a body does."""
    await direct()
    yield


async def by_steps() -> None:
    """Wait as `async for chunk in request.stream()` does."""
    async for _ in pieces():
        pass


async def wrapped() -> None:
    """Wait for an object of a class with an `__await__` of its own."""

    class Step:
        def __await__(self) -> Any:
            return by_steps().__await__()

    await Step()


async def measured() -> None:
    """Wait as a request whose steps are timed."""
    await TimedSteps(direct(), StepSampler(lambda length, now: None, 1.0))


async def works() -> None:
    """Wait for something else."""
    await asyncio.sleep(0)


@pytest.mark.parametrize("call", [direct, by_steps, wrapped, measured, works])
def test_what_a_coroutine_waits_for(call: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """A coroutine that waits for granian is recognized, whatever is between it and granian's awaitable."""
    coroutine = call()
    assert not internals.waits(coroutine), "it hasn't begun"
    coroutine.send(None)
    assert internals.waits(coroutine) is (call is not works)
    coroutine.close()
