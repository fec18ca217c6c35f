"""What a worker knows about itself, shared by the parts that act on it and by the app."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ...errors import one_line, raised_in
from ...runtime.event_emitter import described

Hook = TypeVar("Hook", bound=Callable[[], Any])
logger = logging.getLogger("cluster2.worker")


class WorkerInfo:
    """The worker that this process is.

    Attributes:
        draining: it retires: it takes nothing new and ends each connection politely. Setting it wakes all that wait (`drained`).
    """

    __slots__ = ("_draining", "_lock", "_waiting", "generation", "pid", "slot")

    def __init__(self, pid: int, slot: int, generation: int, draining: bool = False) -> None:
        self.pid = pid
        self.slot = slot
        self.generation = generation
        self._draining = draining
        self._lock = threading.Lock()
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def draining(self) -> bool:
        """Whether it retires."""
        return self._draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        with self._lock:
            self._draining = draining
            woken, self._waiting = (self._waiting, set()) if draining else (set(), self._waiting)
        for waiter in woken:
            try:
                waiter.get_loop().call_soon_threadsafe(_wake, waiter)
            except RuntimeError:
                pass  # that loop has ended, and its tasks with it

    async def drained(self) -> None:
        """Return when the worker drains. From any event loop of the process."""
        waiter = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._draining:
                return
            self._waiting.add(waiter)
        try:
            await waiter
        finally:
            with self._lock:  # a stream whose client left waits no more
                self._waiting.discard(waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


@dataclass(slots=True)
class ErrorCounter:
    """What the app counts itself (`worker.transaction`).

    Attributes:
        duration: seconds of all transactions together.
        errors: how many of them failed.
    """

    transactions: int = 0
    duration: float = 0.0
    errors: int = 0


@dataclass(slots=True)
class WorkerHooks:
    """What the app wants to be done in each worker, after the fork and before the end."""

    start: list[Callable[[], Any]] = field(default_factory=list)
    drain: list[Callable[[], Any]] = field(default_factory=list)
    stop: list[Callable[[], Any]] = field(default_factory=list)

    async def run_start(self) -> None:
        """Before the first request, in order of registration. What raises here keeps the worker from serving."""
        for hook in self.start:
            await _run(hook)

    async def run_drain(self) -> bool:
        """Run the hooks of the drain, in order of registration; return whether none raised. What one raises is logged."""
        fine = True
        for hook in self.drain:
            try:
                await _run(hook)
            except Exception as error:
                fine = False
                logger.error("the hook %s of worker.on_drain raised", described(hook), exc_info=raised_in(error))
        return fine

    async def run_stop(self) -> str | None:
        """Run the hooks of the end, in reverse order. Return which of them raised what, as the end of a line, or None.

        What a hook raises is logged, SystemExit and a cancellation too: the worker is leaving anyway, and the other hooks count.
        """
        failed = []
        for hook in reversed(self.stop):
            try:
                await _run(hook)
            except BaseException as error:
                failed.append(f"the hook {described(hook)} of worker.on_stop raised {one_line(error)}")
                logger.error("the hook %s of worker.on_stop raised", described(hook), exc_info=raised_in(error))
        return "; ".join(failed) or None


async def _run(hook: Callable[[], Any]) -> None:
    result = hook()
    if inspect.isawaitable(result):
        await result
