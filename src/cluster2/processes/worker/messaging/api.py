"""What stands behind `cluster2.worker`: this process's hooks, handlers and components and, if it is a worker, its life."""

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
DELEGATE_TIMEOUT_S = 10.0
"""Seconds that an answer may take, unless the asker says otherwise."""

H = TypeVar("H", bound=Callable[[Any], Any])

hooks = WorkerHooks()
emitter = Emitter()
components = Components()
counters = ErrorCounter()
_life: WorkerInfo | None = None
_post: MasterClient | None = None


def bind_worker(
    life: WorkerInfo | None, post: MasterClient | None = None
) -> tuple[WorkerInfo | None, MasterClient | None]:
    """This process is that worker from now on, and talks by that post. Returns what it was before."""
    global _life, _post
    before, (_life, _post) = (_life, _post), (life, post)
    return before


def unbind_channel() -> None:
    """This process was forked by a worker, and can't talk for that; what it knows of it stays true."""
    global _post
    _post = None


def worker_attribute(fact: str) -> Any:
    """A fact about the worker. Raises NotAWorker outside of one."""
    if _life is None:
        if fact == "draining":
            return False
        raise NotAWorker(
            f"worker.{fact}: this process is no worker; such facts exist only inside of one, after the fork"
        )
    return getattr(_life, fact)


def _the_post(what: str) -> MasterClient:
    if _post is None:
        raise NotAWorker(
            f"worker.{what}: this process is no worker; call it inside of one, after the fork, "
            "or, in a test, within `with worker.simulated():`"
        )
    return _post


def on_start(hook: Hook) -> Hook:
    """Run this in each worker after the fork, before the first request: pools, threads, seeds. Sync or async."""
    hooks.start.append(hook)
    return hook


def on_drain(hook: Hook) -> Hook:
    """Run this in each worker when it begins to drain: say it to long streams and background work. Sync (quick) or async.

    Requests under way go on meanwhile; the worker waits for the hook, as for them, for `drain_timeout` at most. What it raises is
    logged.
    """
    hooks.drain.append(hook)
    return hook


async def drained() -> None:
    """Return when this worker begins to drain: at once if it already does. From any event loop of this process.

    Outside of a worker it never returns, as `draining` is never true there: so an app runs under other servers as well.
    """
    if _life is None:
        await asyncio.get_running_loop().create_future()
    else:
        await _life.drained()


def on_stop(hook: Hook) -> Hook:
    """Run this in each worker after the last request. Sync or async."""
    hooks.stop.append(hook)
    return hook


@overload
def on(event: str, handler: H) -> H: ...
@overload
def on(event: str, handler: None = None) -> Callable[[H], H]: ...
def on(event: str, handler: H | None = None) -> H | Callable[[H], H]:
    """Call a handler, sync or async, when that event arrives: `@worker.on("config-changed")`. It gets an `events.Emitted`.

    `*` means every event. Handlers may be registered while the app is imported. They run on the worker's event loop, in the
    order in which the master has sent the events; a sync one must be quick.
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
    """The same for the next time only."""
    if handler is None:
        return lambda decorated: once(event, decorated)
    emitter.once(event, handler)
    return handler


def off(event: str, handler: Callable[[Any], Any]) -> None:
    """Call it no more. Raises ValueError if it wasn't called on that event."""
    emitter.off(event, handler)


def emit(event: str, data: object = None, *, targets: Targets = None) -> None:
    """Tell the master's listeners that something has happened; with `targets`, other workers too. From any thread.

    Args:
        data: plain data (what MessagePack has, and what msgspec makes of dataclasses, datetimes, UUIDs and the like).
        targets: pids of workers, or "all", this one included.

    Raises:
        NotAWorker: this process is none.
        ChannelFull: the master doesn't take what this worker says.
        ClusterError: the data can't travel, or is longer than a message may be.
        ValueError: the name is one of the master's own events.
    """
    _the_post("emit").emit(emitted(event, data, targets))


async def delegate(
    name: str,
    message: object = None,
    *,
    timeout: float | None = DELEGATE_TIMEOUT_S,
    matches: Fields | None = None,
    notification: str | None = None,
    targets: Iterable[int] | None = None,
) -> Any:
    """Have the master do something, and return what its handler returned. From any event loop of this process.

    Equal requests of all workers that are under way at the same time are done once. It travels as plain data.

    Args:
        name: the kind of work, as in `@cluster.on_delegate(name)`.
        timeout: seconds; None: for as long as it takes.
        matches: names of the fields of the message by which requests are equal, or such fields with values; None: the
            whole message.
        notification: the event by which the handler may publish later changes (`Request.notify`).
        targets: pids of the workers that are to have it; None: all.

    Raises:
        DelegateError: the handler raised, there is none, or the master is gone.
        DelegateTimeout: no answer came in time; it is a TimeoutError, too.
        NotAWorker, ClusterError: as `emit`.
    """
    return await _the_post("delegate").delegate(
        delegate_message(name, message, timeout, matches, notification, targets)
    )


def delegate_sync(
    name: str,
    message: object = None,
    *,
    timeout: float | None = DELEGATE_TIMEOUT_S,
    matches: Fields | None = None,
    notification: str | None = None,
    targets: Iterable[int] | None = None,
) -> Any:
    """The same in a thread, which waits. Raises ClusterError in a thread that runs an event loop: it would stand still."""
    return _the_post("delegate_sync").delegate_sync(
        delegate_message(name, message, timeout, matches, notification, targets)
    )


def delegate_nowait(
    name: str, message: object = None, *, notification: str | None = None, targets: Iterable[int] | None = None
) -> None:
    """Have the master do something, and expect no answer: each request is done, equal or not. From any thread.

    Raises:
        NotAWorker, ChannelFull, ClusterError: as `emit`.
    """
    _the_post("delegate_nowait").delegate_nowait(delegate_message(name, message, None, None, notification, targets))


def register_status(
    name: str,
    view: Callable[..., Any],
    *,
    reducer: str | Reducer = "array",
    update: Callable[[Any], Any] | None = None,
) -> None:
    """Have a component whose status the master can ask for: `await cluster.status(name)`.

    Args:
        view: tells it as plain data; sync (quick) or async; called with the params of the question if it takes an argument.
        reducer: how the answers of all workers become one: sum, concat, avg, array, first, or a function of a list.
        update: called with the value of `cluster.set_status(name, value)`; None: it can't be set.

    Raises:
        ConfigError: there is no such reducer.
    """
    components.register(name, view, reducer, update)


_counting = threading.Lock()


def transaction(duration: float, *, error: bool = False) -> None:
    """Count a piece of the app's own work, which took so many seconds; heartbeats tell the totals. From any thread."""
    with _counting:
        counters.transactions += 1
        counters.duration += duration
        counters.errors += error
