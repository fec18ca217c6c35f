"""A worker as the master sees it. `processes.worker.info.WorkerInfo` is the same worker, seen from inside."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from ....core.health import Promise
from ....core.lifecycle import LifePhase, WorkerState, life_phase
from ....core.planning import WorkerView
from ....events import Reason
from ....linux.scoreboard import Row
from ....protocol import messages
from ..messaging.worker_link import WorkerLink


@dataclass(slots=True, eq=False)
class WorkerHandle:
    """One worker, from the order to make it until its exit is recorded. Its successor in the slot has a handle of its own.

    Attributes:
        row: its row of the scoreboard.
        place: its index in the steered group (`steering`), or None.
        pid: None until the zygote has reported it.
        born: monotonic time of the order.
        ready_at: monotonic time of its `Ready` message, or None.
        reason: the reason for which the master ends it, or None if the master doesn't.
        replace: monotonic time since when it is to be replaced within its generation, or None.
        stacks_file: descriptor of the file that it writes its stacks to when asked.
        stacks: the stacks that it wrote when it was found to be stuck, or None.
        cut: the work that it had not finished when `drain_timeout` was over, as a line; or None.
        end_failed: the hook or lifespan shutdown that failed after the drain, as a line; or None.
        overdue: the state in which it has stayed for too long, once its stacks have been asked for; or None.
        waits_for: the child processes of the app that it waits for after its drain, as text; "": none.
        executed: it was executed, not forked: it imports the app itself.
        started: it has sent `Started`: the app is imported, and the worker's own code runs.
        ended_in: its phase when it was killed or ended, or None.
        drain_first: when its successor is ready it drains. False: it is killed then, since a stuck loop reads no message.
        promise: the time until which its heartbeats promise the next one.
        link: the connection for messages to it, or None when its channel has closed.
        timer: bounds the time in its present state.
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
    waits_for: str = ""
    executed: bool = False
    started: bool = False
    ended_in: LifePhase | None = None
    drain_first: bool = True
    promise: Promise = field(default_factory=Promise, repr=False)
    link: WorkerLink | None = field(default=None, repr=False)
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)

    def send(self, message: messages.ChannelMessage) -> None:
        """Send a message. It is lost if the worker has gone."""
        if self.link is not None:
            self.link.send(message)

    def mark_stuck(self, *, drain_first: bool) -> None:
        """Record that it is stuck. It is marked for replacement when its stacks have been taken.

        Args:
            drain_first: its loop still runs, so it can drain. False: it is killed when its successor is ready.
        """
        self.reason = "hang"
        self.drain_first = drain_first

    def mark_for_replacement(self, reason: Reason, now: float) -> None:
        """Have it replaced within its generation. The first mark counts: it says since when a successor is due."""
        if self.replace is None:
            self.replace = now
            if self.reason != "hang":  # a command may ask for it while its stacks are being taken
                self.reason = reason

    @property
    def exit_wanted(self) -> bool:
        """True if its exit is one that the master wants: it is no crash."""
        return self.reason not in (None, "crash")

    def forget_replacement(self) -> None:
        """Drop the reason of a replacement that hasn't begun: the worker has ended by itself."""
        if self.reason == "recycle":
            self.reason = None

    def view(self) -> WorkerView:
        """Return the worker in the form that decisions take."""
        return WorkerView(self.incarnation, self.slot, self.generation, self.state, self.replace)

    def deadline(self, row: Row, now: float) -> float:
        """Return the time at which its next heartbeat is due, by its row and by when that value was seen first."""
        return self.promise.deadline(row.integers[Row.heartbeat.index], row.heartbeat, now)

    def phase(self) -> LifePhase:
        """Return its phase now, or when it was killed or ended."""
        return self.ended_in or life_phase(self.state, executed=self.executed, started=self.started)

    def uptime(self, now: float) -> float:
        """Return the seconds since the order to make it."""
        return now - self.born

    def __str__(self) -> str:
        return f"worker {self.pid or '?'} (slot {self.slot}, generation {self.generation})"
