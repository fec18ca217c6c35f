"""cluster2: a multi-process manager for production Python servers.

The façade: what users import. Everything else is private to the project.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import worker
    from .apps import asgi, rsgi, tcp, wsgi
    from .cluster import Cluster
    from .errors import ClusterError

_HOMES = {
    "Cluster": "cluster2.cluster",
    "ClusterError": "cluster2.errors",
    "asgi": "cluster2.apps",
    "rsgi": "cluster2.apps",
    "tcp": "cluster2.apps",
    "wsgi": "cluster2.apps",
}

__all__ = ["Cluster", "ClusterError", "__version__", "asgi", "rsgi", "tcp", "worker", "wsgi"]


def __getattr__(name: str) -> Any:
    # Lazily, since every process of a cluster imports this package and each needs little of it: the master stays small.
    if name not in _HOMES:
        raise AttributeError(f"module 'cluster2' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


if "_CLUSTER2_STACKS" in os.environ:  # executed by a master
    from .kernel import executed

    executed.begin()
