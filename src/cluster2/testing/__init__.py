"""Tests of apps: a simulated worker, and a running cluster with the fixture `cluster` for pytest.

`simulated` makes the test's own process a worker (`from cluster2 import worker`). `RunningCluster` is a real cluster in processes
of its own, on a free port. The plug-in `cluster2.testing.plugin` gives it to tests as the fixture `cluster`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .simulation import Simulated, simulated

if TYPE_CHECKING:
    from .running_cluster import RunningCluster

__all__ = ["RunningCluster", "Simulated", "simulated"]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # On demand: every worker imports this package, and needs neither subprocess nor urllib.
        if name == "RunningCluster":
            from .running_cluster import RunningCluster

            return RunningCluster
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
