"""`check` and `config`: what would be served, and how, without serving it."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click

from ..config.settings import OPTIONS, SECRET_VARIABLES
from ..runtime import env_files
from ..runtime.option_sources import Config
from .flags import OptionCommand, gather, require_target, with_options


@click.command(cls=OptionCommand)
@with_options
def check(**flags: Any) -> int:
    """Validate options and app, serve nothing."""
    config = require_target(gather(flags))
    settings = config.settings
    _enter(config)

    from ..engines import registry
    from ..linux import processes
    from ..processes.zygote import inheritance
    from ..processes.zygote.started import StartedAtImport
    from ..runtime import app_loader

    name, before = inheritance.own_name(), inheritance.connections()
    started = StartedAtImport(list(processes.children()))
    staff = []
    for target, _ in settings.targets():
        app = app_loader.load(target, factory=settings.factory)
        staff.append(
            registry.EngineChoice(app.label, app.interface, registry.choose_engine(settings.engine, app.interface))
        )
    given = {name: source for name, source in config.sources.items() if config.explicit(name)}
    notes = registry.check_options(staff, settings, given)
    for each in staff:
        each.engine.preload(settings)
    for each, (target, addresses) in zip(staff, settings.targets(), strict=True):
        click.echo(f"ok: {each.interface} app {target} on {', '.join(map(str, addresses))}")
    for note in notes:
        click.echo(f"note: {note}")
    started.record()
    if settings.cluster and settings.preload:
        made = [peer for inode, peer in inheritance.connections().items() if inode not in before]
        for warning in inheritance.warnings(inheritance.threads(name), sorted(made)):
            click.echo(f"warning: {warning}")
    return 0


def _enter(config: Config) -> None:
    """Make this process's surroundings those of a worker."""
    from pathlib import Path

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
    """Show all options, each with its source."""
    found = gather(flags, check=False)
    values = found.settings.to_wire()
    if as_json:
        shown = {name: {"value": _shown(name, values), "source": found.sources[name]} for name in OPTIONS}
        click.echo(json.dumps(shown, indent=2))
        return 0
    rows = [(name, _line(name, found), found.sources[name]) for name in OPTIONS]
    left, middle = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, value, source in rows:
        click.echo(f"{name:<{left}}  {value:<{middle}}  {source}")
    return 0


def _shown(name: str, values: dict[str, Any]) -> Any:
    option = OPTIONS[name]
    value = values[option.field]
    return "***" if option.secret and value is not None else value


def _line(name: str, config: Config) -> str:
    option = OPTIONS[name]
    value = getattr(config.settings, option.field)
    return option.show(value) or '""' if value not in (None, ()) else "-"
