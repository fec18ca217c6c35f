"""Looks at the cluster once a second: for the history always, for viewers when there are some.

A look costs 0.3 ms with 4 workers and 3 ms with 64, most of it for CPU times and memory; making the facts of it as much
again, which is done once, whoever asks, and not at all if nobody does.
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
from .rates import Meter, RecentLatency
from .snapshot import Snapshot, WorkerSnapshot, survey

_RECENT_SECONDS = 10
"""Looks that "lately" means."""
_UNPLANNED_CAUSES = ("crash", "hang", "exit", "recycle")
"""Why workers die one by one; those that a reload or a scale retires would only repeat that mark."""
MARKED_EVENTS = frozenset(
    {"reloading", "reloaded", "reload-failed", "degraded", "recovered", "enabled", "disabled", "shutdown"}
)
"""Events that are marked on the time line."""


UNKNOWN_RATES: Mapping[str, Any] = {
    "rate": None,
    "error_rate": None,
    "cpu_share": None,
    "recent": {"p50": None, "p99": None},
}
"""What follows for a worker of which nothing was seen before (`Look.each`)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen in one second, and what follows from that and the seconds before.

    Attributes:
        number: counts looks.
        survey: what was seen.
        sample: the row that the history got.
        rates: of the whole: `requests` and `errors` a second, `cpu` in cores.
        lately: `p50` and `p99` of the whole, in seconds.
        each: by worker's key: `rate` and `error_rate` a second, `cpu_share` of a core, `recent`: its `p50` and `p99`.
    """

    number: int
    survey: Snapshot
    sample: Row
    rates: Mapping[str, float | None]
    lately: Mapping[str, float | None]
    each: Mapping[tuple[int, float], Mapping[str, Any]]


class Sampler:
    """Knows what the cluster does now, and what it did.

    Args:
        board: the scoreboard.
        master: the master's pid; 0: there is none.
    """

    def __init__(self, board: Scoreboard, master: int = 0, scales: MemorySampler | None = None) -> None:
        self.board = board
        self.master = master
        self.history = History()
        self.feed = EventBuffer()
        self.feed.listeners.append(self._mark)
        self.scales = scales or MemorySampler()
        self.last: Sample | None = None
        self._meter = Meter()
        self._lately = RecentLatency(_RECENT_SECONDS)
        self._wanted = 0
        self._looks = 0

    def sample(self, now: float, time: float) -> Sample:
        """Look at it.

        Args:
            now: monotonic seconds.
            time: seconds since the epoch.
        """
        seen = survey(self.board, now, time)
        self._meter.advance(now)
        self._lately.advance()
        self._weigh(seen)
        each = {worker.key: self._each(worker) for worker in seen.workers}
        rates = self._rates(seen, [found["cpu_share"] for found in each.values()])
        totals = seen.totals
        lately = (
            self._lately.summary("all", None)
            if totals is None
            else self._lately.summary("all", totals.latencies, totals.slowest_lately)
        )
        sample = self.history.add(self._row(seen, rates, lately))
        self._scaled(seen)
        self._looks += 1
        self.last = Sample(self._looks, seen, sample, rates, lately, each)
        return self.last

    def beside(self, seen: Snapshot) -> list[int]:
        """Pids of the processes beside the workers. A zygote isn't among them: it does nothing, and all that it has it shares."""
        pids = {self.master, int(seen.header["keeper_pid"]), int(seen.header["monitor_pid"])}
        return sorted(pid for pid in pids if pid > 0)

    def processes(self, seen: Snapshot) -> list[int]:
        """Pids of all."""
        return sorted({*self.beside(seen), *(worker.pid for worker in seen.workers)})

    def _weigh(self, seen: Snapshot) -> None:
        pids = self.processes(seen)
        self.scales.measure_some(pids)
        header = self.board.header
        if not header.memory_at_start and seen.ready >= header.wanted > 0 and self.scales.weighed(pids):
            header.memory_at_start = self.scales.total(pids) or 0

    def _each(self, worker: WorkerSnapshot) -> dict[str, Any]:
        rate = self._meter.rate
        return {
            "rate": rate(("requests", worker.key), worker.count("requests")),
            "error_rate": rate(("errors", worker.key), worker.count("errors")),
            "cpu_share": rate(("cpu", worker.key), usage.cpu_time(worker.pid)),
            "recent": self._lately.summary(worker.key, worker.latencies, worker.cells["slowest_lately"]),
        }

    def _rates(self, seen: Snapshot, workers: list[float | None]) -> dict[str, float | None]:
        used = [*workers, *(self._meter.rate(("cpu", pid), usage.cpu_time(pid)) for pid in self._others(seen))]
        known = [cpu for cpu in used if cpu is not None]
        totals = seen.totals
        return {
            "requests": None if totals is None else self._meter.rate("requests", totals.requests),
            "errors": None if totals is None else self._meter.rate("errors", totals.errors),
            "cpu": sum(known) if known else None,
        }

    def _others(self, seen: Snapshot) -> list[int]:
        workers = {worker.pid for worker in seen.workers}
        return [pid for pid in self.beside(seen) if pid not in workers]  # without a master all are one process

    def _row(
        self, seen: Snapshot, rates: Mapping[str, float | None], lately: Mapping[str, float | None]
    ) -> dict[str, float | None]:
        return {
            "time": seen.time,
            **rates,
            **lately,
            "memory": self.scales.total(self.processes(seen)),
            "held": seen.sum("connections"),
            "resting": seen.header["resting"],
            "ready": seen.ready,
            "in_flight": seen.sum("in_flight"),
        }

    def _scaled(self, seen: Snapshot) -> None:
        wanted = int(seen.header["wanted"])
        if self._wanted and wanted != self._wanted:
            self.history.add_mark(seen.time, "scaled", reason=f"{self._wanted} → {wanted}")
        self._wanted = wanted

    def _mark(self, event: Mapping[str, Any]) -> None:
        name, reason = event["event"], event.get("reason")
        if name in MARKED_EVENTS or (name == "died" and reason in _UNPLANNED_CAUSES):
            self.history.add_mark(event["time"], name, slot=event.get("slot"), reason=reason)
