"""The regular look at each worker that serves: whether it has passed a threshold, whether it is stuck."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

from .. import health
from ..errors import ConfigError
from ..kernel import processes
from ..kernel.scoreboard import Scoreboard
from ..settings import Settings
from .handle import Handle

logger = logging.getLogger("cluster2.master")

MEMORY_EVERY = 5.0
"""Seconds between two measurements of a worker's memory: each walks its page tables."""


class Checkup:
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

    def passed(self, handle: Handle, now: float) -> str | None:
        """Why the worker has done enough, or None."""
        vitals = self._vitals(handle, now)
        factor = self._stretch.setdefault(handle.incarnation, 1 + random.random() * self._settings.threshold_jitter)
        reason = health.passed(self._limits.stretched(factor), vitals)
        if reason is None and self._predicate is not None and self._says_so(handle, vitals):
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
            heartbeat=row.heartbeat,
            request_deadline=row.request_deadline,
        )

    def _weigh(self, handle: Handle, now: float) -> int | None:
        if not self._settings.memory_threshold and self._predicate is None:
            return None
        when, size = self._memory.get(handle.incarnation, (0.0, 0))
        if now - when >= MEMORY_EVERY and handle.pid is not None:
            try:
                size = processes.memory(handle.pid)
            except ProcessLookupError:
                size = 0
            self._memory[handle.incarnation] = now, size
        return size

    def _says_so(self, handle: Handle, vitals: health.Vitals) -> bool:
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
        except Exception:
            logger.exception("recycle_when raised")
            return False


def _predicate(settings: Settings) -> Callable[[dict[str, Any]], Any] | None:
    named: Any = settings.recycle_when
    if named is None or callable(named):
        return named  # type: ignore[no-any-return]
    if settings.chdir not in sys.path:
        sys.path.insert(0, settings.chdir)
    try:
        found: Callable[[dict[str, Any]], Any] = resolve_name(named)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"recycle_when = {named!r}: can't be imported: {error}") from error
    return found
