"""The regular look at each worker that serves: whether it has passed a threshold, whether it is stuck, whether its clients are.

A worker that is stuck is replaced in this order: its stacks are taken, since they tell why; its successor is made; when that
is ready, it goes: at once if its loop is stuck, and with a drain if it is one request of many that takes too long.
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
from ..inbox import Command, Fact, Tick
from .handle import Handle
from .stalled_clients import StalledClientReporter

logger = logging.getLogger("cluster2.master")

_MEMORY_INTERVAL_S = 5.0
"""Seconds between two measurements of a worker's memory: each walks its page tables."""


class HealthRules:
    """What is to be known of workers to judge them."""

    def __init__(self, board: Scoreboard, settings: Settings) -> None:
        """Make it anew when the options have been read again.

        Raises:
            ConfigError: `recycle_when` names nothing that can be called.
        """
        self._board = board
        self._settings = settings
        self._limits = health.Limits(
            settings.conn_threshold, settings.request_threshold, settings.uptime_threshold, settings.memory_threshold
        )
        self._predicate = _predicate(settings)
        self._stretch: dict[int, float] = {}
        self._memory: dict[int, tuple[float, int]] = {}

    def threshold_passed(self, handle: Handle, now: float) -> str | None:
        """Why the worker has done enough, or None."""
        vitals = self._vitals(handle, now)
        factor = self._stretch.setdefault(handle.incarnation, 1 + random.random() * self._settings.threshold_jitter)
        reason = health.threshold_passed(self._limits.stretched(factor), vitals)
        if reason is None and self._predicate is not None and self._reports_itself(handle, vitals):
            return "recycle_when"
        return reason

    def trouble(self, handle: Handle, now: float) -> health.Trouble | None:
        """How the worker is stuck, or None."""
        return health.trouble(
            self._vitals(handle, now),
            now,
            max_delay=self._settings.max_heartbeat_delay,
            request_timeout=self._settings.request_timeout,
        )

    def forget(self, handle: Handle) -> None:
        """The worker is gone."""
        self._stretch.pop(handle.incarnation, None)
        self._memory.pop(handle.incarnation, None)

    def _vitals(self, handle: Handle, now: float) -> health.Vitals:
        row = self._board.row(handle.row)
        return health.Vitals(
            connections=row.accepted,
            requests=row.requests,
            uptime=handle.uptime(now),
            memory=self._weigh(handle, now),
            heartbeat=handle.deadline(row, now),
            request_deadline=row.request_deadline,
        )

    def _weigh(self, handle: Handle, now: float) -> int | None:
        if not self._settings.memory_threshold and self._predicate is None:
            return None
        when, size = self._memory.get(handle.incarnation, (0.0, 0))
        if now - when >= _MEMORY_INTERVAL_S and handle.pid is not None:
            try:
                size = processes.memory(handle.pid)
            except ProcessLookupError:
                size = 0
            except OSError:
                pass  # no descriptor is left: what was measured last counts
            self._memory[handle.incarnation] = now, size
        return size

    def _reports_itself(self, handle: Handle, vitals: health.Vitals) -> bool:
        assert self._predicate is not None
        facts = {
            "pid": handle.pid,
            "slot": handle.slot,
            "generation": handle.generation,
            "connections": vitals.connections,
            "requests": None if vitals.requests < 0 else vitals.requests,
            "uptime": vitals.uptime,
            "memory": vitals.memory,
        }
        try:
            return bool(self._predicate(facts))
        except (Exception, SystemExit) as error:
            logger.error("recycle_when raised", exc_info=raised_in(error))
            return False


class HealthMonitor:
    """Looks at the workers, and sees to those that have to go."""

    def __init__(self, board: Scoreboard, put: Callable[[Fact], None], warn: Callable[[str], None]) -> None:
        """Nothing is looked at before `apply_rules`.

        Args:
            put: takes the fact that a stuck worker's stacks have been taken.
        """
        self._board = board
        self._put = put
        self._warn = warn
        self._judges: dict[int, HealthRules] = {}
        self._judge: HealthRules | None = None
        self._stalls = StalledClientReporter(board)
        self._tasks: set[asyncio.Task[None]] = set()

    def prepare(self, generation: int, settings: Settings) -> None:
        """Make the rules of a generation, without applying them: what can be wrong with them is found here.

        Raises:
            ConfigError: `recycle_when` names nothing that can be called.
        """
        self._judges[generation] = HealthRules(self._board, settings)

    def apply_rules(self, generation: int) -> None:
        """Apply the rules of this generation from now on."""
        self._judge = self._judges[generation]

    def drop_rules(self, generation: int) -> None:
        """Forget the rules of a generation."""
        self._judges.pop(generation, None)

    def check_all(self, roster: Iterable[Handle], now: float) -> None:
        """Look at each worker that serves."""
        assert self._judge is not None
        if (told := self._stalls.report_if_due(roster, now)) is not None:
            self._warn(told)
        for handle in roster:
            if handle.state is not WorkerState.READY or handle.reason == "hang":
                continue
            if (trouble := self._judge.trouble(handle, now)) is not None:
                self._stuck(handle, trouble)
            elif handle.replace is None and (why := self._judge.threshold_passed(handle, now)) is not None:
                logger.info("%s is recycled (%s)", handle, why)
                handle.replace, handle.reason = now, "recycle"

    def forget(self, handle: Handle) -> None:
        """The worker is gone."""
        for judge in self._judges.values():
            judge.forget(handle)

    def tell_stacks(self, workers: list[Handle], command: Command) -> None:
        """Answer with the stacks of these workers."""

        async def tell() -> None:
            found = [{"pid": handle.pid, "slot": handle.slot, "stacks": await _stacks_of(handle)} for handle in workers]
            command.answer({"workers": found})

        self._start(tell())

    def _stuck(self, handle: Handle, trouble: Trouble) -> None:
        handle.reason = "hang"
        handle.drain_first = trouble is Trouble.REQUEST
        self._warn(f"{handle} is replaced: {trouble.value}")

        async def take() -> None:
            try:
                handle.stacks = await _stacks_of(handle)
                logger.warning("stacks of %s:\n%s", handle, handle.stacks)
            finally:
                handle.replace = time.monotonic()
                self._put(Tick())

        self._start(take())

    def take_stacks(self, handle: Handle, then: Fact) -> None:
        """Log the stacks of a worker that is about to be killed, then put this fact."""

        async def take() -> None:
            handle.stacks = await _stacks_of(handle)
            logger.warning("stacks of %s:\n%s", handle, handle.stacks)
            self._put(then)

        self._start(take())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _stacks_of(handle: Handle) -> str:
    if handle.pidfd is None or handle.pid is None or handle.state is WorkerState.DEAD:
        return "no stacks: it has ended"
    try:
        with contextlib.ExitStack() as copies:  # since it may be buried while we wait
            pidfd = os.dup(handle.pidfd)
            copies.callback(os.close, pidfd)
            file = os.dup(handle.stacks_file)
            copies.callback(os.close, file)
            return await stacks.capture(file, pidfd, handle.pid, adds=True)
    except OSError as error:
        return f"no stacks: {error.strerror}"


def _predicate(settings: Settings) -> Callable[[dict[str, Any]], Any] | None:
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
