"""The API for code that runs in a worker: `from cluster2 import worker`.

The module can be imported in any process. Hooks are registered while the app is imported, in the zygote, and run in each worker.
The attributes `pid`, `slot`, `generation` and `draining` exist in a worker only. Elsewhere they raise NotAWorker, except that
`draining` is false; and `drained()` never returns there.

Handlers of events (`on`, `once`) and components (`register_status`) may be registered in any process. The functions that send
messages to the master (`emit`, `delegate`, `delegate_sync`, `delegate_nowait`) work in async and in threaded code, in a worker
only. `simulated` makes the process of a test a worker.
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
from .testing.simulation import simulated

pid: int
"""The process id of the worker."""
slot: int
"""The slot of the worker, from 0. The worker that replaces it has the same."""
generation: int
"""The generation of the worker: the number of the load of the app's code, from 1."""
draining: bool
"""True while the worker drains (the server event `close` of the Node.js cluster2 of 2012)."""

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


if not TYPE_CHECKING:  # with __getattr__, a type checker would accept every name

    def __getattr__(name: str) -> Any:
        if name in WORKER_ATTRIBUTES:
            return worker_attribute(name)
        if name == "status":
            raise AttributeError("worker.status(name, view) is named worker.register_status(name, view) now")
        raise AttributeError(f"module 'cluster2.worker' has no attribute {name!r}")
