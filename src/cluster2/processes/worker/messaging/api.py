"""The functions behind `cluster2.worker`, and the state of this process: its hooks, handlers and components.

In a worker `bind_worker` adds the worker's identity and its channel to the master.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from ....core.reducers import Reducer
from ....errors import NotAWorker
from ....runtime.event_emitter import Emitter
from ..info import ErrorCounter, Hook, WorkerHooks, WorkerInfo
from .channel_client import MasterClient, Targets, emitted
from .components import Components
from .pending_calls import Fields, delegate_message

WORKER_ATTRIBUTES = frozenset({"pid", "slot", "generation", "draining"})
_DELEGATE_TIMEOUT_S = 10.0
"""Seconds that a delegated call may take by default."""

H = TypeVar("H", bound=Callable[[Any], Any])

hooks = WorkerHooks()
emitter = Emitter()
components = Components()
counters = ErrorCounter()
_info: WorkerInfo | None = None
_client: MasterClient | None = None


def bind_worker(
    info: WorkerInfo | None, client: MasterClient | None = None
) -> tuple[WorkerInfo | None, MasterClient | None]:
    """Make this process that worker, with that client of the master. Return what was bound before."""
    global _info, _client
    before, (_info, _client) = (_info, _client), (info, client)
    return before


def unbind_channel() -> None:
    """Forget the channel: a worker has forked this process, which can't send for it. The worker's identity stays readable."""
    global _client
    _client = None


def worker_attribute(name: str) -> Any:
    """Return an attribute of the worker. Raises NotAWorker outside of one."""
    if _info is None:
        if name == "draining":
            return False
        raise NotAWorker(
            f"worker.{name}: this process is no worker; such facts exist only inside of one, after the fork"
        )
    return getattr(_info, name)


def _require_client(function: str) -> MasterClient:
    if _client is None:
        raise NotAWorker(
            f"worker.{function}: this process is no worker; call it inside of one, after the fork, "
            "or, in a test, within `with worker.simulated():`"
        )
    return _client


def on_start(hook: Hook) -> Hook:
    """Run a hook in each worker after the fork, before the first request: for pools, threads, seeds. Sync or async."""
    hooks.start.append(hook)
    return hook


def on_drain(hook: Hook) -> Hook:
    """Run a hook in each worker when it begins to drain: to end long streams and background work. Sync (quick) or async.

    Requests under way go on meanwhile. The worker waits for the hook, as for requests, for `drain_timeout` at most. An exception
    of the hook is logged.
    """
    hooks.drain.append(hook)
    return hook


async def drained() -> None:
    """Return when the drain of this worker begins, not when it is complete: at once if it drains already.

    It may be awaited in any event loop of this process.

    Outside of a worker this never returns, as `draining` is never true there. So an app also runs under other servers.
    """
    if _info is None:
        await asyncio.get_running_loop().create_future()
    else:
        await _info.drained()


def on_stop(hook: Hook) -> Hook:
    """Run a hook in each worker after the last request. Sync or async."""
    hooks.stop.append(hook)
    return hook


@overload
def on(event: str, handler: H) -> H: ...
@overload
def on(event: str, handler: None = None) -> Callable[[H], H]: ...
def on(event: str, handler: H | None = None) -> H | Callable[[H], H]:
    """Call a handler, sync or async, when that event arrives: `@worker.on("config-changed")`. It gets an `events.Emitted`.

    `*` means every event. Handlers may be registered while the app is imported. They run on the worker's event loop, in the
    order in which the master has sent the events. A sync handler must be quick.
    """
    if handler is None:
        return lambda decorated: on(event, decorated)
    emitter.on(event, handler)
    return handler


@overload
def once(event: str, handler: H) -> H: ...
@overload
def once(event: str, handler: None = None) -> Callable[[H], H]: ...
def once(event: str, handler: H | None = None) -> H | Callable[[H], H]:
    """Call a handler for the next event of that name only, otherwise as `on`."""
    if handler is None:
        return lambda decorated: once(event, decorated)
    emitter.once(event, handler)
    return handler


def off(event: str, handler: Callable[[Any], Any]) -> None:
    """Remove a handler. Raises ValueError if it isn't registered for that event."""
    emitter.off(event, handler)


def emit(event: str, data: object = None, *, targets: Targets = None) -> None:
    """Send an event to the handlers in the master, and with `targets` to those in workers. Callable from any thread.

    Args:
        data: plain data (what MessagePack has, and what msgspec makes of dataclasses, datetimes, UUIDs and the like).
        targets: pids of workers, or "all", this one included.

    Raises:
        NotAWorker: this process is no worker.
        ChannelFull: the master reads less than this worker sends.
        ClusterError: the data can't be encoded, or is longer than a message may be.
        ValueError: the name is that of one of the master's own events.
    """
    _require_client("emit").emit(emitted(event, data, targets))


async def delegate(
    name: str,
    message: object = None,
    *,
    timeout: float | None = _DELEGATE_TIMEOUT_S,
    matches: Fields | None = None,
    notification: str | None = None,
    targets: Iterable[int] | None = None,
) -> Any:
    """Call a handler in the master, and return its result. Callable from any event loop of this process.

    Equal calls of all workers that are under way at the same time run the handler once. Message and result are plain data.

    Args:
        name: the name of the handler, as in `@cluster.on_delegate(name)`.
        timeout: seconds; None: no limit.
        matches: names of the fields of the message by which calls are equal, or such fields with values; None: the whole
            message.
        notification: the event by which the handler may publish later changes (`Request.notify`).
        targets: pids of the workers that get the notification; None: all.

    Raises:
        DelegateError: the handler raised, there is none, or the master is gone.
        DelegateTimeout: no result came in time; it is a TimeoutError, too.
        NotAWorker, ClusterError: as `emit`.
    """
    return await _require_client("delegate").delegate(
        delegate_message(name, message, timeout, matches, notification, targets)
    )


def delegate_sync(
    name: str,
    message: object = None,
    *,
    timeout: float | None = _DELEGATE_TIMEOUT_S,
    matches: Fields | None = None,
    notification: str | None = None,
    targets: Iterable[int] | None = None,
) -> Any:
    """Call a handler in the master from a thread, which waits for the result; otherwise as `delegate`.

    Raises:
        ClusterError: the thread runs an event loop, which the wait would block.
    """
    return _require_client("delegate_sync").delegate_sync(
        delegate_message(name, message, timeout, matches, notification, targets)
    )


def delegate_nowait(
    name: str, message: object = None, *, notification: str | None = None, targets: Iterable[int] | None = None
) -> None:
    """Call a handler in the master without a result. Each call runs the handler, also equal ones. Callable from any thread.

    Raises:
        NotAWorker, ChannelFull, ClusterError: as `emit`.
    """
    _require_client("delegate_nowait").delegate_nowait(
        delegate_message(name, message, None, None, notification, targets)
    )


def register_status(
    name: str,
    view: Callable[..., Any],
    *,
    reducer: str | Reducer = "array",
    update: Callable[[Any], Any] | None = None,
) -> None:
    """Register a component whose status the master can query: `await cluster.status(name)`.

    Args:
        view: returns the status as plain data. It is sync (quick) or async, and gets the params of the query if it takes an
            argument.
        reducer: combines the statuses of all workers: sum, concat, avg, array, first, or a function of a list.
        update: called with the value of `cluster.set_status(name, value)`; None: the status can't be set.

    Raises:
        ConfigError: there is no such reducer.
    """
    components.register(name, view, reducer, update)


_counting = threading.Lock()


def transaction(duration: float, *, error: bool = False) -> None:
    """Count a transaction of the app's own, which took so many seconds. Heartbeats have the totals. Callable from any thread."""
    with _counting:
        counters.transactions += 1
        counters.duration += duration
        counters.errors += error
