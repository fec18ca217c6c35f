"""The identity and state of a worker, its hooks and counts: shared by the parts that act on them and the app."""

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
    """The identity and state of the worker in this process."""

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
        """True once the worker drains: it accepts nothing new and ends each connection. Setting this wakes `drained`."""
        return self._draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        with self._lock:
            self._draining = draining
            # Taken out under the lock: a task that begins to wait now sees `_draining`, so each waiter is woken once.
            woken, self._waiting = (self._waiting, set()) if draining else (set(), self._waiting)
        for waiter in woken:
            try:
                waiter.get_loop().call_soon_threadsafe(_wake, waiter)
            except RuntimeError:
                pass  # that loop has ended, and its tasks with it

    async def drained(self) -> None:
        """Return when the drain of the worker begins, not when it is complete. Callable from any event loop of the process."""
        waiter = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._draining:
                return
            self._waiting.add(waiter)
        try:
            await waiter
        finally:
            with self._lock:  # cancelled: the client of the stream has left
                self._waiting.discard(waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


@dataclass(slots=True)
class ErrorCounter:
    """Counts of the app's own transactions (`worker.transaction`).

    Attributes:
        transactions: their number.
        duration: their seconds, summed.
        errors: the number of those that failed.
    """

    transactions: int = 0
    duration: float = 0.0
    errors: int = 0


@dataclass(slots=True)
class WorkerHooks:
    """The app's hooks for each worker: after the fork, at the drain, and before the end."""

    start: list[Callable[[], Any]] = field(default_factory=list)
    drain: list[Callable[[], Any]] = field(default_factory=list)
    stop: list[Callable[[], Any]] = field(default_factory=list)

    async def run_start(self) -> None:
        """Run the hooks of the start, in order of registration. An exception prevents the worker from serving."""
        for hook in self.start:
            await _run(hook)

    async def run_drain(self) -> bool:
        """Run the hooks of the drain, in order of registration. Log their exceptions; return whether there was none."""
        fine = True
        for hook in self.drain:
            try:
                await _run(hook)
            except Exception as error:
                fine = False
                logger.error("the hook %s of worker.on_drain raised", described(hook), exc_info=raised_in(error))
        return fine

    async def run_stop(self) -> str | None:
        """Run the hooks of the end, in reverse order. Return a text about those that raised, or None.

        Exceptions of a hook are logged, also SystemExit and a cancellation: the worker is leaving anyway, and the other hooks
        must run.
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
