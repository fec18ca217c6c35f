"""The commands for a running master: `status`, `reload`, `scale`, `recycle`, `enable`, `stacks`, `shutdown` and so on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..runtime.control_client import ControlClient
from ..runtime.option_sources import lookup
from . import complain, shown, shown_until_left
from .table import describe

_pids = click.option(
    "--pids", metavar="PATH", help="The directory of pid files that the master was started with.  [./pids]"
)


@click.command()
@_pids
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(pids: str | None, as_json: bool) -> int:
    """Show the master and its workers."""
    found = _client(pids).call("status", timeout=10)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(describe(found)))
    return 0


@click.command()
@_pids
def stop(pids: str | None) -> int:
    """Stop at once; return when all processes have ended."""
    _client(pids).send_and_wait_for_exit("stop", progress=_reporter())
    return 0


@click.command()
@_pids
def shutdown(pids: str | None) -> int:
    """Shut down gracefully; return when the master has ended.

    Exits with 1 and the reason if requests were lost: a worker crashed, or did not finish within drain_timeout.
    """
    _client(pids).send_and_wait_for_exit("shutdown", progress=_reporter())
    return 0


@click.command()
@_pids
def reload(pids: str | None) -> int:
    """Load the code again: a new generation of workers, each ready before its predecessor leaves.

    Returns when the old generation has left. Exits with 1 and the reason if the reload was abandoned and the old one serves on. Exits
    with 1 as well if the new code serves, but an old worker died or had requests cut off.
    """
    done = _client(pids).call("reload", progress=_reporter())
    for warning in done["warnings"]:
        complain("warning", warning)
    return 0


@click.command()
@_pids
@click.argument("workers", type=click.IntRange(min=1), metavar="N")
def scale(pids: str | None, workers: int) -> int:
    """Set the number of workers to N; return when that number serves.

    Exits with 1 and the reason if new workers can't be made, or if one that was to leave crashed or did not finish within
    drain_timeout.
    """
    _client(pids).call("scale", {"workers": workers}, progress=_reporter())
    return 0


@click.command()
@_pids
@click.argument("worker", type=click.IntRange(min=0), required=False, metavar="[PID|SLOT]")
def recycle(pids: str | None, worker: int | None) -> int:
    """Replace one worker by another of the same generation, or all in turn; return when they have left.

    Exits with 1 and the reason if new workers can't be made, or if one that was to leave crashed or did not finish within
    drain_timeout.
    """
    _client(pids).call("recycle", {"worker": worker}, progress=_reporter())
    return 0


@click.command()
@_pids
def enable(pids: str | None) -> int:
    """Enable traffic: health checks respond that this cluster serves."""
    _client(pids).call("enable")
    return 0


@click.command()
@_pids
def disable(pids: str | None) -> int:
    """Disable traffic: health checks respond that this cluster wants none. It serves on, also after reload, recycle and scale."""
    _client(pids).call("disable")
    return 0


@click.command()
@_pids
@click.argument("worker", type=click.IntRange(min=0), required=False, metavar="[PID|SLOT]")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def stacks(pids: str | None, worker: int | None, as_json: bool) -> int:
    """Show the Python stacks of all workers or of one, also of a stuck worker."""
    found = _client(pids).call("stacks", {"worker": worker})
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(
            "\n\n".join(
                f"worker {each['pid']} (slot {each['slot']})\n{shown(each['stacks'])}" for each in found["workers"]
            )
        )
    return 0


@click.command()
@_pids
@click.option("--json", "as_json", is_flag=True, help="As JSON, one event a line.")
def events(pids: str | None, as_json: bool) -> int:
    """Follow the events, until the master ends or Ctrl-C.

    Shows each event as it happens: workers that start and end, reloads, warnings, heartbeats, and events of the app's own.
    """

    def show(told: dict[str, Any]) -> None:
        if "event" in told:
            click.echo(json.dumps(told) if as_json else _event(told))

    with shown_until_left():
        _client(pids).follow("events", show)
    return 0


def _event(told: dict[str, Any]) -> str:
    """Return an event as a line for people: time, name and fields. The figures of each worker are in the JSON only."""
    when = time.strftime("%H:%M:%S", time.localtime(told["time"]))
    fields = [f"{name}={_brief(value)}" for name, value in told.items() if name not in ("event", "time", "each")]
    return shown(f"{when}  {_brief(told['event']):<14} {' '.join(fields)}".rstrip())


def _brief(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 and "\n" not in text else json.dumps(text[:117] + "…")


def _client(pids: str | None) -> ControlClient:
    return ControlClient(Path(lookup("pids", pids)))


def _reporter() -> Callable[[dict[str, Any]], None] | None:
    """Return a function that prints progress lines on a terminal; None: standard error is no terminal."""
    if not sys.stderr.isatty():
        return None
    return lambda said: click.echo(shown("  ".join(f"{key} {value}" for key, value in said.items())), err=True)
