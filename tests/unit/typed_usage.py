"""What users write, for `mypy --strict`, which `make lint` runs: an ignored error that isn't one any more is an error.

Nothing of this is executed.
"""

from __future__ import annotations

from typing import Any, assert_type

import cluster2
from cluster2 import (
    Cluster,
    ClusterOptions,
    ComponentStatus,
    DelegateRequest,
    DelegateTimeout,
    Died,
    Event,
    Heartbeat,
    NotRunning,
    worker,
)

cluster = Cluster(
    port=[3000, 3001], workers="auto", drain_timeout="5m", timeout=2.5, memory_threshold="1GiB", bind=":8000",
    log_level="debug", ecv={"control": True, "path": "/health"}, warm_up=print, apps=[("a:app", 3000)],
    user=None,
)  # fmt: skip

Cluster(wrokers=2)  # type: ignore[call-arg]
Cluster(workers="many")  # type: ignore[arg-type]
Cluster(log_level="loud")  # type: ignore[arg-type]
Cluster(ecv={"contrl": True})  # type: ignore[arg-type]
Cluster(keeper="yes")  # type: ignore[arg-type]
cluster2.Clsuter  # type: ignore[attr-defined]  # noqa: B018
worker.slto  # type: ignore[attr-defined]  # noqa: B018

options: ClusterOptions = {"port": 3000, "preload": False}
Cluster(**options)
read: dict[str, Any] = {"port": 3000}
Cluster(**read)


@cluster.on("died")
def died(event: Died) -> None:
    """The decorator leaves the handler's type as it is."""
    assert_type(event.pid, int)


@cluster.once("heartbeat")
async def heartbeat(event: Heartbeat) -> None:
    """The same, async."""


@cluster.on("*")
def anything(event: Event) -> None:
    """The same for all events."""


@cluster.on_delegate("double", limit=2)
def double(message: int) -> int:
    """The same for delegated work."""
    return 2 * message


@cluster.on_delegate("read-config")
async def config(message: str, request: DelegateRequest) -> str:
    """The same with what is known of the request."""
    request.notify(message)
    return message


@worker.on("config-changed")
def changed(event: cluster2.Emitted) -> None:
    """The same in a worker."""


@worker.on_start
async def started() -> None:
    """The same for hooks."""


def died_later(event: Died) -> int:
    """Given as an argument it comes back."""
    return event.pid


example = Died(time=0, pid=1, slot=0, generation=1, code=0, signal=None, uptime=0, reason="exit")
assert_type(cluster.on("died", died_later)(example), int)
assert_type(double(2), int)
cluster.on("died", 3)  # type: ignore[call-overload]
died("event")  # type: ignore[arg-type]


async def ask() -> None:
    """Errors are classes, and what may be caught is theirs."""
    try:
        await worker.delegate("double", 2)
    except DelegateTimeout as error:
        assert_type(error.type, str)
    try:
        Cluster().status()
    except NotRunning as error:
        assert_type(error.message, str)
    found = await cluster.status("cache", reducer="sum")
    assert_type(found, ComponentStatus)
    async with cluster.running("a:app") as running:
        assert_type(running, cluster2.Running)
