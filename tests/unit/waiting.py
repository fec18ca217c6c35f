"""Waiting for conditions inside of an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

PATIENCE = 20.0
"""Seconds that anything may take on a loaded machine."""

_T = TypeVar("_T")


async def until(predicate: Callable[[], _T], why: str | Callable[[], str] = "") -> _T:
    """Let the loop run until `predicate` is true, and return what it returned; `why` says what never came."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while not (found := predicate()):
        if loop.time() > deadline:
            raise AssertionError(f"waited {PATIENCE:g} s: {why if isinstance(why, str) else why()}")
        await asyncio.sleep(0.005)
    return found
