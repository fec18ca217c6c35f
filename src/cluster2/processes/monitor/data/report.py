"""The facts: what the page shows and `GET /` tells as JSON. In the shape of `cluster2 status --json`, and some more.

They are made of one survey, so all that is in them was seen at the same moment; rates are those of the last look (`watch`).
Times are in seconds, memory in bytes, what isn't known is null.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Any

from ....config.settings import Settings
from ....core import histogram
from ....linux import processes, usage
from ....linux.scoreboard import Row
from ....version import __version__
from .facts import Facts
from .sampler import UNKNOWN_RATES, Sample, Sampler
from .snapshot import WorkerSnapshot

COUNT_FIELDS = ("requests", "connections", "accepted", "disconnects")
"""Cells that an engine may not know."""
CELL_FIELDS = ("in_flight", "errors", "cpu", "timed_out", "longest_step", "parked", "moved_in", "moved_out", "lost")
"""Cells that are told as they are."""


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """Whose picture it is: what never changes while the cluster runs.

    Attributes:
        title: how the cluster is called.
        master: pid; 0: there is none.
        version: of the master.
        addresses: that the apps listen on.
        address: that the monitor listens on.
        actions: whether it can be steered from here.
        logs: whether it writes log files.
    """

    title: str = "cluster2"
    master: int = 0
    version: str = __version__
    addresses: list[str] = field(default_factory=list)
    address: str = ""
    actions: bool = False
    logs: bool = False

    @classmethod
    def from_settings(
        cls, settings: Settings, addresses: list[str], address: str, *, master: int = 0, version: str = __version__
    ) -> ClusterInfo:
        """That of a cluster with these options."""
        actions = master > 0 and settings.monitor_token is not None
        logs = settings.log_to != "stderr"
        return cls(settings.proc_name or "cluster2", master, version, addresses, address, actions, logs)


def picture(look: Sample, watch: Sampler, facts: Facts, subject: ClusterInfo) -> dict[str, Any]:
    """All that is told of one look."""
    seen, header = look.survey, look.survey.header
    totals = seen.totals
    return {
        "time": seen.time,
        "title": subject.title,
        "host": _host(),
        "master": _master(look, watch, facts, subject),
        "generation": header["generation"],
        "wanted": header["wanted"],
        "ready": seen.ready,
        "traffic": "enabled" if header["traffic"] else "disabled",
        "leaving": bool(header["leaving"]),
        "addresses": subject.addresses,
        "memory": {"start": header["memory_at_start"] or None, "now": watch.scales.total(watch.processes(seen))},
        "rates": dict(look.rates),
        "latency": None if totals is None else histogram.summary(totals.latencies, totals.slowest),
        "recent": dict(look.lately),
        "in_flight": seen.sum("in_flight"),
        "connections": {
            "held": seen.sum("connections"),
            "resting": header["resting"],
            "waiting": None if header["waiting"] < 0 else header["waiting"],
        },
        "keeper": _keeper(header, watch),
        "monitor": {
            "pid": header["monitor_pid"] or None,
            "address": subject.address,
            "restarts": header["monitor_restarts"],
            "memory": watch.scales.memory_of(header["monitor_pid"]),
        },
        "workers": [_worker(worker, look, watch) for worker in seen.workers],
        "actions": subject.actions,
        "logs": subject.logs,
    }


def _host() -> dict[str, Any]:
    machine = usage.machine()
    return {
        "name": socket.gethostname(),
        "cpus": processes.usable_cpus(),
        "load": machine.load,
        "memory": {"total": machine.memory, "available": machine.available},
    }


def _master(look: Sample, watch: Sampler, facts: Facts, subject: ClusterInfo) -> dict[str, Any]:
    header = look.survey.header
    return {
        "pid": subject.master or None,
        "state": "stuck" if facts.not_alive() else look.survey.phase,
        "uptime": look.survey.time - header["started"],
        "version": subject.version,
        "memory": watch.scales.memory_of(subject.master),
        "started": header["started"],
    }


def _keeper(header: dict[str, Any], watch: Sampler) -> dict[str, Any] | None:
    if not header["keeper_pid"]:
        return None
    told = {name: header[f"keeper_{name}"] for name in ("pid", "expired", "lost", "restarts")}
    return {**told, "resting": header["resting"], "memory": watch.scales.memory_of(header["keeper_pid"])}


def _worker(worker: WorkerSnapshot, look: Sample, watch: Sampler) -> dict[str, Any]:
    now = look.survey.now
    return {
        "pid": worker.pid,
        "slot": worker.slot,
        "generation": worker.cells["generation"],
        "state": worker.state(now),
        **{name: worker.count(name) for name in COUNT_FIELDS},
        **{name: worker.cells[name] for name in CELL_FIELDS},
        "responses": {label: worker.count(cell) for label, cell in Row.STATUS_CLASSES.items()},
        "latency": histogram.summary(worker.latencies, worker.cells["slowest"]),
        "mode": worker.mode,
        "uptime": max(0.0, now - worker.cells["started"]),
        "memory": watch.scales.memory_of(worker.pid),
        "heartbeat_age": worker.silence(now),
        **look.each.get(worker.key, UNKNOWN_RATES),
    }
