"""The fields of the JSON of `cluster2 status --json`, `cluster2 top --json` and the monitor's `/`, for the reference page.

The JSON is made by `processes.master.control.cluster_status`, `cli.top` and `processes.monitor.data.report`. A test compares it
with this list, field by field. Descriptions of scoreboard cells are taken from their declaration in `linux.cells`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .core.health import STUCK_STATE
from .core.lifecycle import MODES, PHASES, SHOWN_STATES
from .linux.scoreboard import Cells, Header, Row

STATUS, TOP, FACTS = "`status`", "`top`", "`/`"
ALL_PAGES = (STATUS, TOP, FACTS)
MASTER = (STATUS, TOP)
_UNITS = ("seconds", "bytes")


@dataclass(frozen=True, slots=True)
class _AnswerField:
    """One field.

    Attributes:
        path: the names of the objects that it is in and its own, with dots; `[]`: each item of a list.
        unit: the unit, or the kind of value.
        meaning: one line.
        of: the outputs that have the field.
    """

    path: str
    unit: str
    meaning: str
    of: tuple[str, ...] = ALL_PAGES


def _cell(path: str, cells: type[Cells] = Row, cell: str = "", of: tuple[str, ...] = ALL_PAGES) -> _AnswerField:
    """Return the field of a scoreboard cell that is shown unchanged."""
    meaning = cells.FIELDS[cell or path.rpartition(".")[2]].meaning.replace("-1:", "null:")
    said, _, unit = meaning.rpartition(": ")
    return _AnswerField(path, unit, said, of) if unit in _UNITS else _AnswerField(path, "number", meaning, of)


def _words(words: Any) -> str:
    return ", ".join(f"`{word}`" for word in words)


_MEMORY = (
    "proportional set size: a page that n processes share counts 1/n; null: not measured, or the process has just ended"
)
_QUANTILE = ("half of the requests took at most that", "99 of 100 requests took at most that")


def _latency(path: str, whose: str, of: tuple[str, ...] = ALL_PAGES) -> tuple[_AnswerField, ...]:
    p50, p99 = _QUANTILE
    return (
        _AnswerField(path, "object", whose + "; null: no request was measured", of),
        _AnswerField(f"{path}.p50", "seconds", p50, of),
        _AnswerField(f"{path}.p99", "seconds", p99, of),
        _AnswerField(f"{path}.max", "seconds", "the slowest took that", of),
        _AnswerField(f"{path}.measured", "number", "requests that were measured, a [sample](../metrics.md)", of),
    )


def _recent(path: str, whose: str) -> tuple[_AnswerField, ...]:
    p50, p99 = _QUANTILE
    return (
        _AnswerField(
            f"{path}.p50", "seconds", f"{whose}, of the last ten seconds: {p50}; null: none was measured", (FACTS,)
        ),
        _AnswerField(f"{path}.p99", "seconds", f"likewise: {p99}", (FACTS,)),
    )


GROUPS: Mapping[str, tuple[_AnswerField, ...]] = {
    "The whole": (
        _AnswerField("time", "seconds since the epoch", "when the figures were taken", (TOP, FACTS)),
        _AnswerField("title", "text", "`proc_name`, or `cluster2`", (FACTS,)),
        _cell("generation", Header),
        _cell("wanted", Header),
        _AnswerField("ready", "number", "workers that serve; one whose heartbeat is overdue (`stuck`) doesn't count"),
        _AnswerField("in_flight", "number", "requests under way, at all workers"),
        _AnswerField("waiting", "number", "connections that wait to be accepted; null: not known", MASTER),
        _AnswerField("traffic", "text", "`enabled`, `disabled`: the response of health checks"),
        _AnswerField("leaving", "boolean", "the cluster is about to shut down, and health checks say so", (FACTS,)),
        _AnswerField("addresses", "list of texts", "the addresses of the apps"),
        *_latency("latency", "of all workers together; `/` includes workers that have ended"),
        *_recent("recent", "all workers together"),
        _AnswerField("rates.requests", "a second", "requests that end; null: not known", (FACTS,)),
        _AnswerField("rates.errors", "a second", "[errors](../metrics.md#definitions); null: not known", (FACTS,)),
        _AnswerField("rates.cpu", "cores", "used by all processes together; null: not known", (FACTS,)),
        _AnswerField("connections.held", "number", "connections open at workers; null: an engine can't know", (FACTS,)),
        _cell("connections.resting", Header, of=(FACTS,)),
        _AnswerField(
            "connections.waiting", "number", "connections that wait to be accepted; null: not known", (FACTS,)
        ),
        _AnswerField("memory.now", "bytes", "of all processes; null: not measured yet", (FACTS,)),
        _AnswerField(
            "memory.start",
            "bytes",
            "of all processes when all workers were ready for the first time; null: not measured yet",
            (FACTS,),
        ),
        _AnswerField("host.name", "text", "the name of the machine", (FACTS,)),
        _AnswerField(
            "host.cpus", "number", "CPUs that the cluster may use, by affinity and the quota of the cgroup", (FACTS,)
        ),
        _AnswerField("host.load", "list of numbers", "load average over 1, 5 and 15 minutes", (FACTS,)),
        _AnswerField("host.memory.total", "bytes", "memory of the machine; null: not known", (FACTS,)),
        _AnswerField("host.memory.available", "bytes", "memory that programs can still get; null: not known", (FACTS,)),
        _AnswerField("actions", "boolean", "true: the monitor accepts actions from clients with the token", (FACTS,)),
        _AnswerField("logs", "boolean", "true: there are log files to read", (FACTS,)),
    ),
    "Messages": (
        _AnswerField("talk.delegated", "number", "delegated calls of workers that have begun", MASTER),
        _AnswerField("talk.unfinished", "number", "delegated calls under way", MASTER),
        _AnswerField(
            "talk.late", "number", "results that were dropped because no worker waited for them any more", MASTER
        ),
        _AnswerField(
            "talk.dropped", "number", "messages to workers that were dropped because the workers didn't read", MASTER
        ),
    ),
    "Master": (
        _AnswerField("master.pid", "number", "process id; null: there is no master (`cluster = false`)"),
        _AnswerField(
            "master.state",
            "text",
            f"{_words(PHASES)}; `/` also has `stuck`: the master's periodic tasks haven't run for 30 s",
        ),
        _AnswerField("master.uptime", "seconds", "since the master started"),
        _AnswerField("master.started", "seconds since the epoch", "when the master started", (FACTS,)),
        _AnswerField("master.version", "text", "of cluster2"),
        _AnswerField("master.memory", "bytes", _MEMORY),
    ),
    "Keeper": (
        _AnswerField("keeper", "object", "null: there is no keeper"),
        _AnswerField("keeper.pid", "number", "process id"),
        _cell("keeper.resting", Header),
        _cell("keeper.expired", Header, "keeper_expired"),
        _cell("keeper.lost", Header, "keeper_lost"),
        _cell("keeper.restarts", Header, "keeper_restarts"),
        _AnswerField("keeper.memory", "bytes", "as that of the master"),
    ),
    "Monitor": (
        _AnswerField("monitor", "object", "null: there is no monitor"),
        _AnswerField("monitor.pid", "number", "process id; null: the monitor is being started"),
        _AnswerField("monitor.address", "text", "host and port"),
        _cell("monitor.restarts", Header, "monitor_restarts"),
        _AnswerField("monitor.memory", "bytes", "as that of the master"),
    ),
    "Workers": (
        _AnswerField("workers", "list of objects", "all worker processes; while a worker is replaced its slot has two"),
        _AnswerField("workers[].pid", "number", "process id"),
        _AnswerField("workers[].slot", "number", "the slot of the worker, from 0; its successor has the same"),
        _cell("workers[].generation"),
        _AnswerField(
            "workers[].state",
            "text",
            f"{_words([*(state.label for state in SHOWN_STATES), STUCK_STATE])}: ready, but its heartbeat is overdue. "
            "`/` never has `dying`: a worker writes its state itself, and one that is killed writes nothing",
        ),
        _AnswerField("workers[].uptime", "seconds", "since the worker was forked"),
        _cell("workers[].requests"),
        _AnswerField("workers[].rate", "a second", "requests that end; null: not known yet", (TOP, FACTS)),
        _cell("workers[].in_flight"),
        _cell("workers[].errors"),
        _AnswerField("workers[].error_rate", "a second", "[errors](../metrics.md#definitions)", (FACTS,)),
        _AnswerField(
            "workers[].responses",
            "object",
            f"requests that have ended, by the class of their status: {_words(Row.STATUS_CLASSES)}; null: not known",
        ),
        *(
            _AnswerField(f"workers[].responses.{label}", "number", f"with a status of {label}")
            for label in Row.STATUS_CLASSES
        ),
        _cell("workers[].disconnects"),
        *_latency("workers[].latency", "of all requests of the worker"),
        *_recent("workers[].recent", "its requests"),
        _cell("workers[].cpu"),
        _AnswerField(
            "workers[].cpu_share",
            "share of a core",
            "used by the worker, 1 for a whole core; null: not known yet",
            (TOP, FACTS),
        ),
        _AnswerField("workers[].memory", "bytes", "as that of the master; in `top` every ten seconds"),
        _AnswerField(
            "workers[].heartbeat_age", "seconds", "since its last heartbeat; null: there was none yet", (FACTS,)
        ),
        _AnswerField(
            "workers[].mode",
            "text",
            f"how the worker takes connections: {_words((*MODES, 'none'))} ([details](../keeper.md))",
        ),
        _cell("workers[].longest_step"),
        _cell("workers[].connections"),
        _cell("workers[].accepted"),
        _cell("workers[].timed_out"),
        _cell("workers[].moved_in"),
        _cell("workers[].moved_out"),
        _cell("workers[].parked"),
        _cell("workers[].lost"),
    ),
    "Slots that back off": (
        _AnswerField(
            "backoffs",
            "list of objects",
            "slots that wait for their next worker, since the last ones ended too soon",
            MASTER,
        ),
        _AnswerField("backoffs[].slot", "number", "the slot", MASTER),
        _AnswerField("backoffs[].seconds", "seconds", "until its next worker is made", MASTER),
        _AnswerField(
            "backoffs[].young_deaths",
            "number",
            "consecutive workers of the slot that ended within their first second",
            MASTER,
        ),
    ),
}
"""All fields, by heading of the reference page."""
