"""A worker as the master sees it; `worker.life.Life` is the same worker seen from inside."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ....core.health import Promise
from ....core.lifecycle import LifePhase, WorkerState, life_phase
from ....core.planning import WorkerView
from ....events import Reason
from ....linux.scoreboard import Row
from ....protocol import messages

if TYPE_CHECKING:
    from .worker_channel import WorkerChannel


@dataclass(slots=True, eq=False)
class Handle:
    """One life of one worker, from the order to fork until it is buried.

    Attributes:
        row: its row of the scoreboard.
        place: in the steered group, or None (`steering`).
        pid: None until the zygote has reported it.
        born: monotonic time of the order.
        ready_at: monotonic time when it said that it serves, or None.
        reason: why the master ends it, or None if it doesn't.
        replace: monotonic time since when it is to be replaced within its generation, or None.
        stacks_file: where it writes its stacks when asked.
        stacks: what it wrote when it was found to be stuck, or None.
        cut: what of it was not finished when its time to drain was over, or None: it was reset, or the worker was killed.
        end_failed: what failed when it had drained (a hook, the app's shutdown), or None.
        overdue: the state in which it has stayed for too long, once its stacks have been asked for; or None.
        executed: it was executed, not forked: it imports the app itself.
        started: it has said that it runs: the app is imported, and the worker's own code begins.
        ended_in: what it was doing when it was killed or ended, or None.
        drain_first: it is told to drain when its successor is ready; false: it is killed then, since it wouldn't hear.
        promise: what its heartbeats promise.
        talk: the link to it, or None when its channel has closed.
        timer: bounds the state that it is in.
    """

    incarnation: int
    slot: int
    generation: int
    row: int
    born: float
    place: int | None = None
    state: WorkerState = WorkerState.SPAWNING
    pid: int | None = None
    pidfd: int | None = None
    ready_at: float | None = None
    reason: Reason | None = None
    replace: float | None = None
    stacks_file: int = -1
    stacks: str | None = None
    cut: str | None = None
    end_failed: str | None = None
    overdue: WorkerState | None = None
    executed: bool = False
    started: bool = False
    ended_in: LifePhase | None = None
    drain_first: bool = True
    promise: Promise = field(default_factory=Promise, repr=False)
    talk: WorkerChannel | None = field(default=None, repr=False)
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)

    def send(self, message: messages.Talk) -> None:
        """Say something to it; lost if it is gone."""
        if self.talk is not None:
            self.talk.send(message)

    def seen(self) -> WorkerView:
        """What decisions need to know of it."""
        return WorkerView(self.incarnation, self.slot, self.generation, self.state, self.replace)

    def deadline(self, row: Row, now: float) -> float:
        """Return when its next heartbeat is due, by what its row says and by when that was seen first."""
        return self.promise.deadline(row.integers[Row.heartbeat.index], row.heartbeat, now)

    def phase(self) -> LifePhase:
        """What it is doing, or was doing when it was killed or ended."""
        return self.ended_in or life_phase(self.state, executed=self.executed, started=self.started)

    def uptime(self, now: float) -> float:
        """Seconds since the order to fork it."""
        return now - self.born

    def __str__(self) -> str:
        return f"worker {self.pid or '?'} (slot {self.slot}, generation {self.generation})"
