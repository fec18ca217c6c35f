"""The stages of a change of generation: the new one must prove itself before old workers are retired.

    LOADING ──prepared──> PROVING ──the first new worker has settled──> ROLLING ──no old worker is left──> done

While the change is loading and proving, the old generation serves unchanged, and crashed workers are replaced from its own
zygote. The master makes one new worker. It retires old workers only after that worker has been ready for `SETTLE_S` and still
runs. The change is abandoned if the app can't be loaded, if a new worker doesn't become ready, or if one crashes during the
change. Then the old generation is wanted again, and workers of the new one are replaced.

This module is pure: it uses neither processes nor a clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from .planning import WorkerView

SETTLE_S = 0.2
"""Seconds for which the first new worker must have been ready before an old worker is retired."""


class Stage(Enum):
    """The stage of a change of generation."""

    LOADING = "loading"
    PROVING = "proving"
    ROLLING = "rolling"


@dataclass(slots=True)
class Rollout:
    """A change from one generation to the next.

    Attributes:
        settle_s: seconds for which the first new worker must have been ready before an old worker is retired.
        settles_at: when the first new worker will have settled, by the caller's clock; None: it isn't ready yet.
    """

    old: int
    new: int
    stage: Stage = Stage.LOADING
    settles_at: float | None = None
    settle_s: float = SETTLE_S

    def on_loaded(self) -> None:
        """Note that the new code is loaded."""
        self.stage = Stage.PROVING

    def ready(self, generation: int, now: float) -> None:
        """Note that a worker of that generation became ready."""
        if self.stage is Stage.PROVING and generation == self.new and self.settles_at is None:
            self.settles_at = now + self.settle_s

    def advance(self, now: float) -> None:
        """Start to roll if the first new worker has settled by now."""
        if self.stage is Stage.PROVING and self.settles_at is not None and now >= self.settles_at:
            self.stage = Stage.ROLLING

    def may_retire(self) -> bool:
        """Return whether old workers may be retired."""
        return self.stage is Stage.ROLLING

    def finished(self, workers: Iterable[WorkerView]) -> bool:
        """Return whether the change is complete: no worker of another generation is left, not even one that drains."""
        return self.stage is Stage.ROLLING and all(worker.generation == self.new for worker in workers)

    def replaced(self, workers: Iterable[WorkerView]) -> int:
        """Return the number of workers of the new generation, for progress lines."""
        return sum(worker.generation == self.new for worker in workers)
