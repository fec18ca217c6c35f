"""The worker that this process is: `from cluster2 import worker`.

It can be imported anywhere. Hooks are registered while the app is imported, in the zygote, and run in each worker. Facts
about the worker (`pid`, `slot`, `generation`, `draining`) exist only inside of one; elsewhere they raise RuntimeError, except
that `draining` is false.

(The rest of this package is the process that serves; it is imported only where workers are made.)
"""

from __future__ import annotations

from typing import Any

from .api import FACTS, current, on_start, on_stop

pid: int
"""Its process id."""
slot: int
"""Its place in the cluster, from 0; its successor has the same."""
generation: int
"""Which load of the app's code it runs, from 1."""
draining: bool
"""Whether it retires (the seed's server "close")."""

__all__ = ["draining", "generation", "on_start", "on_stop", "pid", "slot"]


def __getattr__(name: str) -> Any:
    if name in FACTS:
        return current(name)
    raise AttributeError(f"module 'cluster2.worker' has no attribute {name!r}")
