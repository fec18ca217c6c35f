"""Build the `heartbeat` event: the figures of all workers, once in `heartbeat_interval`.

The figures come from the scoreboard, so they cost the workers nothing. The totals are those of the ledger, like those in the
metrics of the monitor, so they continue over recycles, crashes and reloads.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from .... import events
from ....linux import ledger
from ....linux.scoreboard import Row, Scoreboard
from ..state.handle import WorkerHandle


class Heartbeats:
    """Builds the events."""

    def __init__(self, board: Scoreboard, now: float) -> None:
        """Begin the first interval now."""
        self._board = board
        self._cpu: dict[int, float] = {}
        self._last_at = now

    def event_if_due(self, workers: Iterable[WorkerHandle], now: float, interval: float) -> events.Heartbeat | None:
        """Return the event if one is due, else None.

        Args:
            now: monotonic time.
            interval: seconds between two events; 0: there are none.
        """
        if not interval or now - self._last_at < interval:
            return None
        return self._beat([(each, self._board.row(each.row)) for each in workers if each.pid is not None], now)

    def _beat(self, alive: list[tuple[WorkerHandle, Row]], now: float) -> events.Heartbeat:
        passed, self._last_at = now - self._last_at, now
        cpu = {handle.incarnation: row.cpu for handle, row in alive}
        shares = [max(0.0, row.cpu - self._cpu.get(handle.incarnation, 0.0)) / passed for handle, row in alive]
        self._cpu = cpu
        count = len(alive) or 1
        slots = [account.counters for account in ledger.read(self._board).values()]
        return events.Heartbeat(
            time=time.time(),
            interval=passed,
            workers=len(alive),
            cpu=sum(shares) / count,
            memory=sum(row.memory for _, row in alive) // count,
            connections=sum(max(0, row.connections) for _, row in alive),
            accepted=int(sum(max(0, slot["accepted"]) for slot in slots)),
            pending=sum(row.in_flight for _, row in alive),
            requests=int(sum(slot["requests"] for slot in slots)),
            responses={label: int(sum(slot[cell] for slot in slots)) for label, cell in Row.STATUS_CLASSES.items()},
            disconnects=int(sum(slot["disconnects"] for slot in slots)),
            errors=int(sum(slot["errors"] for slot in slots)),
            timed_out=int(sum(slot["timed_out"] for slot in slots)),
            transactions=int(sum(slot["transactions"] for slot in slots)),
            duration=sum(slot["duration"] for slot in slots),
            each=[_worker(handle, row, share) for (handle, row), share in zip(alive, shares, strict=True)],
        )


def _counted(row: Row) -> dict[str, Any]:
    return {
        "accepted": max(0, row.accepted), "requests": max(0, row.requests), "disconnects": max(0, row.disconnects),
        "responses": {label: count or 0 for label, count in row.by_class().items()},
        "errors": row.errors, "timed_out": row.timed_out, "transactions": row.transactions, "duration": row.duration,
    }  # fmt: skip


def _worker(handle: WorkerHandle, row: Row, cpu: float) -> dict[str, Any]:
    return {
        "pid": handle.pid, "slot": handle.slot, "generation": handle.generation, "cpu": cpu, "memory": row.memory,
        "connections": max(0, row.connections), "pending": row.in_flight, **_counted(row),
    }  # fmt: skip
