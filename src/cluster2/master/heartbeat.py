"""The aggregated heartbeat: what all workers did, in one event now and then.

It is read off the scoreboard, so it costs the workers nothing. Totals go on over recycles and reloads: what a worker has
counted is added up once a second, so that of one that is gone no more than its last second is missing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from .. import events
from ..kernel.scoreboard import Row, Scoreboard
from .handle import Handle

COUNTED = ("requests", "errors", "timed_out", "transactions")


class Heartbeats:
    """Adds up what the workers count.

    Attributes:
        totals: since the cluster's start.
    """

    def __init__(self, board: Scoreboard, now: float) -> None:
        """Nothing was counted yet."""
        self._board = board
        self._seen: dict[int, dict[str, float]] = {}
        self._cpu: dict[int, float] = {}
        self._told_at = now
        self.totals: dict[str, float] = dict.fromkeys((*COUNTED, "duration"), 0)

    def look(self, workers: Iterable[Handle], now: float, interval: float) -> events.Heartbeat | None:
        """Add up what has come since the last look. Returns the event when it is time for one.

        Args:
            now: monotonic time.
            interval: seconds between two events; 0: there are none.
        """
        alive = [(handle, self._board.row(handle.row)) for handle in workers if handle.pid is not None]
        seen = {}
        for handle, row in alive:
            before = self._seen.get(handle.incarnation, {})
            counted = seen[handle.incarnation] = _counted(row)
            for name, count in counted.items():
                self.totals[name] += max(0, count - before.get(name, 0))
        self._seen = seen
        if not interval or now - self._told_at < interval:
            return None
        return self._beat(alive, now)

    def _beat(self, alive: list[tuple[Handle, Row]], now: float) -> events.Heartbeat:
        passed, self._told_at = now - self._told_at, now
        cpu = {handle.incarnation: row.cpu for handle, row in alive}
        shares = [max(0.0, row.cpu - self._cpu.get(handle.incarnation, 0.0)) / passed for handle, row in alive]
        self._cpu = cpu
        count = len(alive) or 1
        return events.Heartbeat(
            time=time.time(),
            interval=passed,
            workers=len(alive),
            cpu=sum(shares) / count,
            memory=sum(row.memory for _, row in alive) // count,
            connections=sum(max(0, row.connections) for _, row in alive),
            pending=sum(row.in_flight for _, row in alive),
            requests=int(self.totals["requests"]),
            errors=int(self.totals["errors"]),
            timed_out=int(self.totals["timed_out"]),
            transactions=int(self.totals["transactions"]),
            duration=self.totals["duration"],
            each=[_worker(handle, row, share) for (handle, row), share in zip(alive, shares, strict=True)],
        )


def _counted(row: Row) -> dict[str, float]:
    return {
        "requests": max(0, row.requests), "errors": row.errors, "timed_out": row.timed_out,
        "transactions": row.transactions, "duration": row.duration,
    }  # fmt: skip


def _worker(handle: Handle, row: Row, cpu: float) -> dict[str, Any]:
    return {
        "pid": handle.pid, "slot": handle.slot, "generation": handle.generation, "cpu": cpu, "memory": row.memory,
        "connections": max(0, row.connections), "pending": row.in_flight, **_counted(row),
    }  # fmt: skip
