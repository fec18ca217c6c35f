"""The effect of each signal on each kind of process, declared once.

`linux.signals` sets the dispositions, `docs/signals.md` shows the table, and a test compares both with real processes.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, NamedTuple

Role = Literal["master", "worker", "zygote", "keeper", "monitor"]
SIGNAL_ROLES: tuple[Role, ...] = ("master", "worker", "zygote", "keeper", "monitor")


class Disposition(Enum):
    """The disposition of a signal: how a process has the kernel deliver it."""

    HANDLED = "call a handler"
    IGNORED = "ignore it, also in programs that are executed"
    DROPPED = "call a handler that does nothing"  # not ignored: programs that are executed have the default again
    DEFAULT = "do what it always does"


class _Effect(NamedTuple):
    """The effect of a signal on a process.

    Attributes:
        text: the cell of the table in the docs.
    """

    disposition: Disposition
    text: str


_H, _D = Disposition.HANDLED, Disposition.DEFAULT
_IGNORED = _Effect(Disposition.DROPPED, "ignored")
_BY_PYTHON = _Effect(Disposition.IGNORED, "ignored by Python")
_STACKS = _Effect(_H, "writes its stacks for the master")
_STOPS = _Effect(_D, "stops it until CONT")
_NOTHING = _Effect(_D, "nothing")
_APP = _Effect(_D, "the app's; without a handler it ends the worker, which is replaced")
_ENDS = _Effect(_D, "ends it; another is started")
_ENDS_MASTER = _Effect(_D, "ends it; workers drain and leave")
_GOES_ON = _Effect(_D, "goes on after a stop")


def _row(master: _Effect, worker: _Effect, others: _Effect) -> dict[Role, _Effect]:
    return {"master": master, "worker": worker, "zygote": others, "keeper": others, "monitor": others}


_FATAL = _row(_ENDS_MASTER, _Effect(_D, "ends it; it is replaced"), _ENDS)
_TIMERS = _row(_IGNORED, _APP, _ENDS)
_ALL_STOP = _row(_STOPS, _STOPS, _STOPS)
_ALL_NOTHING = _row(_NOTHING, _NOTHING, _NOTHING)

SIGNAL_EFFECTS: dict[str, dict[Role, _Effect]] = {
    "TERM": _row(_Effect(_H, "graceful shutdown"), _Effect(_H, "drains, leaves and is replaced"), _IGNORED),
    "INT": _row(_Effect(_H, "graceful shutdown; while it drains: stop"), _IGNORED, _IGNORED),
    "QUIT": _row(_Effect(_H, "stop at once"), _IGNORED, _IGNORED),
    "HUP": _row(_Effect(_H, "reload; graceful shutdown if its terminal was closed"), _IGNORED, _IGNORED),
    "USR1": _row(_Effect(_H, "opens the log files again"), _STACKS, _STACKS),
    "USR2": _row(_Effect(_H, "ignored; a line in the log names `cluster2 reload`"), _IGNORED, _IGNORED),
    "TTIN": _row(_Effect(_H, "one worker more"), _IGNORED, _IGNORED),
    "TTOU": _row(_Effect(_H, "one worker less"), _IGNORED, _IGNORED),
    "PIPE": _row(_BY_PYTHON, _BY_PYTHON, _BY_PYTHON),
    "XFSZ": _row(_BY_PYTHON, _BY_PYTHON, _BY_PYTHON),
    "ALRM": _TIMERS,
    "VTALRM": _TIMERS,
    "PROF": _TIMERS,
    "XCPU": _TIMERS,
    "IO": _TIMERS,
    "PWR": _TIMERS,
    "STKFLT": _TIMERS,
    "RTMIN to RTMAX": _row(
        _IGNORED, _Effect(_H, "the app's, but one; without a handler they end the worker, which is replaced"), _ENDS
    ),
    "CHLD": _ALL_NOTHING,
    "URG": _row(_NOTHING, _Effect(_H, "adds to its stacks what it works on"), _NOTHING),
    "WINCH": _ALL_NOTHING,
    "CONT": _row(_GOES_ON, _Effect(_H, "goes on after a stop; without its master it drains and leaves"), _GOES_ON),
    "TSTP": _ALL_STOP,
    "STOP": _ALL_STOP,
    "KILL": _FATAL,
    "ABRT": _FATAL,
    "BUS": _FATAL,
    "FPE": _FATAL,
    "ILL": _FATAL,
    "SEGV": _FATAL,
    "SYS": _FATAL,
    "TRAP": _FATAL,
}
"""The effects by the signal's name without SIG, and by the kind of process."""


def table() -> str:
    """Return the table of the docs, as Markdown. Signals with the same effects share a row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, effects in SIGNAL_EFFECTS.items():
        rows.setdefault(tuple(effects[role].text for role in SIGNAL_ROLES), []).append(name)
    lines = [f"| signal | {' | '.join(SIGNAL_ROLES)} |", f"|{'---|' * (len(SIGNAL_ROLES) + 1)}"]
    lines += [f"| {', '.join(names)} | {' | '.join(texts)} |" for texts, names in rows.items()]
    return "\n".join(lines) + "\n"
