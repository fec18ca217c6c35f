"""What a worker knows about itself, shared by the parts that act on it and by the app."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

Hook = TypeVar("Hook", bound=Callable[[], Any])
logger = logging.getLogger("cluster2.worker")


@dataclass(slots=True)
class Life:
    """The worker that this process is.

    Attributes:
        draining: it retires: it takes nothing new and ends each connection politely.
    """

    pid: int
    slot: int
    generation: int
    draining: bool = False


@dataclass(slots=True)
class Counters:
    """What the app counts itself (`worker.transaction`).

    Attributes:
        duration: seconds of all transactions together.
        errors: how many of them failed.
    """

    transactions: int = 0
    duration: float = 0.0
    errors: int = 0


@dataclass(slots=True)
class Hooks:
    """What the app wants to be done in each worker, after the fork and before the end."""

    start: list[Callable[[], Any]] = field(default_factory=list)
    stop: list[Callable[[], Any]] = field(default_factory=list)

    async def run_start(self) -> None:
        """Before the first request, in order of registration. What raises here keeps the worker from serving."""
        for hook in self.start:
            await _run(hook)

    async def run_stop(self) -> bool:
        """Run the hooks of the end, in reverse order; return whether none raised.

        What a hook raises is logged, SystemExit and a cancellation too: the worker is leaving anyway, and the other hooks count.
        """
        fine = True
        for hook in reversed(self.stop):
            try:
                await _run(hook)
            except BaseException:
                fine = False
                logger.exception("a hook of worker.on_stop raised")
        return fine


async def _run(hook: Callable[[], Any]) -> None:
    result = hook()
    if inspect.isawaitable(result):
        await result
