"""The lifecycle of a worker as a table of states and events.

The table gives, for a worker's state and an event, the next state and the actions of the master. Invariant: it is total, so each
event has a defined effect in each state. A test checks that. This module is pure;
`processes.master.workers.lifecycle_actions` carries the actions out.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Literal, NamedTuple

LifePhase = Literal["import", "fork", "startup", "serving", "drain"]
"""The phase of a worker, or the one in which it ended. `startup`: `worker.on_start` hooks and the app's lifespan."""

PHASES = ("booting", "serving", "degraded", "leaving", "draining", "stopping")
"""The phases of a cluster. The scoreboard has the index, so the order is part of its format."""
MODES = ("batch", "one_by_one", "handoff")
"""The modes in which a worker takes connections (`processes.worker.sampling.accept_mode`). The scoreboard has the index."""


class WorkerState(IntEnum):
    """The state of a worker. The scoreboard has the numbers."""

    SPAWNING = 1  # ordered from the zygote; its pid isn't known yet
    BOOTING = 2  # the process exists and starts the engine
    READY = 3  # it serves
    DRAINING = 4  # it accepts no connections and finishes its requests
    DYING = 5  # the master has sent SIGKILL
    DEAD = 6  # reaped

    @property
    def label(self) -> str:
        """The name that users see."""
        return self.name.lower()


def state_label(code: int) -> str:
    """Return the name of the state that a code of the scoreboard stands for; `unknown`: there is no such state."""
    return WorkerState(code).label if code in WorkerState._value2member_map_ else "unknown"


def mode_label(code: int, *, draining: bool) -> str:
    """Return the name of a worker's mode that users see; `unknown`: there is no such mode.

    Args:
        code: the index in `MODES`, from the scoreboard.
        draining: the worker has begun to drain, so it takes no connections: `none`.
    """
    if draining:
        return "none"
    return MODES[code] if 0 <= code < len(MODES) else "unknown"


class WorkerEvent(Enum):
    """An event in the life of a worker."""

    FORKED = "its process exists"
    READY = "it says that it serves"
    DRAIN = "it is to drain and exit"
    KILL = "it is to exit at once"
    EXITED = "it was reaped, or was never made"


class WorkerAction(Enum):
    """An action of the master on a worker."""

    WATCH = "watch the process, write its pid file"
    ANNOUNCE = "emit the event that it serves"
    TELL_DRAIN = "send it the order to drain"
    SIGKILL = "send it SIGKILL, if it has a process"
    BURY = "release its row, channel and pid file"


class Step(NamedTuple):
    """A cell of the table: the next state, and the actions."""

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
    # A second order differs: it may be that of a shutdown, after which no connection is handed to the keeper any more.
    (_S.DRAINING, _E.DRAIN): Step(_S.DRAINING, (_A.TELL_DRAIN,)),
    (_S.DRAINING, _E.KILL): Step(_S.DYING, (_A.SIGKILL,)),
    (_S.DRAINING, _E.EXITED): Step(_S.DEAD, (_A.BURY,)),
    # It was to be killed before its pid was known: the signal is sent as soon as it is.
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
    """Return the cell of the table for an event in a state."""
    return TRANSITIONS[state, event]


SHOWN_STATES = (WorkerState.BOOTING, WorkerState.READY, WorkerState.DRAINING, WorkerState.DYING)
"""The states that users see. A worker is shown once it has a pid, so it isn't SPAWNING any more, and it is forgotten in the step in
which it becomes DEAD."""

LIVE_STATES = frozenset({WorkerState.SPAWNING, WorkerState.BOOTING, WorkerState.READY})
"""The states of a worker that serves or will serve."""


def life_phase(state: WorkerState, *, executed: bool, started: bool) -> LifePhase:
    """Return the phase of a worker in this state.

    Args:
        executed: the worker was executed, not forked, so it imports the app itself.
        started: the worker's own code runs: the app is imported.
    """
    match state:
        case WorkerState.READY:
            return "serving"
        case WorkerState.DRAINING:
            return "drain"
    return "startup" if started else "import" if executed else "fork"
