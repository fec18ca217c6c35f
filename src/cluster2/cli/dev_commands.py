"""`dev`, and `run --reload`: serve during development, and load the app again after each edit."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError
from ..runtime.option_sources import Config
from .flags import OptionCommand, gather, require_target, with_options

_DEFAULTS = {
    "workers": "1",
    "log_to": "stderr",
    "monitor_port": "0",
    "max_heartbeat_delay": "1d",
    "boot_timeout": "1d",
}
"""Options that development mode sets unless the user does: one worker on the terminal, and no watchdog during a `breakpoint()`."""

_RELOAD_FLAGS = ("--reload-dir", "--reload-include", "--reload-exclude")


def with_reload_flags(function: Callable[..., int]) -> Callable[..., int]:
    """Add the flags that say what is watched."""
    for name, metavar, help in reversed((
        ("--reload-dir", "DIR", "watch this folder as well; may be given several times"),
        ("--reload-include", "PATTERN", "count changes of these files as well, such as '*.html'"),
        ("--reload-exclude", "PATTERN", "never count changes of these files, or below this folder"),
    )):  # fmt: skip
        function = click.option(name, multiple=True, metavar=metavar, help=help)(function)
    return function


@click.command(cls=OptionCommand)
@with_reload_flags
@with_options
def dev(**flags: Any) -> int:
    """Serve TARGET during development, and load it again after each edit.

    The packages that the app is imported from are watched. Requests under way finish on the old code. An edit that cannot be
    loaded shows its traceback, and the old code serves until the next one. `breakpoint()` in a handler gets the terminal.

    TARGET and options are those of `run`; the defaults here are one worker, no monitor, and no log files.
    """
    return serve(flags, click.get_current_context().meta["cluster2.arguments"])


def serve(flags: Mapping[str, Any], arguments: Sequence[str]) -> int:
    """Serve in development mode.

    Args:
        flags: as click has parsed them.
        arguments: as the user has written them.

    Raises:
        ConfigError: an option is wrong, watchfiles is missing, or there would be no master.
    """
    if importlib.util.find_spec("watchfiles") is None:
        raise ConfigError("development mode needs watchfiles: pip install 'cluster2[dev]'")
    from ..dev.session import DevelopmentSession
    from ..dev.watching import SourceFilter

    config = require_target(gather(flags))
    settings = config.settings
    if not settings.cluster:
        raise ConfigError(
            f"cluster = false ({config.sources['cluster']}): development mode needs a master, which reloads"
        )
    for folder in flags["reload_dir"]:
        if not Path(folder).is_dir():
            raise ConfigError(f"--reload-dir {folder!r}: there is no such directory")
    files = [path for path in (settings.env_file, flags.get("file"), "cluster2.toml", "pyproject.toml") if path]
    filter = SourceFilter(
        flags["reload_include"], flags["reload_exclude"], never=(settings.logs, settings.pids), always=files
    )
    return DevelopmentSession(
        settings,
        [*_defaults(config), *_without_reload_flags(arguments)],
        [settings.chdir, *flags["reload_dir"]],
        filter,
        files,
        lambda line: print(line, file=sys.stderr, flush=True),
    ).run()


def refuse_reload_flags(flags: Mapping[str, Any]) -> None:
    """Refuse flags that mean nothing outside of development mode. Raises click.UsageError."""
    for flag in _RELOAD_FLAGS:
        if flags[flag.removeprefix("--").replace("-", "_")]:
            raise click.UsageError(f"{flag} needs --reload.", click.get_current_context())


def _defaults(config: Config) -> list[str]:
    """Return the flags for the options that the user has not set."""
    found = []
    for name, value in _DEFAULTS.items():
        if not config.explicit(name):
            found += [f"--{name.replace('_', '-')}", value]
    return found


def _without_reload_flags(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without the flags that `run` does not pass on."""
    kept = []
    rest = iter(arguments)
    for each in rest:
        if each in _RELOAD_FLAGS:
            next(rest, None)
        elif each != "--reload" and not each.startswith(tuple(f"{flag}=" for flag in _RELOAD_FLAGS)):
            kept.append(each)
    return kept
