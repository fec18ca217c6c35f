"""The flags of commands that take options, derived from `settings.OPTIONS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from ..config.settings import FORMER, OPTIONS, Option
from ..config.value_types import FLAG
from ..runtime.option_sources import Config, load
from . import complain

_ELSEWHERE = {
    "--daemon": "`cluster2 start` serves in the background",
    "-D": "`cluster2 start` serves in the background",
    "--worker-class": "the app's interface is found by itself; --engine names another engine",
    "-k": "the app's interface is found by itself; --engine names another engine",
    "--pid": "the directory --pids has a file for each process",
    "-p": "the port is --port, or --bind HOST:PORT; the directory --pids has a file for each process",
    "--max-requests": "that is --request-threshold, and --threshold-jitter",
    "--graceful-timeout": "that is --drain-timeout",
    "--access-logfile": "--access-log writes access.log in the directory of logs",
    "--error-logfile": "master.log in the directory of logs has errors; --log-to stderr shows them",
    "--uds": "that is --bind unix:PATH",
    "--proxy-headers": "they are trusted from the peers in --forwarded-allow-ips",
}
"""Flags of gunicorn and uvicorn that don't exist here, with the replacement."""


class _Flag(click.Option):
    """The flag of an option. Its value stays a text here; `option_sources.load` reads and checks it."""

    def __init__(self, option: Option) -> None:
        assert option.flag is not None
        names = [option.field, option.flag, *([option.short] if option.short else [])]
        default = option.show(option.default)
        shown = f"{option.help}  [{default}]" if default else option.help
        if option.kind is FLAG:
            names[1] += option.flag.replace("--", "/--no-", 1)
            super().__init__(names, default=None, help=shown)
        else:
            label = option.kind.label
            super().__init__(names, default=None, help=shown, metavar=label, multiple=option.repeatable)
        self.heading = option.group


class OptionCommand(click.Command):
    """A command with a flag for each option, shown under headings. It keeps the arguments as they were written."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments and store them. Raises click.UsageError, with the replacement of a flag of another server."""
        ctx.meta["cluster2.arguments"] = tuple(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name.removeprefix("--").replace("-", "_")
            if (option := FORMER.get(name)) is not None:
                raise click.UsageError(f"{error.option_name} is named {option.flag} now.", ctx) from None
            if (instead := _ELSEWHERE.get(error.option_name)) is None:
                raise
            raise click.UsageError(f"No such option: {error.option_name}; {instead}.", ctx) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags under their headings."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                groups.setdefault(getattr(param, "heading", "Command"), []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records, col_max=42)


def with_options(function: Callable[..., int]) -> Callable[..., int]:
    """Give a command TARGET, `--config` and a flag for each option; `gather` makes a configuration of what they say."""
    for option in reversed(list(OPTIONS.values())):
        if option.flag:
            _add(function, _Flag(option))
    help = "read options from FILE, not from cluster2.toml or pyproject.toml"
    _add(function, click.Option(["file", "-c", "--config"], metavar="FILE", help=help))
    _add(function, click.Argument(["app"], metavar="TARGET", required=False))
    return function


def _add(function: Callable[..., int], param: click.Parameter) -> None:
    # The attribute in which click's own decorators store parameters, the last one first.
    vars(function).setdefault("__click_params__", []).append(param)


def gather(flags: Mapping[str, Any], *, check: bool = True, warn: bool = True) -> Config:
    """Load the configuration from flags, environment and file.

    Args:
        check: see `runtime.option_sources.load`.
        warn: whether to say its warnings on standard error. A master says them in its own log.

    Raises:
        ConfigError: see `runtime.option_sources.load`.
    """
    names = {option.field: option for option in OPTIONS.values()}
    given = {names[field].name: value for field, value in flags.items() if field in names and value not in (None, ())}

    def origin(name: str) -> str:
        option = OPTIONS[name]
        if option.flag is None:
            return "argument TARGET"
        return "flag " + (option.flag.replace("--", "--no-", 1) if given[name] is False else option.flag)

    file = flags.get("file")
    config = load(given, origin=origin, file=None if file is None else Path(file), check=check)
    for warning in config.warnings if warn else ():
        complain("warning", warning)
    return config


def require_target(config: Config) -> Config:
    """Return the configuration. Raises click.UsageError: it names no app."""
    if config.settings.app is None and not config.settings.apps:
        raise click.UsageError("name the app: TARGET is module:attr or path/file.py:attr", click.get_current_context())
    return config
