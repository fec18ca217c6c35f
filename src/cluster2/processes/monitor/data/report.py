"""The report on the cluster, which the page shows and `GET /` returns as JSON.

It has the shape of `cluster2 status --json`, and some more fields. All of it is from one moment, except for rates, which need two
moments, and memory, which is measured in turn. Times are in seconds, memory is in bytes, and an unknown value is null.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Any

from ....config.settings import Settings
from ....core import histogram
from ....linux import processes, usage
from ....runtime.status_fields import keeper_fields, monitor_fields, worker_fields
from ....version import __version__
from .cluster_view import ClusterView
from .sampler import UNKNOWN_RATES, Sample, Sampler
from .snapshot import WorkerSnapshot


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """The properties of the cluster that never change while it runs.

    Attributes:
        title: the cluster's name.
        master: the master's pid; 0: there is none.
        version: the master's version.
        addresses: addresses that the apps listen on.
        address: the monitor's address.
        actions: the monitor accepts actions.
        logs: the cluster writes log files.
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
        """Return the properties of a cluster with these options."""
        actions = master > 0 and settings.monitor_token is not None
        logs = settings.log_to != "stderr"
        return cls(settings.proc_name or "cluster2", master, version, addresses, address, actions, logs)


def build_report(sample: Sample, sampler: Sampler, view: ClusterView, cluster: ClusterInfo) -> dict[str, Any]:
    """Return the report on a sample.

    Args:
        sampler: has measured the memory of the processes.
        view: says whether the master is stuck.
    """
    snapshot, header = sample.snapshot, sample.snapshot.header
    totals = snapshot.totals
    return {
        "time": snapshot.time,
        "title": cluster.title,
        "host": _host(),
        "master": _master(sample, sampler, view, cluster),
        "generation": header["generation"],
        "wanted": header["wanted"],
        "ready": snapshot.ready,
        "traffic": "enabled" if header["traffic"] else "disabled",
        "leaving": bool(header["leaving"]),
        "addresses": cluster.addresses,
        "memory": {"start": header["memory_at_start"] or None, "now": sampler.memory.total(sampler.all_pids(snapshot))},
        "rates": dict(sample.rates),
        "latency": None if totals is None else histogram.summary(totals.latencies, totals.slowest),
        "recent": dict(sample.recent),
        "in_flight": snapshot.total("in_flight"),
        "connections": {
            "held": snapshot.total("connections"),
            "resting": header["resting"],
            "waiting": None if header["waiting"] < 0 else header["waiting"],  # -1: the kernel doesn't say
        },
        "keeper": keeper_fields(header.__getitem__, sampler.memory.memory_of),
        "monitor": monitor_fields(header.__getitem__, cluster.address, sampler.memory.memory_of),
        "workers": [_worker(worker, sample, sampler) for worker in snapshot.workers],
        "actions": cluster.actions,
        "logs": cluster.logs,
    }


def _host() -> dict[str, Any]:
    machine = usage.machine()
    return {
        "name": socket.gethostname(),
        "cpus": processes.usable_cpus(),
        "load": machine.load,
        "memory": {"total": machine.memory, "available": machine.available},
    }


def _master(sample: Sample, sampler: Sampler, view: ClusterView, cluster: ClusterInfo) -> dict[str, Any]:
    header = sample.snapshot.header
    return {
        "pid": cluster.master or None,
        "state": "stuck" if view.not_alive() else sample.snapshot.phase,
        "uptime": sample.snapshot.time - header["started"],
        "version": cluster.version,
        "memory": sampler.memory.memory_of(cluster.master),
        "started": header["started"],
    }


def _worker(worker: WorkerSnapshot, sample: Sample, sampler: Sampler) -> dict[str, Any]:
    now = sample.snapshot.now
    return {
        "pid": worker.pid,
        "slot": worker.slot,
        "generation": worker.cells["generation"],
        "state": worker.state(now),
        **worker_fields(worker.cells.__getitem__, worker.latencies),
        "uptime": max(0.0, now - worker.cells["started"]),
        "memory": sampler.memory.memory_of(worker.pid),
        "heartbeat_age": worker.heartbeat_age(now),
        **sample.by_worker.get(worker.key, UNKNOWN_RATES),
    }
