"""The life of one worker, as a table.

A worker, seen from the master, is in one state; what happens to it is one event; the table tells the next state and what
the master has to do. It is total: each pair of state and event stands in it, so that no fact can arrive that nobody thought
of. Nothing here touches a process: `master.actions` carries out what the table says.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Literal, NamedTuple

LifePhase = Literal["import", "fork", "startup", "serving", "drain"]
"""What a worker is doing, or was doing when it ended. `startup`: `worker.on_start` hooks and the app's lifespan."""

PHASES = ("booting", "serving", "degraded", "leaving", "draining", "stopping")
"""Where a cluster can be; the places stand in the scoreboard."""
MODES = ("batch", "one_by_one", "handoff")
"""How a worker can take connections (`worker.pace`), likewise."""


class WorkerState(IntEnum):
    """Where a worker is. The numbers stand in the scoreboard."""

    SPAWNING = 1  # asked for; no process is known yet
    BOOTING = 2  # its process exists; it starts the engine
    READY = 3  # it serves
    DRAINING = 4  # it takes nothing new and finishes what it has
    DYING = 5  # it was sent SIGKILL
    DEAD = 6  # reaped

    @property
    def label(self) -> str:
        """The name that users see."""
        return self.name.lower()


def state_label(code: int) -> str:
    """Return the name of the state that a code of the scoreboard stands for; `unknown`: there is no such state."""
    return WorkerState(code).label if code in WorkerState._value2member_map_ else "unknown"


def mode_label(code: int, *, draining: bool) -> str:
    """Return how a worker takes connections, as users see it; `unknown`: there is no such mode.

    Args:
        code: its place in `MODES`, from the scoreboard.
        draining: the worker itself has begun to drain: then it takes none.
    """
    if draining:
        return "none"
    return MODES[code] if 0 <= code < len(MODES) else "unknown"


class WorkerEvent(Enum):
    """What can happen to a worker."""

    FORKED = "its process exists"
    READY = "it says that it serves"
    DRAIN = "it is to leave, politely"
    KILL = "it is to leave at once"
    EXITED = "it was reaped, or never came to be"


class WorkerAction(Enum):
    """What the master does about it."""

    WATCH = "watch the process, write its pid file"
    ANNOUNCE = "tell that it serves"
    TELL_DRAIN = "send it the order to drain"
    SIGKILL = "send it SIGKILL, if it has a process"
    BURY = "forget it: row, channel, pid file"


class Step(NamedTuple):
    """A cell of the table."""

    state: WorkerState
    actions: tuple[WorkerAction, ...] = ()


_S, _E, _A = WorkerState, WorkerEvent, WorkerAction

TRANSITIONS: dict[tuple[WorkerState, WorkerEvent], Step] = {
    (_S.SPAWNING, _E.FORKED): Step(_S.BOOTING, (_A.WATCH,)),
    (_S.SPAWNING, _E.READY): Step(_S.READY, (_A.ANNOUNCE,)),
    (_S.SPAWNING, _E.DRAIN): Step(_S.DRAINING, (_A.TELL_DRAIN,)),
    (_S.SPAWNING, _E.KILL): Step(_S.DYING),
    (_S.SPAWNING, _E.EXITED): Step(_S.DEAD, (_A.BURY,)),
    (_S.BOOTING, _E.FORKED): Step(_S.BOOTING),
    (_S.BOOTING, _E.READY): Step(_S.READY, (_A.ANNOUNCE,)),
    (_S.BOOTING, _E.DRAIN): Step(_S.DRAINING, (_A.TELL_DRAIN,)),
    (_S.BOOTING, _E.KILL): Step(_S.DYING, (_A.SIGKILL,)),
    (_S.BOOTING, _E.EXITED): Step(_S.DEAD, (_A.BURY,)),
    (_S.READY, _E.FORKED): Step(_S.READY, (_A.WATCH,)),
    (_S.READY, _E.READY): Step(_S.READY),
    (_S.READY, _E.DRAIN): Step(_S.DRAINING, (_A.TELL_DRAIN,)),
    (_S.READY, _E.KILL): Step(_S.DYING, (_A.SIGKILL,)),
    (_S.READY, _E.EXITED): Step(_S.DEAD, (_A.BURY,)),
    (_S.DRAINING, _E.FORKED): Step(_S.DRAINING, (_A.WATCH,)),
    (_S.DRAINING, _E.READY): Step(_S.DRAINING),
    # Once more: this time it may be for the last time, and then nothing goes to the keeper any more.
    (_S.DRAINING, _E.DRAIN): Step(_S.DRAINING, (_A.TELL_DRAIN,)),
    (_S.DRAINING, _E.KILL): Step(_S.DYING, (_A.SIGKILL,)),
    (_S.DRAINING, _E.EXITED): Step(_S.DEAD, (_A.BURY,)),
    # Killed before its pid was known: the signal is sent when it becomes known.
    (_S.DYING, _E.FORKED): Step(_S.DYING, (_A.WATCH, _A.SIGKILL)),
    (_S.DYING, _E.READY): Step(_S.DYING),
    (_S.DYING, _E.DRAIN): Step(_S.DYING),
    (_S.DYING, _E.KILL): Step(_S.DYING, (_A.SIGKILL,)),
    (_S.DYING, _E.EXITED): Step(_S.DEAD, (_A.BURY,)),
    (_S.DEAD, _E.FORKED): Step(_S.DEAD),
    (_S.DEAD, _E.READY): Step(_S.DEAD),
    (_S.DEAD, _E.DRAIN): Step(_S.DEAD),
    (_S.DEAD, _E.KILL): Step(_S.DEAD),
    (_S.DEAD, _E.EXITED): Step(_S.DEAD),
}


def step(state: WorkerState, event: WorkerEvent) -> Step:
    """What follows from an event in a state."""
    return TRANSITIONS[state, event]


LIVE_STATES = frozenset({WorkerState.SPAWNING, WorkerState.BOOTING, WorkerState.READY})
"""States of a worker that serves or is about to."""


def life_phase(state: WorkerState, *, executed: bool, started: bool) -> LifePhase:
    """Return what a worker in this state is doing.

    Args:
        executed: it was executed, not forked: it imports the app itself.
        started: its own code runs: the app is imported.
    """
    match state:
        case WorkerState.READY:
            return "serving"
        case WorkerState.DRAINING:
            return "drain"
    return "startup" if started else "import" if executed else "fork"
