"""Build the parts that the master's status and the monitor's report have in common, each from the cells of the scoreboard.

The master reads a row while it changes, the monitor a snapshot of it. So the functions here take a `cell` function, which returns
the value of a cell by name. `answers` describes the fields for the reference page; tests compare it with both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..core import histogram
from ..core.lifecycle import mode_label
from ..linux.scoreboard import Row

Cell = Callable[[str], Any]

_WORKER_FIELDS = (
    "requests",
    "connections",
    "accepted",
    "in_flight",
    "errors",
    "responses",
    "disconnects",
    "cpu",
    "timed_out",
    "latency",
    "mode",
    "longest_step",
    "parked",
    "moved_in",
    "moved_out",
    "lost",
)
"""Fields of a worker that come from its row alone."""
_COUNTS = frozenset({"requests", "connections", "accepted", "disconnects"})
"""Cells that are -1 where an engine can't know the count."""


def worker_fields(cell: Cell, latencies: Sequence[int]) -> dict[str, Any]:
    """Return the fields of a worker that come from its row alone.

    Args:
        cell: returns a cell of the row.
        latencies: the buckets of its histogram.
    """
    special: dict[str, Callable[[], Any]] = {
        "responses": lambda: {label: _count(cell(name)) for label, name in Row.STATUS_CLASSES.items()},
        "latency": lambda: histogram.summary(latencies, cell("slowest")),
        "mode": lambda: mode_label(cell("mode"), draining=bool(cell("draining"))),
    }
    fields: dict[str, Any] = {}
    for name in _WORKER_FIELDS:
        if name in special:
            fields[name] = special[name]()
        else:
            fields[name] = _count(cell(name)) if name in _COUNTS else cell(name)
    return fields


def keeper_fields(cell: Cell, memory: Callable[[int], int | None]) -> dict[str, Any] | None:
    """Return the fields of the keeper; None: there is none.

    Args:
        cell: returns a cell of the header.
        memory: measures a process, in bytes.
    """
    pid = cell("keeper_pid")
    if not pid:
        return None
    return {
        "pid": pid,
        "resting": cell("resting"),
        "expired": cell("keeper_expired"),
        "lost": cell("keeper_lost"),
        "restarts": cell("keeper_restarts"),
        "memory": memory(pid),
    }


def monitor_fields(cell: Cell, address: str, memory: Callable[[int], int | None]) -> dict[str, Any]:
    """Return the fields of the monitor.

    Args:
        cell: returns a cell of the header.
        memory: measures a process, in bytes.
    """
    pid = cell("monitor_pid")
    return {
        "pid": pid or None,
        "address": address,
        "restarts": cell("monitor_restarts"),
        "memory": memory(pid) if pid else None,
    }


def _count(value: float) -> int | None:
    return None if value < 0 else int(value)
