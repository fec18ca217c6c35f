"""What is in the answers of `cluster2 status --json`, of `cluster2 top --json` and of the monitor's `/`: for the reference page.

The answers themselves are made where their figures are (`master/status.py`, `cli/top.py`, `monitor/picture.py`): a test compares
them with this list, field by field. What the scoreboard says of a cell isn't said again here, but taken from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .core.health import STUCK_STATE
from .core.lifecycle import MODES, PHASES, WorkerState
from .linux.scoreboard import Cells, Header, Row

STATUS, TOP, FACTS = "`status`", "`top`", "`/`"
ALL_PAGES = (STATUS, TOP, FACTS)
MASTER = (STATUS, TOP)
_UNITS = ("seconds", "bytes")


@dataclass(frozen=True, slots=True)
class AnswerField:
    """One field.

    Attributes:
        path: its name below those that it is in; `[]`: in each of a list.
        unit: or what kind of a value it is.
        meaning: in a line.
        of: the answers that have it.
    """

    path: str
    unit: str
    meaning: str
    of: tuple[str, ...] = ALL_PAGES


def _cell(path: str, cells: type[Cells] = Row, cell: str = "", of: tuple[str, ...] = ALL_PAGES) -> AnswerField:
    """A cell of the scoreboard, told as it is."""
    meaning = cells.FIELDS[cell or path.rpartition(".")[2]].meaning.replace("-1:", "null:")
    said, _, unit = meaning.rpartition(": ")
    return AnswerField(path, unit, said, of) if unit in _UNITS else AnswerField(path, "number", meaning, of)


def _words(words: Any) -> str:
    return ", ".join(f"`{word}`" for word in words)


_MEMORY = "proportional set size: a page that n processes share counts 1/n; null: not measured, or it has just gone"
_QUANTILE = ("half of the requests took at most that", "99 of 100 requests took at most that")


def _latency(path: str, whose: str, of: tuple[str, ...] = ALL_PAGES) -> tuple[AnswerField, ...]:
    p50, p99 = _QUANTILE
    return (
        AnswerField(path, "object", whose + "; null: no request was measured", of),
        AnswerField(f"{path}.p50", "seconds", p50, of),
        AnswerField(f"{path}.p99", "seconds", p99, of),
        AnswerField(f"{path}.max", "seconds", "the slowest took that", of),
        AnswerField(f"{path}.measured", "number", "requests that were measured, a [sample](../metrics.md)", of),
    )


def _recent(path: str, whose: str) -> tuple[AnswerField, ...]:
    p50, p99 = _QUANTILE
    return (
        AnswerField(
            f"{path}.p50", "seconds", f"{whose}, of the last ten seconds: {p50}; null: none was measured", (FACTS,)
        ),
        AnswerField(f"{path}.p99", "seconds", f"likewise: {p99}", (FACTS,)),
    )


GROUPS: Mapping[str, tuple[AnswerField, ...]] = {
    "The whole": (
        AnswerField("time", "seconds since the epoch", "when it was so", (TOP, FACTS)),
        AnswerField("title", "text", "`proc_name`, or `cluster2`", (FACTS,)),
        _cell("generation", Header),
        _cell("wanted", Header),
        AnswerField("ready", "number", "workers that serve; one whose sign of life is overdue (`stuck`) doesn't"),
        AnswerField("in_flight", "number", "requests under way, at all workers"),
        AnswerField("waiting", "number", "connections that wait to be accepted; null: not known", MASTER),
        AnswerField("traffic", "text", "`enabled`, `disabled`: what health checks answer"),
        AnswerField("leaving", "boolean", "the cluster is about to shut down, and health checks say so", (FACTS,)),
        AnswerField("addresses", "list of texts", "that the apps listen on"),
        *_latency("latency", "of all workers together, in `/` with those that have ended"),
        *_recent("recent", "all workers together"),
        AnswerField("rates.requests", "a second", "requests that end; null: not known", (FACTS,)),
        AnswerField("rates.errors", "a second", "[errors](../metrics.md#definitions); null: not known", (FACTS,)),
        AnswerField("rates.cpu", "cores", "that all processes use together; null: not known", (FACTS,)),
        AnswerField("connections.held", "number", "connections open at workers; null: an engine can't know", (FACTS,)),
        _cell("connections.resting", Header, of=(FACTS,)),
        AnswerField("connections.waiting", "number", "that wait to be accepted; null: not known", (FACTS,)),
        AnswerField("memory.now", "bytes", "of all processes; null: not weighed yet", (FACTS,)),
        AnswerField(
            "memory.start", "bytes", "the same when all workers first were ready; null: not weighed yet", (FACTS,)
        ),
        AnswerField("host.name", "text", "of the machine", (FACTS,)),
        AnswerField("host.cpus", "number", "that may be used: affinity and the cgroup's quota are respected", (FACTS,)),
        AnswerField("host.load", "list of numbers", "processes that run or wait, over 1, 5 and 15 minutes", (FACTS,)),
        AnswerField("host.memory.total", "bytes", "of the machine; null: not known", (FACTS,)),
        AnswerField("host.memory.available", "bytes", "that programs could still have; null: not known", (FACTS,)),
        AnswerField("actions", "boolean", "whether the monitor steers, for who has the token", (FACTS,)),
        AnswerField("logs", "boolean", "whether there are log files to read", (FACTS,)),
    ),
    "Messages": (
        AnswerField("talk.delegated", "number", "pieces of work begun that workers have delegated", MASTER),
        AnswerField("talk.unfinished", "number", "of these, the ones under way", MASTER),
        AnswerField("talk.late", "number", "answers that were dropped because nobody waited any more", MASTER),
        AnswerField("talk.dropped", "number", "messages that were dropped because workers don't read", MASTER),
    ),
    "Master": (
        AnswerField("master.pid", "number", "null: there is none (`cluster = false`)"),
        AnswerField("master.state", "text", f"{_words(PHASES)}; in `/` also `stuck`: it hasn't looked around for 30 s"),
        AnswerField("master.uptime", "seconds", "since it started"),
        AnswerField("master.started", "seconds since the epoch", "when that was", (FACTS,)),
        AnswerField("master.version", "text", "of cluster2"),
        AnswerField("master.memory", "bytes", _MEMORY),
    ),
    "Keeper": (
        AnswerField("keeper", "object", "null: there is none"),
        AnswerField("keeper.pid", "number", "process id"),
        _cell("keeper.resting", Header),
        _cell("keeper.expired", Header, "keeper_expired"),
        _cell("keeper.lost", Header, "keeper_lost"),
        _cell("keeper.restarts", Header, "keeper_restarts"),
        AnswerField("keeper.memory", "bytes", "as that of the master"),
    ),
    "Monitor": (
        AnswerField("monitor", "object", "null: there is none"),
        AnswerField("monitor.pid", "number", "process id; null: it is just being started"),
        AnswerField("monitor.address", "text", "host and port"),
        _cell("monitor.restarts", Header, "monitor_restarts"),
        AnswerField("monitor.memory", "bytes", "as that of the master"),
    ),
    "Workers": (
        AnswerField("workers", "list of objects", "each life of a worker: while one is replaced a slot has two"),
        AnswerField("workers[].pid", "number", "process id"),
        AnswerField("workers[].slot", "number", "its place in the cluster, from 0; its successor has the same"),
        _cell("workers[].generation"),
        AnswerField(
            "workers[].state",
            "text",
            f"{_words([*(state.label for state in WorkerState), STUCK_STATE])}: ready, but its sign of life is overdue",
        ),
        AnswerField("workers[].uptime", "seconds", "since it was forked"),
        _cell("workers[].requests"),
        AnswerField("workers[].rate", "a second", "requests that end; null: not known yet", (TOP, FACTS)),
        _cell("workers[].in_flight"),
        _cell("workers[].errors"),
        AnswerField("workers[].error_rate", "a second", "[errors](../metrics.md#definitions)", (FACTS,)),
        AnswerField(
            "workers[].responses",
            "object",
            f"requests that have ended, by the class of their status: {_words(Row.STATUS_CLASSES)}; null: not known",
        ),
        *(
            AnswerField(f"workers[].responses.{label}", "number", f"with a status of {label}")
            for label in Row.STATUS_CLASSES
        ),
        _cell("workers[].disconnects"),
        *_latency("workers[].latency", "of its whole life"),
        *_recent("workers[].recent", "its requests"),
        _cell("workers[].cpu"),
        AnswerField(
            "workers[].cpu_share",
            "share of a core",
            "that it uses, 1 for a whole one; null: not known yet",
            (TOP, FACTS),
        ),
        AnswerField("workers[].memory", "bytes", "as that of the master; in `top` every ten seconds"),
        AnswerField(
            "workers[].heartbeat_age", "seconds", "since its last sign of life; null: there was none yet", (FACTS,)
        ),
        AnswerField(
            "workers[].mode",
            "text",
            f"how it takes connections: {_words((*MODES, 'none'))} ([what that means](../keeper.md))",
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
        AnswerField("backoffs", "list of objects", "slots without a worker, since the last ones died too soon", MASTER),
        AnswerField("backoffs[].slot", "number", "the slot", MASTER),
        AnswerField("backoffs[].seconds", "seconds", "until its next worker is made", MASTER),
        AnswerField(
            "backoffs[].young_deaths",
            "number",
            "workers of the slot that died within their first second, one after the other",
            MASTER,
        ),
    ),
}
"""All fields, by what they are about."""
