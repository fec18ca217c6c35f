"""cluster2: a multi-process manager and server for Python web apps.

This module has the public API. All other modules are private to the project.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from . import worker
    from .cluster import Cluster, Running
    from .config.keywords import ClusterOptions, EcvOptions
    from .errors import (
        AddressInUse,
        AlreadyRunning,
        AppError,
        ChannelFull,
        ClusterError,
        ConfigError,
        DelegateError,
        DelegateTimeout,
        NoAnswer,
        NotAWorker,
        NotRunning,
    )
    from .events import (
        Degraded,
        Died,
        Disabled,
        Emitted,
        Enabled,
        Event,
        Forked,
        Heartbeat,
        Listening,
        Loaded,
        Recovered,
        Reloaded,
        ReloadFailed,
        Reloading,
        ShuttingDown,
        Signalled,
        Stopped,
        Unloaded,
        Warned,
    )
    from .processes.master.messaging.component_status import ComponentStatus
    from .processes.master.messaging.delegation import DelegateRequest
    from .runtime.app_loader import asgi, rsgi, tcp, wsgi

_HOMES = {
    "Cluster": "cluster",
    "ClusterOptions": "config.keywords",
    "ComponentStatus": "processes.master.messaging.component_status",
    "DelegateRequest": "processes.master.messaging.delegation",
    "EcvOptions": "config.keywords",
    "Running": "cluster",
    "asgi": "runtime.app_loader",
    "rsgi": "runtime.app_loader",
    "tcp": "runtime.app_loader",
    "wsgi": "runtime.app_loader",
}
"""The modules of public names that are neither errors nor events."""

__all__ = [
    "AddressInUse",
    "AlreadyRunning",
    "AppError",
    "ChannelFull",
    "Cluster",
    "ClusterError",
    "ClusterOptions",
    "ComponentStatus",
    "ConfigError",
    "Degraded",
    "DelegateError",
    "DelegateRequest",
    "DelegateTimeout",
    "Died",
    "Disabled",
    "EcvOptions",
    "Emitted",
    "Enabled",
    "Event",
    "Forked",
    "Heartbeat",
    "Listening",
    "Loaded",
    "NoAnswer",
    "NotAWorker",
    "NotRunning",
    "Recovered",
    "ReloadFailed",
    "Reloaded",
    "Reloading",
    "Running",
    "ShuttingDown",
    "Signalled",
    "Stopped",
    "Unloaded",
    "Warned",
    "__version__",
    "asgi",
    "rsgi",
    "tcp",
    "worker",
    "wsgi",
]


if not TYPE_CHECKING:  # with __getattr__, a type checker would accept every name

    def __getattr__(name: str) -> Any:
        # Names are imported on demand: every process of a cluster imports this package and needs little of it.
        if name not in __all__:
            raise AttributeError(f"module 'cluster2' has no attribute {name!r}")
        from importlib import import_module

        if name == "worker":
            return import_module("cluster2.worker")
        home = _HOMES.get(name) or ("errors" if hasattr(import_module("cluster2.errors"), name) else "events")
        return getattr(import_module(f"cluster2.{home}"), name)


if "_CLUSTER2_STACKS" in os.environ:  # executed by a master
    from .linux import exec_start

    exec_start.take_start_steps()
