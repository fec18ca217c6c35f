"""A change of generation under way: what has to be shown before the old one may go.

    LOADING ──prepared──> PROVING ──the first new worker has settled──> ROLLING ──no old worker is left──> done

While loading and proving, the old generation is untouched: it serves, and dead workers are replaced from its own zygote. One
successor is made; only when it has been ready for a moment, and lives still, are predecessors retired. If the app can't be
loaded, or a new worker doesn't become ready, or crashes while the change is under way, it is abandoned: wanted is the old
generation again, and what the new one has is replaced.

Nothing here touches a process or a clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from .planning import WorkerView

SETTLE_S = 0.2
"""Seconds that the first new worker must live, once ready, before an old one is retired for it."""


class Stage(Enum):
    """How far a change of generation is."""

    LOADING = "loading"
    PROVING = "proving"
    ROLLING = "rolling"


@dataclass(slots=True)
class Rollout:
    """A change from one generation to the next.

    Attributes:
        settles_at: when the first new worker will have settled; None: it isn't ready yet.
    """

    old: int
    new: int
    stage: Stage = Stage.LOADING
    settles_at: float | None = None

    def on_loaded(self) -> None:
        """The new code is loaded."""
        self.stage = Stage.PROVING

    def ready(self, generation: int, now: float) -> None:
        """A worker became ready."""
        if self.stage is Stage.PROVING and generation == self.new and self.settles_at is None:
            self.settles_at = now + SETTLE_S

    def advance(self, now: float) -> None:
        """Some time has passed."""
        if self.stage is Stage.PROVING and self.settles_at is not None and now >= self.settles_at:
            self.stage = Stage.ROLLING

    def may_retire(self) -> bool:
        """Whether predecessors may go."""
        return self.stage is Stage.ROLLING

    def finished(self, workers: Iterable[WorkerView]) -> bool:
        """Whether no worker of another generation is left, draining ones included."""
        return self.stage is Stage.ROLLING and all(worker.generation == self.new for worker in workers)

    def replaced(self, workers: Iterable[WorkerView]) -> int:
        """How many new workers there are, for those who watch."""
        return sum(worker.generation == self.new for worker in workers)
