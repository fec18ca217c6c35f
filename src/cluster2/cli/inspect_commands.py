"""The commands `check` and `config`: validate and show the configuration without serving."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config.settings import OPTIONS, SECRET_VARIABLES
from ..errors import ClusterError
from ..runtime import env_files
from ..runtime.control_client import ControlClient
from ..runtime.option_sources import Config
from . import complain, report_error
from .flags import OptionCommand, gather, require_target, with_options

if TYPE_CHECKING:
    from ..processes.zygote.started import StartedAtImport

_MASTER_TIMEOUT_S = 3.0
"""Seconds for which `config` waits for the options of a running master."""


@click.command(cls=OptionCommand)
@with_options
def check(**flags: Any) -> int:
    """Validate options and app, serve nothing."""
    config = require_target(gather(flags))
    _enter(config)
    from ..processes.zygote.started import StartedAtImport

    before = set(threading.enumerate())
    started = StartedAtImport()
    try:
        with started:
            _load_and_report(config)
        code = 0
    except ClusterError as error:
        code = report_error(error)
    _end_despite_threads(before, started, code)
    return code


def _load_and_report(config: Config) -> None:
    """Load the apps, and print their interfaces, notes and warnings. Raises ClusterError: they can't be served."""
    from ..engines import registry
    from ..processes.zygote import inheritance
    from ..runtime import app_loader

    settings = config.settings
    name, before = inheritance.own_name(), inheritance.connections()
    choices = []
    for target, _ in settings.targets():
        app = app_loader.load(target, factory=settings.factory)
        engine = registry.choose_engine(settings.engine, app.interface)
        choices.append(registry.EngineChoice(app.label, app.interface, engine))
    given = {name: source for name, source in config.sources.items() if config.explicit(name)}
    notes = registry.check_options(choices, settings, given)
    for each in choices:
        each.engine.preload(settings)
    for each, (target, addresses) in zip(choices, settings.targets(), strict=True):
        click.echo(f"ok: {each.interface} app {target} on {', '.join(map(str, addresses))}")
    for note in notes:
        click.echo(f"note: {note}")
    if settings.cluster and settings.preload:
        made = [peer for inode, peer in inheritance.connections().items() if inode not in before]
        for warning in inheritance.warnings(inheritance.threads(name), sorted(made)):
            click.echo(f"warning: {warning}")


def _end_despite_threads(before: Container[threading.Thread], started: StartedAtImport, code: int) -> None:
    """End this process at once if the import has left threads for which Python would wait, perhaps for ever."""
    left = [thread.name for thread in threading.enumerate() if not thread.daemon and thread not in before]
    if not left:
        return
    click.echo(
        f"warning: the import left threads running that aren't daemons ({', '.join(left)}): Python waits for them when a process "
        "ends; start them with daemon=True, or in worker.on_start"
    )
    sys.stdout.flush()
    sys.stderr.flush()
    # The interpreter would join these threads before it calls `atexit` functions, which terminate what the import has started.
    started.terminate()
    os._exit(code)


def _enter(config: Config) -> None:
    """Give this process the environment and the working directory of a worker."""
    from ..linux import secret_environment

    secret_environment.remove_and_overwrite(SECRET_VARIABLES)

    os.chdir(config.settings.chdir)
    sys.path.insert(0, config.settings.chdir)
    if config.settings.env_file is not None:
        os.environ.update(env_files.read(Path(config.settings.env_file)))


@click.command(cls=OptionCommand)
@with_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def config(as_json: bool, **flags: Any) -> int:
    """Show all options, each with its source.

    These are the options that `run` with the same TARGET and flags would use here. A cluster that runs already may have been
    started with others: then a line on standard error names them.
    """
    found = gather(flags, check=False)
    values = found.settings.to_public()
    if (note := _running_note(found, values)) is not None:
        complain("note", note)
    if as_json:
        shown = {name: {"value": values[name], "source": found.sources[name]} for name in OPTIONS}
        click.echo(json.dumps(shown, indent=2))
        return 0
    rows = [(name, _line(name, found), found.sources[name]) for name in OPTIONS]
    left, middle = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, value, source in rows:
        click.echo(f"{name:<{left}}  {value:<{middle}}  {source}")
    return 0


def _running_note(config: Config, values: dict[str, Any]) -> str | None:
    """Return which options of the cluster that runs on this pids directory are others; None: there are none, or no cluster.

    The app doesn't count unless it is named here: it is an argument of `run`, which `config` is usually called without.
    """
    client = ControlClient(Path(config.settings.pids))
    try:
        running = client.call("options", timeout=_MASTER_TIMEOUT_S)
    except ClusterError:  # no master, or one that doesn't answer or is older: this is no command about it
        return None
    options, sources = running["options"], running["sources"]
    plain = json.loads(json.dumps(values))  # tuples become lists, as on the way from the master
    ignored = ("app", "factory") if config.settings.app is None and not config.settings.apps else ()
    different = [
        f"{name} = {_brief(value)} ({sources.get(name, 'default')})"
        for name, value in options.items()
        if name in plain and name not in ignored and value != plain[name]
    ]
    if not different:
        return None
    return f"the cluster that runs on {client.pids} has other options: {', '.join(different)}"


def _brief(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _line(name: str, config: Config) -> str:
    option = OPTIONS[name]
    value = getattr(config.settings, option.field)
    return option.show(value) or '""' if value not in (None, ()) else "-"
