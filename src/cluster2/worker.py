"""The worker that this process is: `from cluster2 import worker`.

It can be imported anywhere. Hooks are registered while the app is imported, in the zygote, and run in each worker. Facts
about the worker (`pid`, `slot`, `generation`, `draining`) exist only inside of one; elsewhere they raise NotAWorker, except
that `draining` is false and `drained()` never returns.

Handlers of events (`on`, `once`) and components (`register_status`) may be registered anywhere as well. What talks to the master
(`emit`, `delegate`, `delegate_sync`, `delegate_nowait`) works from async and from threaded code, and only inside of a
worker. `simulated` makes this process one, for tests.

(The rest of this package is the process that serves; it is imported only where workers are made.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .processes.worker.messaging.api import (
    WORKER_ATTRIBUTES,
    delegate,
    delegate_nowait,
    delegate_sync,
    drained,
    emit,
    off,
    on,
    on_drain,
    on_start,
    on_stop,
    once,
    register_status,
    transaction,
    worker_attribute,
)
from .testing import simulated

pid: int
"""Its process id."""
slot: int
"""Its place in the cluster, from 0; its successor has the same."""
generation: int
"""Which load of the app's code it runs, from 1."""
draining: bool
"""Whether it retires (the seed's server "close")."""

__all__ = [
    "delegate",
    "delegate_nowait",
    "delegate_sync",
    "drained",
    "draining",
    "emit",
    "generation",
    "off",
    "on",
    "on_drain",
    "on_start",
    "on_stop",
    "once",
    "pid",
    "register_status",
    "simulated",
    "slot",
    "transaction",
]


if not TYPE_CHECKING:  # a checker would take every name for one that is there

    def __getattr__(name: str) -> Any:
        if name in WORKER_ATTRIBUTES:
            return worker_attribute(name)
        if name == "status":
            raise AttributeError("worker.status(name, view) is named worker.register_status(name, view) now")
        raise AttributeError(f"module 'cluster2.worker' has no attribute {name!r}")
