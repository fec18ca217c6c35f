"""What is asked of a running master: `status`, `reload`, `scale`, `recycle`, `enable`, `stacks`, `shutdown` and so on."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..client import Client
from ..config import lookup

_pids = click.option(
    "--pids", metavar="PATH", help="The directory of pid files that the master was started with.  [./pids]"
)


@click.command()
@_pids
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(pids: str | None, as_json: bool) -> int:
    """Show the master and its workers."""
    found = _client(pids).call("status", timeout=10)
    click.echo(json.dumps(found, indent=2) if as_json else describe(found))
    return 0


@click.command()
@_pids
def stop(pids: str | None) -> int:
    """Stop at once, return when all are gone."""
    _client(pids).gone("stop", progress=_reporter())
    return 0


@click.command()
@_pids
def shutdown(pids: str | None) -> int:
    """Stop gracefully, return when the master is gone."""
    _client(pids).gone("shutdown", progress=_reporter())
    return 0


@click.command()
@_pids
def reload(pids: str | None) -> int:
    """Load the code again: a new generation of workers, each ready before its predecessor leaves.

    Returns when the old generation has left; with 1 and the reason if the new one was no good and the old one goes on.
    """
    _client(pids).call("reload", progress=_reporter())
    return 0


@click.command()
@_pids
@click.argument("workers", type=click.IntRange(min=1), metavar="N")
def scale(pids: str | None, workers: int) -> int:
    """Set the number of workers to N; returns when there are so many."""
    _client(pids).call("scale", {"workers": workers}, progress=_reporter())
    return 0


@click.command()
@_pids
@click.argument("worker", type=click.IntRange(min=0), required=False, metavar="[PID|SLOT]")
def recycle(pids: str | None, worker: int | None) -> int:
    """Replace one worker by another of the same generation, or all in turn."""
    _client(pids).call("recycle", {"worker": worker}, progress=_reporter())
    return 0


@click.command()
@_pids
def enable(pids: str | None) -> int:
    """Let health checks answer that this cluster serves."""
    _client(pids).call("enable")
    return 0


@click.command()
@_pids
def disable(pids: str | None) -> int:
    """Let health checks answer that this cluster wants no traffic. It serves on, also after reload, recycle and scale."""
    _client(pids).call("disable")
    return 0


@click.command()
@_pids
@click.argument("worker", type=click.IntRange(min=0), required=False, metavar="[PID|SLOT]")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def stacks(pids: str | None, worker: int | None, as_json: bool) -> int:
    """Show the Python stacks of all workers, or of one; also of one that is stuck."""
    found = _client(pids).call("stacks", {"worker": worker})
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(
            "\n\n".join(f"worker {each['pid']} (slot {each['slot']})\n{each['stacks']}" for each in found["workers"])
        )
    return 0


@click.command()
@_pids
@click.option("--json", "as_json", is_flag=True, help="As JSON, one event a line.")
def events(pids: str | None, as_json: bool) -> int:
    """Follow what happens, until the master leaves or Ctrl-C.

    Shows each event as it happens: workers that come and go, reloads, warnings, heartbeats, and those that the app emits.
    """

    def show(told: dict[str, Any]) -> None:
        if "event" in told:
            click.echo(json.dumps(told) if as_json else _event(told))

    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _client(pids).follow("events", show)
    return 0


def _event(told: dict[str, Any]) -> str:
    """One line for people: when, what, and its fields; of the workers one by one only JSON tells."""
    when = time.strftime("%H:%M:%S", time.localtime(told["time"]))
    fields = [f"{name}={_brief(value)}" for name, value in told.items() if name not in ("event", "time", "each")]
    return f"{when}  {told['event']:<14} {' '.join(fields)}".rstrip()


def _brief(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 and "\n" not in text else json.dumps(text[:117] + "…")


def _client(pids: str | None) -> Client:
    return Client(Path(lookup("pids", pids)))


def _reporter() -> Callable[[dict[str, Any]], None] | None:
    """What shows progress on a terminal; None in a pipe."""
    if not sys.stderr.isatty():
        return None
    return lambda said: click.echo("  ".join(f"{key} {value}" for key, value in said.items()), err=True)


def describe(found: dict[str, Any]) -> str:
    """A master's answer to `status` for people: some lines on the whole, then a table of the workers."""
    master, workers = found["master"], found["workers"]
    ready = sum(worker["state"] == "ready" for worker in workers)
    lines = [
        f"master {master['pid']}  {master['state']}, up {_span(master['uptime'])}, cluster2 {master['version']}",
        f"generation {found['generation']}  {ready} of {found['wanted']} workers ready, traffic {found['traffic']}",
        "listening  " + ", ".join(found["addresses"]),
    ]
    if keeper := found.get("keeper"):
        lines.append(f"keeper {keeper['pid']}  {keeper['resting']} connections at rest, {_memory(keeper['memory'])}")
    if monitor := found.get("monitor"):
        lines.append(f"monitor {monitor['pid'] or 'starts'}  http://{monitor['address']}, {_memory(monitor['memory'])}")
    rows: list[tuple[str, ...]] = [("PID", "SLOT", "GEN", "STATE", "UP", "REQUESTS", "OPEN", "BUSY", "MEMORY")]
    rows += [
        (
            _cell(worker["pid"]),
            _cell(worker["slot"]),
            _cell(worker["generation"]),
            _cell(worker["state"]),
            _span(worker["uptime"]),
            _cell(worker["requests"]),
            _cell(worker["connections"]),
            _cell(worker["in_flight"]),
            _memory(worker["memory"]),
        )
        for worker in workers
    ]
    return "\n".join([*lines, "", *_aligned(rows)])


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines in columns: words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(_pad(cell, at, width) for at, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]


def _pad(cell: str, column: int, width: int) -> str:
    return cell.ljust(width) if column == 3 else cell.rjust(width)


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def _span(seconds: float | None) -> str:
    """A time in its two largest units: `3d4h`, `2m05s`, `7s`."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    for size, unit, below, below_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // below:02d}{below_unit}"
    return f"{whole}s"


def _memory(size: float | None) -> str:
    return "-" if size is None else f"{size / 2**20:.0f} MiB"
