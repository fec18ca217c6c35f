"""Build the response of `cluster2 status` from the scoreboard and the registry of workers."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ....core import health, histogram
from ....core.planning import Backoff
from ....linux import processes
from ....linux.scoreboard import Scoreboard
from ....runtime.status_fields import keeper_fields, monitor_fields, worker_fields
from ....version import __version__
from ..helpers.monitor import MonitorProcess
from ..messaging.hub import MessageHub
from ..resources import MasterResources
from ..state.cluster_state import ClusterState
from ..state.handle import WorkerHandle
from ..state.worker_registry import WorkerRegistry
from ..workers.steering import Steering


class StatusBuilder:
    """Builds the status."""

    def __init__(
        self,
        state: ClusterState,
        resources: MasterResources,
        *,
        monitor: MonitorProcess | None,
        hub: MessageHub,
        steering: Steering,
    ) -> None:
        self._state = state
        self._resources = resources
        self._monitor = monitor
        self._hub = hub
        self._steering = steering

    def build(self, *, memory: bool) -> dict[str, Any]:
        """Return the cluster as plain data: times in seconds, memory in bytes (proportional set size).

        Args:
            memory: measure it. That is a walk over the page tables of each process, a millisecond per 100 MiB.
        """
        return status(
            self._resources.board,
            self._state.registry,
            state=self._state.label,
            wanted=self._state.wanted.slots,
            addresses=[str(listener.address) for _, listener in self._resources.listeners],
            monitor=None if self._monitor is None else self._monitor.address,
            message_counters=self._hub.counters(),
            backoffs=self._state.restarts.backoffs(time.monotonic()),
            memory=memory,
            waiting=self._steering.queued(),
        )


def status(
    board: Scoreboard,
    registry: WorkerRegistry,
    *,
    state: str,
    wanted: int,
    addresses: list[str],
    monitor: str | None,
    message_counters: dict[str, int],
    backoffs: Iterable[Backoff],
    memory: bool,
    waiting: int | None,
) -> dict[str, Any]:
    """Return the cluster as plain data: times in seconds, memory in bytes (proportional set size).

    Args:
        message_counters: counters of the messages between workers and master.
        backoffs: the slots whose next worker has to wait.
        waiting: connections that wait to be accepted; None: not known.
        memory: as in `StatusBuilder.build`.
    """
    header = board.header
    cell = partial(getattr, header)
    measure = _memory if memory else _not_measured
    alive = [handle for handle in registry if handle.pid is not None]
    measured = [board.row(handle.row).measured() for handle in alive]
    workers = [_worker(board, handle, measure) for handle in alive]
    return {
        "master": {
            "pid": os.getpid(),
            "state": state,
            "uptime": time.time() - header.started,
            "version": __version__,
            "memory": measure(os.getpid()),
        },
        "generation": header.generation,
        "wanted": wanted,
        "traffic": "enabled" if header.traffic else "disabled",
        "addresses": addresses,
        "talk": message_counters,
        "keeper": keeper_fields(cell, measure),
        "monitor": None if monitor is None else monitor_fields(cell, monitor, measure),
        "ready": sum(worker["state"] == "ready" for worker in workers),
        "in_flight": sum(worker["in_flight"] for worker in workers),
        "waiting": waiting,
        "latency": histogram.summary(
            [sum(each) for each in zip(*measured, strict=True)],
            max((board.row(handle.row).slowest for handle in alive), default=0.0),
        ),
        "workers": workers,
        "backoffs": [backoff._asdict() for backoff in backoffs],
    }


def _worker(board: Scoreboard, handle: WorkerHandle, measure: Callable[[int], int | None]) -> dict[str, Any]:
    row = board.row(handle.row)
    assert handle.pid is not None
    return {
        "pid": handle.pid,
        "slot": handle.slot,
        "generation": handle.generation,
        "state": health.seen_state(handle.state, row.heartbeat, time.monotonic()),
        **worker_fields(partial(getattr, row), row.measured()),
        "uptime": handle.uptime(time.monotonic()),
        "memory": measure(handle.pid),
    }


def _not_measured(pid: int) -> None:
    return None


def _memory(pid: int) -> int | None:
    with contextlib.suppress(OSError):  # it has ended, or no descriptor is left to read it by
        return processes.memory(pid)
    return None
