"""Samples of the cluster, one a second: a snapshot, rates, recent latencies, and a row for the history.

A sample costs 0.3 ms with 4 workers and 3 ms with 64, most of it for CPU times and memory. The report on it (`report`) costs as
much again. It is made once for all clients, and only if there is a client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ....linux import usage
from ....linux.scoreboard import Scoreboard
from .event_buffer import EventBuffer
from .history import History, Row
from .memory import MemorySampler
from .rates import RateMeter, RecentLatency
from .snapshot import Snapshot, WorkerSnapshot, take_snapshot

_RECENT_SECONDS = 10
"""Samples that recent latencies are of."""
_UNPLANNED_CAUSES = ("crash", "hang", "exit", "recycle")
"""Reasons for which a worker's end is marked. The ends in a reload or a scale would only repeat the mark of that."""
_MARKED_EVENTS = frozenset(
    {"reloading", "reloaded", "reload-failed", "degraded", "recovered", "enabled", "disabled", "shutdown"}
)
"""Events that are marked on the time line."""

UNKNOWN_RATES: Mapping[str, Any] = {
    "rate": None,
    "error_rate": None,
    "cpu_share": None,
    "recent": {"p50": None, "p99": None},
}
"""The rates of a worker that wasn't in the sample before (`Sample.by_worker`)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A snapshot, and the values that follow from it and from the ones before.

    Attributes:
        number: counts samples.
        snapshot: the scoreboard at that moment.
        row: the row of the history.
        rates: `requests` and `errors` of the cluster per second, `cpu` in cores.
        recent: `p50` and `p99` of the cluster in seconds.
        by_worker: by the worker's key: `rate` and `error_rate` per second, `cpu_share` of a core, and `recent` with `p50` and
            `p99`.
    """

    number: int
    snapshot: Snapshot
    row: Row
    rates: Mapping[str, float | None]
    recent: Mapping[str, float | None]
    by_worker: Mapping[tuple[int, float], Mapping[str, Any]]


class Sampler:
    """Takes samples, and keeps the history and the last events.

    Args:
        board: the scoreboard.
        master: the master's pid; 0: there is none.
        memory: measures the memory of processes.
    """

    def __init__(self, board: Scoreboard, master: int = 0, memory: MemorySampler | None = None) -> None:
        self.board = board
        self.master = master
        self.history = History()
        self.events = EventBuffer()
        self.events.listeners.append(self._mark_event)
        self.memory = memory or MemorySampler()
        self.last_sample: Sample | None = None
        self._meter = RateMeter()
        self._recent = RecentLatency(_RECENT_SECONDS)
        self._wanted = 0
        self._samples = 0

    def sample(self, now: float, time: float) -> Sample:
        """Take a sample.

        Args:
            now: monotonic seconds.
            time: seconds since the epoch.
        """
        snapshot = take_snapshot(self.board, now, time)
        self._meter.advance(now)
        self._recent.advance()
        self._measure_memory(snapshot)
        by_worker = {worker.key: self._worker_rates(worker) for worker in snapshot.workers}
        rates = self._cluster_rates(snapshot, [each["cpu_share"] for each in by_worker.values()])
        totals = snapshot.totals
        recent = (
            self._recent.summary("all", None)
            if totals is None
            else self._recent.summary("all", totals.latencies, totals.slowest_lately)
        )
        row = self.history.add(self._row(snapshot, rates, recent))
        self._mark_scale(snapshot)
        self._samples += 1
        self.last_sample = Sample(self._samples, snapshot, row, rates, recent, by_worker)
        return self.last_sample

    def helper_pids(self, snapshot: Snapshot) -> list[int]:
        """Return the pids of the processes beside the workers.

        The zygote isn't among them: it does nothing, and it shares all its memory with the workers.
        """
        pids = {self.master, int(snapshot.header["keeper_pid"]), int(snapshot.header["monitor_pid"])}
        return sorted(pid for pid in pids if pid > 0)

    def all_pids(self, snapshot: Snapshot) -> list[int]:
        """Return the pids of all processes."""
        return sorted({*self.helper_pids(snapshot), *(worker.pid for worker in snapshot.workers)})

    def _measure_memory(self, snapshot: Snapshot) -> None:
        pids = self.all_pids(snapshot)
        self.memory.measure_some(pids)
        header = self.board.header
        # "Memory at start" is that of the first moment at which all wanted workers serve and each process is measured.
        if not header.memory_at_start and snapshot.ready >= header.wanted > 0 and self.memory.all_measured(pids):
            header.memory_at_start = self.memory.total(pids) or 0

    def _worker_rates(self, worker: WorkerSnapshot) -> dict[str, Any]:
        rate = self._meter.rate
        return {
            "rate": rate(("requests", worker.key), worker.count("requests")),
            "error_rate": rate(("errors", worker.key), worker.count("errors")),
            "cpu_share": rate(("cpu", worker.key), usage.cpu_time(worker.pid)),
            "recent": self._recent.summary(worker.key, worker.latencies, worker.cells["slowest_lately"]),
        }

    def _cluster_rates(self, snapshot: Snapshot, workers: list[float | None]) -> dict[str, float | None]:
        used = [
            *workers,
            *(self._meter.rate(("cpu", pid), usage.cpu_time(pid)) for pid in self._helpers_apart(snapshot)),
        ]
        known = [cpu for cpu in used if cpu is not None]
        totals = snapshot.totals
        return {
            "requests": None if totals is None else self._meter.rate("requests", totals.requests),
            "errors": None if totals is None else self._meter.rate("errors", totals.errors),
            "cpu": sum(known) if known else None,
        }

    def _helpers_apart(self, snapshot: Snapshot) -> list[int]:
        workers = {worker.pid for worker in snapshot.workers}
        return [pid for pid in self.helper_pids(snapshot) if pid not in workers]  # without a master all are one process

    def _row(
        self, snapshot: Snapshot, rates: Mapping[str, float | None], recent: Mapping[str, float | None]
    ) -> dict[str, float | None]:
        return {
            "time": snapshot.time,
            **rates,
            **recent,
            "memory": self.memory.total(self.all_pids(snapshot)),
            "held": snapshot.total("connections"),
            "resting": snapshot.header["resting"],
            "ready": snapshot.ready,
            "in_flight": snapshot.total("in_flight"),
        }

    def _mark_scale(self, snapshot: Snapshot) -> None:
        wanted = int(snapshot.header["wanted"])
        if self._wanted and wanted != self._wanted:
            self.history.add_mark(snapshot.time, "scaled", reason=f"{self._wanted} → {wanted}")
        self._wanted = wanted

    def _mark_event(self, event: Mapping[str, Any]) -> None:
        name, reason = event["event"], event.get("reason")
        if name in _MARKED_EVENTS or (name == "died" and reason in _UNPLANNED_CAUSES):
            self.history.add_mark(event["time"], name, slot=event.get("slot"), reason=reason)
