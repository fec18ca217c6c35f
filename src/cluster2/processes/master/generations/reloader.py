"""Carry a change of generation through (`core.rollout` decides), and give its outcome to the commands that requested it.

A reload that is requested while another is under way begins when that has ended, and all requests that come in the meantime
share it: the code that they want may be newer than the code that is being loaded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .... import events
from ....core.lifecycle import WorkerState
from ....core.planning import WorkerView
from ....core.rollout import SETTLE_S, Rollout, Stage
from ....errors import ClusterError, as_cluster_error
from ....runtime import development
from ..state.cluster_state import ClusterState

logger = logging.getLogger("cluster2.master")

_MAX_FAULTS_NAMED = 5
"""Workers that did not leave in order and are named in the response to a command."""


class ReloadRequest:
    """A reload that was requested. Requests that share a reload share this object.

    Attributes:
        outcome: the response to the commands that wait for it; None: the reload hasn't ended.
        progress: how far it is, or None.
    """

    def __init__(self) -> None:
        self.outcome: dict[str, Any] | ClusterError | None = None
        self.progress: dict[str, Any] | None = None


class Reloader:
    """At most one change of generation at a time. The change under way is `ClusterState.rollout`."""

    def __init__(
        self,
        state: ClusterState,
        begin: Callable[[int], Sequence[str]],
        want: Callable[[int], None],
        drop: Callable[[int], None],
        count: Callable[[bool], None] = lambda done: None,
    ) -> None:
        """Make a reloader. It begins nothing before `open`.

        Args:
            begin: starts to load the code of that generation; returns warnings about its options, a line each. An error that
                it raises abandons the reload.
            want: sets the wanted generation.
            drop: forgets a generation whose zygote isn't needed any more.
            count: counts an end; takes True if the reload was carried through.
        """
        self._state = state
        self._begin = begin
        self._want = want
        self._drop = drop
        self._count = count
        self._request = ReloadRequest()
        self._next: ReloadRequest | None = None
        self._last = 1
        self._began = 0.0
        self._current = 1
        self._warnings: list[str] = []
        self._faults: list[str] = []
        self._opened = False

    def open(self) -> None:
        """Allow changes from now on: the first generation serves. A reload that was requested before begins."""
        self._opened = True
        self._start_next()

    def request(self) -> ReloadRequest:
        """Load the code again, or have that done after the reload that is under way."""
        if self._next is None:
            self._next = ReloadRequest()
        requested = self._next
        if self._state.rollout is None and self._opened:
            self._start_next()
        return requested

    def on_loaded(self) -> None:
        """Make a first worker of the new code, which is loaded."""
        rollout = self._under_way()
        rollout.on_loaded()
        self._want(rollout.new)

    def advance(self, now: float, workers: Iterable[WorkerView], wanted: int) -> None:
        """Take the steps that have become possible.

        Args:
            wanted: the wanted number of workers.
        """
        rollout = self._state.rollout
        if rollout is None:
            return
        seen = list(workers)
        self._request.progress = {"replaced": rollout.replaced(seen), "of": wanted}
        rollout.advance(now)
        # A slot may still be empty: one that backed off, or one that the new options have added.
        if rollout.finished(seen) and sum(worker.state is WorkerState.READY for worker in seen) >= wanted:
            self._complete(rollout)

    def abandon(self, error: ClusterError) -> None:
        """Go on with the old code: the new code has failed."""
        rollout, self._state.rollout = self._under_way(), None
        self._want(rollout.old)
        self._drop(rollout.new)
        self._count(False)
        logger.error("reload abandoned, generation %d goes on: %s", rollout.old, error.message)
        if error.detail:
            logger.error("%s", error.detail)
        self._state.emit(
            events.ReloadFailed(
                time=time.time(), generation=rollout.new, reason=error.message, traceback=error.detail or None
            )
        )
        self._end(ClusterError(f"reload abandoned, the old generation goes on: {error.message}", detail=error.detail))

    def add_warnings(self, warnings: Iterable[str]) -> None:
        """Add warnings about the new options that came up later."""
        self._warnings += warnings

    def on_exit_failed(self, generation: int, fault: str) -> None:
        """Record that a worker of that generation did not leave in order."""
        if self._state.rollout is not None and not self._state.is_new(generation):
            self._faults.append(fault)

    def cancel(self, reason: str) -> None:
        """End all requests: the cluster ends."""
        self._state.rollout = None
        cancelled, self._next = self._next, None
        for request in (self._request, cancelled):
            if request is not None and request.outcome is None:
                request.outcome = ClusterError(reason)

    def may_retire(self) -> bool:
        """Return True if workers of an older generation may be retired."""
        return self._state.rollout is None or self._state.rollout.may_retire()

    def fallback_generation(self) -> int | None:
        """Return the generation that empty slots get while the new one has to prove itself; None: the wanted one."""
        rollout = self._state.rollout
        return rollout.old if rollout is not None and rollout.stage is Stage.PROVING else None

    def next_deadline(self) -> float | None:
        """Return the monotonic time at which `advance` has something to do although nothing happens."""
        rollout = self._state.rollout
        return rollout.settles_at if rollout is not None and rollout.stage is Stage.PROVING else None

    def _under_way(self) -> Rollout:
        assert self._state.rollout is not None
        return self._state.rollout

    def _complete(self, rollout: Rollout) -> None:
        self._state.rollout = None
        self._current = rollout.new
        self._drop(rollout.old)
        self._count(True)
        took = time.monotonic() - self._began
        logger.info("reloaded: generation %d serves, after %.2f s", rollout.new, took)
        self._state.emit(events.Reloaded(time=time.time(), generation=rollout.new, seconds=took))
        if self._faults:
            self._end(ClusterError(f"generation {rollout.new} serves, but {summary(self._faults)}"))
        else:
            self._end({"generation": rollout.new, "seconds": took, "warnings": self._warnings})

    def _end(self, outcome: dict[str, Any] | ClusterError) -> None:
        self._request.outcome = outcome
        self._start_next()

    def _start_next(self) -> None:
        """Begin the reload that was requested in the meantime, if one was."""
        if self._next is None:
            return
        self._request, self._next = self._next, None
        self._last += 1
        # In development the old code has no users to protect, and the developer waits.
        settle_s = 0.0 if development.is_on() else SETTLE_S
        self._state.rollout = Rollout(self._current, self._last, settle_s=settle_s)
        self._began = time.monotonic()
        self._warnings, self._faults = [], []
        self._state.emit(events.Reloading(time=time.time(), generation=self._last))
        try:
            self._warnings += self._begin(self._last)
        except Exception as error:
            self.abandon(as_cluster_error(error))


def summary(faults: Sequence[str]) -> str:
    """Return what went wrong as the end of one line."""
    more = f"; and {len(faults) - _MAX_FAULTS_NAMED} more" if len(faults) > _MAX_FAULTS_NAMED else ""
    return "; ".join(faults[:_MAX_FAULTS_NAMED]) + more
