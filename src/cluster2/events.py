"""The events of a cluster, as values.

Each event is one frozen class with its name, fields and meaning. `Cluster.on(name)` takes the names, and the master makes the
values. The reference page is generated from this file.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, Literal

import msgspec

from .core.lifecycle import LifePhase

Reason = Literal["exit", "crash", "hang", "recycle", "reload", "scale", "shutdown", "stop"]
"""The reason for a worker's end. `exit`: it ended by itself with code 0. `crash`: it failed. The others are decisions of the master."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all events.

    Attributes:
        time: seconds since the epoch.
    """

    name: ClassVar[str]
    time: float


class Forked(Event, frozen=True, kw_only=True):
    """A worker's process exists. It isn't ready yet."""

    name: ClassVar[str] = "forked"
    pid: int
    slot: int
    generation: int


class Listening(Event, frozen=True, kw_only=True):
    """A worker is ready and accepts connections.

    Attributes:
        boot: seconds from the order to fork until it was ready.
    """

    name: ClassVar[str] = "listening"
    pid: int
    slot: int
    generation: int
    boot: float


class Died(Event, frozen=True, kw_only=True):
    """A worker has ended: it crashed, or it exited as it was asked to (`reason`).

    Attributes:
        code: its exit code; None: a signal ended it, or the code isn't known.
        signal: the name of that signal, or None.
        uptime: seconds since it was forked.
        stacks: the Python stacks of its threads if it was stuck; None: it wasn't.
        phase: the phase in which it ended.
    """

    name: ClassVar[str] = "died"
    pid: int
    slot: int
    generation: int
    code: int | None
    signal: str | None
    uptime: float
    reason: Reason
    stacks: str | None = None
    phase: LifePhase = "serving"


class Loaded(Event, frozen=True, kw_only=True):
    """The zygote of a generation has imported the app. Workers are forked from it.

    Metrics libraries that keep files by pid (`prometheus_client`) have files of this process, too.

    Attributes:
        pid: process id of the zygote.
    """

    name: ClassVar[str] = "loaded"
    pid: int
    generation: int


class Unloaded(Event, frozen=True, kw_only=True):
    """The zygote of a generation has ended. No more workers of that generation are made, unless another zygote is started.

    Attributes:
        pid: process id of the zygote.
    """

    name: ClassVar[str] = "unloaded"
    pid: int
    generation: int


class Warned(Event, frozen=True, kw_only=True):
    """A warning for operators. The cluster goes on."""

    name: ClassVar[str] = "warning"
    text: str


class Degraded(Event, frozen=True, kw_only=True):
    """Workers crash faster than `restart_limit` allows: restarts back off, and the other workers serve on.

    Attributes:
        crashes: crashes within `restart_window`.
        ready: workers that serve now.
        wanted: workers that should serve.
    """

    name: ClassVar[str] = "degraded"
    crashes: int
    ready: int
    wanted: int


class Recovered(Event, frozen=True, kw_only=True):
    """A degraded cluster has all its workers again, and no worker has crashed for `restart_window`."""

    name: ClassVar[str] = "recovered"
    ready: int


class Reloading(Event, frozen=True, kw_only=True):
    """A reload has begun: the new code is loaded as this generation."""

    name: ClassVar[str] = "reloading"
    generation: int


class Reloaded(Event, frozen=True, kw_only=True):
    """A reload is complete: all workers are of the new generation.

    Attributes:
        seconds: seconds since the reload was requested.
    """

    name: ClassVar[str] = "reloaded"
    generation: int
    seconds: float


class ReloadFailed(Event, frozen=True, kw_only=True):
    """A reload was abandoned. The old generation serves on.

    Attributes:
        generation: the new generation, which isn't used.
        traceback: the traceback of the app's own error; None: there is none.
    """

    name: ClassVar[str] = "reload-failed"
    generation: int
    reason: str
    traceback: str | None


class Enabled(Event, frozen=True, kw_only=True):
    """Traffic was enabled: health checks respond that the cluster serves."""

    name: ClassVar[str] = "enabled"


class Disabled(Event, frozen=True, kw_only=True):
    """Traffic was disabled: health checks respond that the cluster wants none. It serves on."""

    name: ClassVar[str] = "disabled"


class Signalled(Event, frozen=True, kw_only=True):
    """The master received a signal. Handlers are registered by the signal's name: `cluster.on("SIGTERM")`."""

    name: ClassVar[str] = "signal"
    signal: str
    action: str


class ShuttingDown(Event, frozen=True, kw_only=True):
    """The shutdown begins.

    Attributes:
        graceful: requests under way are finished first.
        lame_duck: seconds for which the cluster serves on before that, so that load balancers notice.
    """

    name: ClassVar[str] = "shutdown"
    graceful: bool
    lame_duck: float = 0.0


class Stopped(Event, frozen=True, kw_only=True):
    """All processes of the cluster have ended: the last event."""

    name: ClassVar[str] = "stopped"
    code: int


class Heartbeat(Event, frozen=True, kw_only=True):
    """The figures of all workers, every `heartbeat_interval`. Totals count from the cluster's start, over recycles and reloads.

    Attributes:
        interval: seconds since the last heartbeat event.
        workers: number of workers.
        cpu: share of a core that a worker used in the interval, on average: 1 is a whole core.
        memory: resident bytes of a worker, on average, shared pages included.
        connections: connections open now.
        accepted: total of connections accepted; an engine that accepts by itself and can't know adds 0.
        pending: requests under way now.
        requests: total of requests that have ended: answered, refused, or left by their client.
        responses: these requests by the class of their status, `1xx` to `5xx`; a class is 0 where an engine can't know.
        disconnects: total of requests whose connection ended before the response did; 0 where an engine can't know.
        errors: total of requests answered with 5xx or failed in another way, and of transactions that failed.
        timed_out: total of connections given up because the client took too long.
        transactions: total of transactions, which the app counts itself (`worker.transaction`).
        duration: total seconds that transactions took.
        each: the figures of each worker, with its pid, slot and generation; its counts are of its own life.
    """

    name: ClassVar[str] = "heartbeat"
    interval: float
    workers: int
    cpu: float
    memory: int
    connections: int
    accepted: int
    pending: int
    requests: int
    responses: dict[str, int]
    disconnects: int
    errors: int
    timed_out: int
    transactions: int
    duration: float
    each: list[dict[str, Any]]


class Emitted(Event, frozen=True, kw_only=True):
    """An event of the app's own: `worker.emit("name", data)`, or `Cluster.emit`. Handlers are registered by its own name.

    Attributes:
        event: its name.
        data: the data that was emitted with it.
        pid: process id of the worker that emitted it; 0: the master.
        slot: slot of that worker; None: it came by way of the master.
    """

    name: ClassVar[str] = "emitted"
    event: str
    data: Any = None
    pid: int = 0
    slot: int | None = None


def during(phase: LifePhase) -> str:
    """Return a phase as the end of a sentence."""
    return "while serving" if phase == "serving" else f"during {phase}"


def name_of(event: Event) -> str:
    """Return the name by which handlers are registered: of a signal or an event of the app's own that name, else the event's."""
    if isinstance(event, Emitted):
        return event.event
    return event.signal if isinstance(event, Signalled) else event.name


def plain(event: Event) -> dict[str, Any]:
    """Return an event as plain data for JSON: its name as `event`, and its fields."""
    try:
        fields = msgspec.json.decode(msgspec.json.encode(event))
    except (TypeError, ValueError):  # the app's data can't be encoded as JSON
        fields = {"time": event.time, "data": repr(getattr(event, "data", None))}
    except RecursionError:  # the app's data is nested too deeply, also for repr()
        fields = {"time": event.time}
    return {"event": name_of(event), **{name: value for name, value in fields.items() if name != "event"}}


def cut(told: dict[str, Any], longest: int) -> dict[str, Any]:
    """Return a plain event without its contents if it is longer than that many bytes as JSON; then `cut` is its length."""
    size = len(msgspec.json.encode(told))
    if size <= longest:
        return told
    kept = ("event", "time", "pid", "slot", "generation", "reason")
    brief = {name: told[name] for name in kept if len(str(told.get(name, ""))) <= 1000 and name in told}
    return {**brief, "cut": size}


EVENTS: dict[str, type[Event]] = {kind.name: kind for kind in Event.__subclasses__()}
"""The classes of all events, by name."""


def meant_by(name: str, signals: Collection[str]) -> str | None:
    """Return what an event name that the master doesn't emit may have been meant to be, as the end of a sentence.

    None: it is one of the master's, or may well be an event of the app's own. A name that begins with SIG can't be: `own` refuses it.

    Args:
        signals: names of the signals that the master handles.
    """
    if name in EVENTS or name in signals or name == "*":
        return None
    import difflib  # takes milliseconds, which only such a name costs

    known = signals if name.upper().startswith("SIG") else EVENTS
    like = name.upper() if known is signals else name.lower().replace("_", "-")
    if close := difflib.get_close_matches(like, known, 1, 0.75):  # 0.75: "dyed" is that near to "died"
        return f"did you mean {close[0]!r}?"
    return f"it handles {', '.join(signals)}" if name.startswith("SIG") else None


def own(name: object) -> str:
    """Check the name of an event of the app's own, and return it. Raises ValueError: it can't be one."""
    if not isinstance(name, str) or not name or name == "*" or len(name) > 200:
        raise ValueError(f"event {name!r}: expected a text of 1 to 200 characters, other than *")
    if name in EVENTS or name.startswith("SIG"):
        raise ValueError(f"event {name!r} is the master's: choose another name")
    return name
