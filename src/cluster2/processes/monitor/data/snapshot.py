"""One look at the cluster: all that is known of it at one moment, as values.

It is read off the scoreboard and /proc, so it needs no master, nor a worker that answers. The master has written which workers
there are. A worker may have written anything into the rest of its row; readers get what is within bounds (`kernel.cells`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....core import health
from ....core.health import PROMISED_HEARTBEAT_S
from ....core.histogram import BUCKET_BOUNDS_S
from ....core.lifecycle import PHASES, mode_label
from ....errors import ClusterError
from ....linux import ledger
from ....linux.scoreboard import SLOTS, Row, Scoreboard


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """One life of a worker, as its row has it.

    Attributes:
        cells: the named cells of its row (`scoreboard.Row`).
        latencies: requests that were measured, by bucket.
    """

    cells: dict[str, Any]
    latencies: tuple[int, ...]

    @property
    def pid(self) -> int:
        """Its process."""
        return int(self.cells["pid"])

    @property
    def slot(self) -> int:
        """Its place."""
        return int(self.cells["slot"])

    @property
    def key(self) -> tuple[int, float]:
        """What no other life has: a pid may be used again."""
        return self.pid, self.cells["started"]

    def state(self, now: float) -> str:
        """The name of its state."""
        return health.seen_state(self.cells["state"], self.cells["heartbeat"], now)

    @property
    def mode(self) -> str:
        """How it takes connections."""
        return mode_label(self.cells["mode"], draining=bool(self.cells["draining"]))

    def serves(self, now: float) -> bool:
        """Whether it is ready."""
        return self.state(now) == "ready"

    def count(self, name: str) -> int | None:
        """Return a cell that counts; None: it says -1, since the engine can't know."""
        value = int(self.cells[name])
        return value if value >= 0 else None

    def silence(self, now: float) -> float | None:
        """Seconds since its last sign of life; None: it hasn't given one yet."""
        deadline = self.cells["heartbeat"]
        return max(0.0, now - (deadline - PROMISED_HEARTBEAT_S)) if deadline else None


@dataclass(frozen=True, slots=True)
class Totals:
    """What all lives of all workers have counted, ended ones included.

    Attributes:
        requests: None if an engine can't know.
        latencies: by bucket.
        slowest: how long the slowest measured request took: seconds.
        slowest_lately: the same of the last ten to twenty seconds.
    """

    requests: int | None
    errors: int
    latencies: tuple[int, ...]
    slowest: float
    slowest_lately: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was seen.

    Attributes:
        now: when: monotonic seconds.
        time: the same in seconds since the epoch.
        header: the named cells of the scoreboard's header.
        workers: those that live, by slot, the older ones first.
        totals: None if they couldn't be read at this moment.
    """

    now: float
    time: float
    header: dict[str, Any]
    workers: Sequence[WorkerSnapshot]
    totals: Totals | None

    @property
    def phase(self) -> str:
        """Where the cluster is."""
        phase = self.header["phase"]
        return PHASES[phase] if 0 <= phase < len(PHASES) else "unknown"

    @property
    def ready(self) -> int:
        """How many workers serve."""
        return sum(worker.serves(self.now) for worker in self.workers)

    def sum(self, name: str) -> int | None:
        """What all workers count in that cell; None if one of them doesn't know."""
        counts = [worker.count(name) for worker in self.workers]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None


def survey(board: Scoreboard, now: float, time: float) -> Snapshot:
    """Look at it. Measured: 0.1 ms with 4 workers, 1.1 ms with 64."""
    found = []
    for index in range(board.header.high_water):
        row = board.row(index)
        if row.pid and row.slot < SLOTS:
            found.append(WorkerSnapshot(row.as_dict(), tuple(row.measured())))
    found.sort(key=lambda worker: (worker.slot, worker.cells["started"]))
    return Snapshot(now, time, board.header.as_dict(), found, _totals(board))


def _totals(board: Scoreboard) -> Totals | None:
    try:
        accounts = ledger.read(board, patience=0.0).values()
    except ClusterError:
        return None  # a life is just being carried over: the next second will do
    known = not any(Row.requests.name in each.unknown for each in accounts)
    measured = [each.latencies for each in accounts]
    return Totals(
        requests=sum(int(each.counters["requests"]) for each in accounts) if known else None,
        errors=sum(int(each.counters["errors"]) for each in accounts),
        latencies=tuple(map(sum, zip(*measured, strict=True))) or (0,) * (len(BUCKET_BOUNDS_S) + 1),
        slowest=max((each.slowest for each in accounts), default=0.0),
        slowest_lately=max((life.slowest_lately for each in accounts for life in each.lives), default=0.0),
    )
