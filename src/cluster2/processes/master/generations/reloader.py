"""Carries a change of generation through (`rolling` decides), and answers those who asked for it.

One that is asked for while another is under way is put off until that has ended, and all who asked in the meantime share it:
the code that they want may be newer than the code that is being loaded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence

from .... import events
from ....core.lifecycle import WorkerState
from ....core.planning import WorkerView
from ....core.rollout import Rollout, Stage
from ....errors import ClusterError, as_cluster_error
from ..inbox import Command

logger = logging.getLogger("cluster2.master")

_MAX_FAULTS_TOLD = 5
"""Workers that did not leave as they were to, and are named in the answer to a command."""


class Reloader:
    """At most one change of generation at a time.

    Attributes:
        rolling: the one that is under way, or None.
    """

    def __init__(
        self,
        begin: Callable[[int], Sequence[str]],
        want: Callable[[int], None],
        drop: Callable[[int], None],
        emit: Callable[[events.Event], None],
        count: Callable[[bool], None] = lambda done: None,
    ) -> None:
        """Nothing is under way, and nothing is begun before `open`.

        Args:
            begin: start to load the code of that generation; returns warnings about its options, a line each. What it
                raises abandons the reload.
            want: that generation is wanted from now on.
            drop: that generation's zygote isn't needed any more.
            count: one has ended; takes whether it was carried through.
        """
        self._begin = begin
        self._want = want
        self._drop = drop
        self._emit = emit
        self._count = count
        self._callers: list[Command] = []
        self._next: list[Command] = []
        self._asked_again = False
        self._last = 1
        self._began = 0.0
        self._current = 1
        self._warnings: list[str] = []
        self._faults: list[str] = []
        self._opened = False
        self.rolling: Rollout | None = None

    def open(self) -> None:
        """Allow changes from now on: the first generation serves. One that was asked for before is begun."""
        self._opened = True
        self._start_next()

    def request(self, command: Command | None) -> None:
        """Somebody (None: a signal) wants the code loaded again."""
        if self.rolling is not None or not self._opened:
            self._asked_again = True
            self._next += [command] if command else []
            return
        self._callers = [command] if command else []
        self._start()

    def on_loaded(self) -> None:
        """The new code is loaded: make a first worker of it."""
        assert self.rolling is not None
        self.rolling.on_loaded()
        self._want(self.rolling.new)

    def advance(self, now: float, workers: Iterable[WorkerView], wanted: int) -> None:
        """Something has happened: go on, or be done.

        Args:
            wanted: how many workers are.
        """
        if self.rolling is None:
            return
        seen = list(workers)
        before = self.rolling.replaced(seen)
        self.rolling.advance(now)
        for command in self._callers:
            command.tell({"replaced": before, "of": wanted})
        # A slot may be empty still: one that backed off, or one that the new options have added.
        if self.rolling.finished(seen) and sum(worker.state is WorkerState.READY for worker in seen) >= wanted:
            self._done()

    def abandon(self, error: ClusterError) -> None:
        """The new code is no good: go on with the old."""
        assert self.rolling is not None
        rolling, self.rolling = self.rolling, None
        self._want(rolling.old)
        self._drop(rolling.new)
        self._count(False)
        logger.error("reload abandoned, generation %d goes on: %s", rolling.old, error.message)
        if error.detail:
            logger.error("%s", error.detail)
        self._emit(
            events.ReloadFailed(
                time=time.time(), generation=rolling.new, reason=error.message, traceback=error.detail or None
            )
        )
        self._answer(
            ClusterError(f"reload abandoned, the old generation goes on: {error.message}", detail=error.detail)
        )

    def add_warnings(self, warnings: Iterable[str]) -> None:
        """These warnings about the new options came up later."""
        self._warnings += warnings

    def left_badly(self, generation: int, fault: str) -> None:
        """A worker of that generation did not leave as it was to."""
        if self.rolling is not None and generation != self.rolling.new:
            self._faults.append(fault)

    def cancel(self, reason: str) -> None:
        """The cluster ends: nothing comes of it any more."""
        self.rolling = None
        self._asked_again = False
        self._callers, self._next = self._callers + self._next, []
        self._answer(ClusterError(reason))

    def proves(self, generation: int) -> bool:
        """Whether what becomes of a worker of that generation decides about the change."""
        return self.rolling is not None and generation == self.rolling.new

    def may_retire(self) -> bool:
        """Whether predecessors may be retired."""
        return self.rolling is None or self.rolling.may_retire()

    def fallback_generation(self) -> int | None:
        """Return the generation that empty slots get while the new one has to prove itself; None: the wanted one."""
        return self.rolling.old if self.rolling is not None and self.rolling.stage is Stage.PROVING else None

    def wake_at(self) -> float | None:
        """When `advance` has something to do although nothing happens."""
        if self.rolling is None or self.rolling.stage is not Stage.PROVING:
            return None
        return self.rolling.settles_at

    def _start(self) -> None:
        self._last += 1
        self.rolling = Rollout(self._current, self._last)
        self._began = time.monotonic()
        self._faults = []
        self._emit(events.Reloading(time=time.time(), generation=self._last))
        try:
            self._warnings = [*self._begin(self._last)]
        except Exception as error:
            self.abandon(as_cluster_error(error))

    def _done(self) -> None:
        assert self.rolling is not None
        rolling, self.rolling = self.rolling, None
        self._current = rolling.new
        self._drop(rolling.old)
        self._count(True)
        took = time.monotonic() - self._began
        logger.info("reloaded: generation %d serves, after %.2f s", rolling.new, took)
        self._emit(events.Reloaded(time=time.time(), generation=rolling.new, seconds=took))
        if self._faults:
            self._answer(ClusterError(f"generation {rolling.new} serves, but {summary(self._faults)}"))
        else:
            self._answer({"generation": rolling.new, "seconds": took, "warnings": self._warnings})

    def _answer(self, result: dict[str, object] | ClusterError) -> None:
        callers, self._callers = self._callers, []
        for command in callers:
            command.answer(result)
        self._start_next()

    def _start_next(self) -> None:
        """Begin the change that was asked for meanwhile, if one was."""
        if self._asked_again:
            self._asked_again = False
            self._callers, self._next = self._next, []
            self._start()


def summary(faults: Sequence[str]) -> str:
    """Return what went wrong as the end of one line."""
    more = f"; and {len(faults) - _MAX_FAULTS_TOLD} more" if len(faults) > _MAX_FAULTS_TOLD else ""
    return "; ".join(faults[:_MAX_FAULTS_TOLD]) + more
