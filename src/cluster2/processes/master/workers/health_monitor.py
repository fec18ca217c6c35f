"""Check each worker that serves: has it passed a threshold, is it stuck, are its clients stalled.

A stuck worker is replaced in this order. Its stacks are taken, since they show the cause. Its successor is made. When the
successor is ready, the stuck worker leaves: it is killed if its loop is stuck, and drains if one request of many takes too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from pkgutil import resolve_name
from typing import Any, cast

from ....config.settings import Settings
from ....core import health
from ....core.health import Trouble
from ....core.lifecycle import WorkerState
from ....errors import ConfigError, one_line, raised_in, trace
from ....linux import processes, stacks
from ....linux.scoreboard import Scoreboard
from ..state.handle import WorkerHandle
from ..state.inbox import InboxMessage, Tick
from .stalled_clients import StalledClientReporter

logger = logging.getLogger("cluster2.master")

_MEMORY_INTERVAL_S = 5.0
"""Seconds between two measurements of a worker's memory. Each walks its page tables."""


class HealthRules:
    """The limits of one generation, and the measurements that are compared with them."""

    def __init__(self, board: Scoreboard, settings: Settings) -> None:
        """Make the rules of a generation from its options.

        Raises:
            ConfigError: `recycle_when` names nothing that can be called.
        """
        self._board = board
        self._settings = settings
        self._limits = health.Limits(
            settings.conn_threshold, settings.request_threshold, settings.uptime_threshold, settings.memory_threshold
        )
        self._predicate = _load_predicate(settings)
        self._stretch: dict[int, float] = {}
        self._memory: dict[int, tuple[float, int]] = {}

    def threshold_passed(self, handle: WorkerHandle, now: float) -> str | None:
        """Return the threshold that the worker has passed, or None."""
        vitals = self._vitals(handle, now)
        factor = self._stretch.setdefault(handle.incarnation, 1 + random.random() * self._settings.threshold_jitter)
        reason = health.threshold_passed(self._limits.stretched(factor), vitals)
        if reason is None and self._predicate is not None and self._predicate_matches(handle, vitals):
            return "recycle_when"
        return reason

    def trouble(self, handle: WorkerHandle, now: float) -> health.Trouble | None:
        """Return the way in which the worker is stuck, or None."""
        return health.trouble(
            self._vitals(handle, now),
            now,
            max_delay=self._settings.max_heartbeat_delay,
            request_timeout=self._settings.request_timeout,
        )

    def forget(self, handle: WorkerHandle) -> None:
        """Forget a worker that has ended."""
        self._stretch.pop(handle.incarnation, None)
        self._memory.pop(handle.incarnation, None)

    def _vitals(self, handle: WorkerHandle, now: float) -> health.Vitals:
        row = self._board.row(handle.row)
        return health.Vitals(
            connections=row.accepted,
            requests=row.requests,
            uptime=handle.uptime(now),
            memory=self._memory_of(handle, now),
            heartbeat=handle.deadline(row, now),
            request_deadline=row.request_deadline,
        )

    def _memory_of(self, handle: WorkerHandle, now: float) -> int | None:
        if not self._settings.memory_threshold and self._predicate is None:
            return None
        when, size = self._memory.get(handle.incarnation, (0.0, 0))
        if now - when >= _MEMORY_INTERVAL_S and handle.pid is not None:
            try:
                size = processes.memory(handle.pid)
            except ProcessLookupError:
                size = 0
            except OSError:
                pass  # no descriptor is left: the last measurement counts
            self._memory[handle.incarnation] = now, size
        return size

    def _predicate_matches(self, handle: WorkerHandle, vitals: health.Vitals) -> bool:
        assert self._predicate is not None
        view = {
            "pid": handle.pid,
            "slot": handle.slot,
            "generation": handle.generation,
            "connections": vitals.connections,
            "requests": None if vitals.requests < 0 else vitals.requests,
            "uptime": vitals.uptime,
            "memory": vitals.memory,
        }
        try:
            return bool(self._predicate(view))
        except (Exception, SystemExit) as error:
            logger.error("recycle_when raised", exc_info=raised_in(error))
            return False


class HealthMonitor:
    """Checks the workers, and marks those for replacement that have to leave."""

    def __init__(self, board: Scoreboard, post: Callable[[InboxMessage], None], warn: Callable[[str], None]) -> None:
        """Make a monitor. It checks nothing before `apply_rules`.

        Args:
            post: takes the message that a stuck worker's stacks have been taken.
        """
        self._board = board
        self._post = post
        self._warn = warn
        self._rules_of: dict[int, HealthRules] = {}
        self._rules: HealthRules | None = None
        self._stalled_clients = StalledClientReporter(board)
        self._tasks: set[asyncio.Task[None]] = set()

    def prepare(self, generation: int, settings: Settings) -> None:
        """Make the rules of a generation, without applying them. Errors in them are found here.

        Raises:
            ConfigError: `recycle_when` names nothing that can be called.
        """
        self._rules_of[generation] = HealthRules(self._board, settings)

    def apply_rules(self, generation: int) -> None:
        """Apply the rules of this generation from now on."""
        self._rules = self._rules_of[generation]

    def drop_rules(self, generation: int) -> None:
        """Forget the rules of a generation."""
        self._rules_of.pop(generation, None)

    def check_all(self, workers: Iterable[WorkerHandle], now: float) -> None:
        """Check each worker that is ready."""
        assert self._rules is not None
        if (report := self._stalled_clients.report_if_due(workers, now)) is not None:
            self._warn(report)
        for handle in workers:
            if handle.state is not WorkerState.READY or handle.reason == "hang":
                continue
            if (trouble := self._rules.trouble(handle, now)) is not None:
                self._stuck(handle, trouble)
            elif handle.replace is None and (why := self._rules.threshold_passed(handle, now)) is not None:
                logger.info("%s is recycled (%s)", handle, why)
                handle.mark_for_replacement("recycle", now)

    def forget(self, handle: WorkerHandle) -> None:
        """Forget a worker that has ended."""
        for rules in self._rules_of.values():
            rules.forget(handle)

    def _stuck(self, handle: WorkerHandle, trouble: Trouble) -> None:
        handle.mark_stuck(drain_first=trouble is Trouble.REQUEST)
        self._warn(f"{handle} is replaced: {trouble.value}")

        async def take() -> None:
            try:
                handle.stacks = await stacks_of(handle)
                logger.warning("stacks of %s:\n%s", handle, handle.stacks)
            finally:
                handle.mark_for_replacement("hang", time.monotonic())
                self._post(Tick())

        self._start(take())

    def take_stacks(self, handle: WorkerHandle, then: InboxMessage) -> None:
        """Log the stacks of a worker that is about to be killed, then post this message."""

        async def take() -> None:
            handle.stacks = await stacks_of(handle)
            logger.warning("stacks of %s:\n%s", handle, handle.stacks)
            self._post(then)

        self._start(take())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def stacks_of(handle: WorkerHandle) -> str:
    """Return the Python stacks of a worker, or a line that says why there are none."""
    if handle.pidfd is None or handle.pid is None or handle.state is WorkerState.DEAD:
        return "no stacks: it has ended"
    try:
        with contextlib.ExitStack() as copies:  # its exit may be recorded, and these closed, before it has written
            pidfd = os.dup(handle.pidfd)
            copies.callback(os.close, pidfd)
            file = os.dup(handle.stacks_file)
            copies.callback(os.close, file)
            return await stacks.capture(file, pidfd, handle.pid, adds=True)
    except OSError as error:
        return f"no stacks: {error.strerror}"


def _load_predicate(settings: Settings) -> Callable[[dict[str, Any]], Any] | None:
    named: Any = settings.recycle_when
    found = _imported(named, settings) if isinstance(named, str) else named
    if found is None:
        return None
    if not callable(found) or inspect.iscoroutinefunction(found):
        kind = "an async function" if callable(found) else f"a {type(found).__name__}"
        raise ConfigError(f"recycle_when = {named!r}: it is {kind}; expected a plain function")
    return cast(Callable[[dict[str, Any]], Any], found)


def _imported(named: str, settings: Settings) -> object:
    if settings.chdir not in sys.path:
        sys.path.insert(0, settings.chdir)
    importlib.invalidate_caches()  # the module may be newer than the last look into its directory
    try:
        return resolve_name(named)
    except (Exception, SystemExit) as error:  # a module may raise anything when it is imported
        raise ConfigError(
            f"recycle_when = {named!r}: can't be imported: {one_line(error)}", detail=trace(error)
        ) from error
