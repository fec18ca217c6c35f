"""What happens to a cluster, as values.

Each event is one frozen class, declared here and nowhere else: its name, its fields and its meaning. `Cluster.on(name)`
takes the names; the master makes the values; the documentation is generated from this file.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, Literal

import msgspec

from .core.lifecycle import LifePhase

Reason = Literal["exit", "crash", "hang", "recycle", "reload", "scale", "shutdown", "stop"]
"""Why a worker ended: it left by itself with code 0, it failed, or the master wanted it so."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all events.

    Attributes:
        time: seconds since the epoch.
    """

    name: ClassVar[str]
    time: float


class Forked(Event, frozen=True, kw_only=True):
    """A worker's process exists; it isn't ready yet."""

    name: ClassVar[str] = "forked"
    pid: int
    slot: int
    generation: int


class Listening(Event, frozen=True, kw_only=True):
    """A worker is ready: it takes connections from now on.

    Attributes:
        boot: seconds from the order to fork until it was ready.
    """

    name: ClassVar[str] = "listening"
    pid: int
    slot: int
    generation: int
    boot: float


class Died(Event, frozen=True, kw_only=True):
    """A worker is gone.

    Attributes:
        code: its exit code, or None if a signal ended it.
        signal: the name of that signal, or None.
        uptime: seconds since it was forked.
        stacks: the Python stacks of its threads if it hung, else None.
        phase: what it was doing.
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
    """A process, the zygote, has imported the app for a generation; workers are forked from it.

    Metrics libraries that keep files by pid (`prometheus_client`) have files of this process, too.

    Attributes:
        pid: of the zygote.
    """

    name: ClassVar[str] = "loaded"
    pid: int
    generation: int


class Unloaded(Event, frozen=True, kw_only=True):
    """The zygote of a generation has ended: no worker of it is made any more, or another zygote is started first.

    Attributes:
        pid: of the zygote.
    """

    name: ClassVar[str] = "unloaded"
    pid: int
    generation: int


class Warned(Event, frozen=True, kw_only=True):
    """Something that an operator should know; nothing has failed yet."""

    name: ClassVar[str] = "warning"
    text: str


class Degraded(Event, frozen=True, kw_only=True):
    """Workers crash faster than `restart_limit` allows: restarts back off, the rest serves on.

    Attributes:
        crashes: how many within `restart_window`.
        ready: workers that serve now.
        wanted: workers that should.
    """

    name: ClassVar[str] = "degraded"
    crashes: int
    ready: int
    wanted: int


class Recovered(Event, frozen=True, kw_only=True):
    """A degraded cluster has all its workers again, and no crash was seen for `restart_window`."""

    name: ClassVar[str] = "recovered"
    ready: int


class Reloading(Event, frozen=True, kw_only=True):
    """New code is being loaded, as this generation."""

    name: ClassVar[str] = "reloading"
    generation: int


class Reloaded(Event, frozen=True, kw_only=True):
    """All workers are of the new generation.

    Attributes:
        seconds: from the request on.
    """

    name: ClassVar[str] = "reloaded"
    generation: int
    seconds: float


class ReloadFailed(Event, frozen=True, kw_only=True):
    """A reload was abandoned; the old generation goes on.

    Attributes:
        generation: the new one, which isn't used.
        traceback: of the app's own error, or None.
    """

    name: ClassVar[str] = "reload-failed"
    generation: int
    reason: str
    traceback: str | None


class Enabled(Event, frozen=True, kw_only=True):
    """Traffic is enabled: health checks answer that the cluster serves."""

    name: ClassVar[str] = "enabled"


class Disabled(Event, frozen=True, kw_only=True):
    """Traffic is disabled: health checks answer so. The cluster serves on."""

    name: ClassVar[str] = "disabled"


class Signalled(Event, frozen=True, kw_only=True):
    """The master received a signal. Listeners name the signal itself: `cluster.on("SIGTERM")`."""

    name: ClassVar[str] = "signal"
    signal: str
    action: str


class ShuttingDown(Event, frozen=True, kw_only=True):
    """The master begins to leave.

    Attributes:
        graceful: whether requests under way are finished first.
        lame_duck: seconds that it serves on before that, for load balancers to notice.
    """

    name: ClassVar[str] = "shutdown"
    graceful: bool
    lame_duck: float = 0.0


class Stopped(Event, frozen=True, kw_only=True):
    """Everything has ended; the last event there is."""

    name: ClassVar[str] = "stopped"
    code: int


class Heartbeat(Event, frozen=True, kw_only=True):
    """What all workers did, every `heartbeat_interval`. Totals count from the cluster's start, over recycles and reloads.

    Attributes:
        interval: seconds since the last one.
        workers: how many there are.
        cpu: how much of a core a worker used in the interval, on average: 1 is all of it.
        memory: resident bytes of a worker, on average, shared pages included.
        connections: open now.
        accepted: total of connections accepted; an engine that accepts by itself and can't know adds 0.
        pending: requests under way now.
        requests: total of those that have ended: answered, refused, or left by their client.
        responses: the same by the class of their status, `1xx` to `5xx`; a class is 0 where an engine can't know.
        disconnects: total of requests whose connection ended before the response did; 0 where an engine can't know.
        errors: total of requests answered with 5xx or failed in another way, and of transactions that failed.
        timed_out: total of connections given up because the client took too long.
        transactions: total of what the app has counted itself (`worker.transaction`).
        duration: seconds that those took together.
        each: the same for each worker, with its pid, slot and generation; its counts are those of its own life.
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
    """A user's own event: `worker.emit("name", data)`, or `cluster.emit`. Listeners name it by its own name.

    Attributes:
        event: its name.
        data: what was emitted with it.
        pid: of the worker that emitted it; 0: the master.
        slot: of that worker; None: it came by way of the master.
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
    """The name under which listeners are found: that of a signal, or of a user's event, itself; else the event's."""
    if isinstance(event, Emitted):
        return event.event
    return event.signal if isinstance(event, Signalled) else event.name


def plain(event: Event) -> dict[str, Any]:
    """An event as plain data, for JSON: its name as `event`, and its fields."""
    try:
        fields = msgspec.json.decode(msgspec.json.encode(event))
    except (TypeError, ValueError):  # a user's data that JSON hasn't
        fields = {"time": event.time, "data": repr(getattr(event, "data", None))}
    except RecursionError:
        fields = {"time": event.time}
    return {"event": name_of(event), **{name: value for name, value in fields.items() if name != "event"}}


def cut(told: dict[str, Any], longest: int) -> dict[str, Any]:
    """An event as plain data, without its contents if it has more than so many bytes as JSON; `cut` says how many it had."""
    size = len(msgspec.json.encode(told))
    if size <= longest:
        return told
    kept = ("event", "time", "pid", "slot", "generation", "reason")
    brief = {name: told[name] for name in kept if len(str(told.get(name, ""))) <= 1000 and name in told}
    return {**brief, "cut": size}


EVENTS: dict[str, type[Event]] = {kind.name: kind for kind in Event.__subclasses__()}
"""All events by name."""


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
    """A name for an event of the user's own. Raises ValueError if it can't be one."""
    if not isinstance(name, str) or not name or name == "*" or len(name) > 200:
        raise ValueError(f"event {name!r}: expected a text of 1 to 200 characters, other than *")
    if name in EVENTS or name.startswith("SIG"):
        raise ValueError(f"event {name!r} is the master's: choose another name")
    return name
