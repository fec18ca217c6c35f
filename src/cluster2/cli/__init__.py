"""The command line of cluster2.

Each command is a function in a module of this package, which is imported when the command is called. `cluster2 status` needs
neither the options nor the master, and must be quick. A command returns its exit code, or raises the error that has one.
"""

from __future__ import annotations

import contextlib
import importlib
import keyword
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from ..errors import ClusterError
from ..version import __version__

COMMANDS = {
    "run": "serve_commands",
    "start": "serve_commands",
    "dev": "dev_commands",
    "status": "control_commands",
    "reload": "control_commands",
    "scale": "control_commands",
    "recycle": "control_commands",
    "enable": "control_commands",
    "disable": "control_commands",
    "events": "control_commands",
    "top": "top",
    "logs": "log_commands",
    "stacks": "control_commands",
    "stop": "control_commands",
    "shutdown": "control_commands",
    "check": "inspect_commands",
    "config": "inspect_commands",
    "import": "import_commands",
    "completion": "completion_commands",
}
"""The modules of the commands."""

_ELSEWHERE = {"serve": "run", "develop": "dev", "restart": "reload", "kill": "stop", "ps": "status", "ls": "status"}
"""Commands of other programs, with the command here that does the same."""

_EXIT_INTERRUPTED = 130
"""128 + SIGINT: the exit code in the shell of a program that Ctrl-C has ended."""


class _Commands(click.Group):
    """The group of commands: imports them on demand, and prints their errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        attribute = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command: click.Command = getattr(importlib.import_module(f".{COMMANDS[cmd_name]}", __name__), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names. Raises click.UsageError, with a similar name: there is none."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            raise click.UsageError(f"No such command {name!r}.{_meant(name)}", ctx)
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run a command and exit with its exit code."""
        try:
            code = super().main(*args, **{"prog_name": "cluster2", **extra, "standalone_mode": False})
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except click.Abort:
            code = _EXIT_INTERRUPTED
        except ClusterError as error:
            code = report_error(error)
        sys.exit(code or 0)


def _meant(name: str) -> str:
    """Return a sentence with the command that an unknown word may stand for; "": none."""
    import difflib  # takes milliseconds, which only a mistake costs

    if ":" in name or name.endswith(".py"):
        return f" To serve an app: cluster2 run {name}"
    close = difflib.get_close_matches(_ELSEWHERE.get(name, name), COMMANDS, 1, 0.7)
    return f" Did you mean {close[0]!r}?" if close else ""


@contextlib.contextmanager
def shown_until_left() -> Iterator[None]:
    """Wrap an endless output. It ends with Ctrl-C, or when the reader closes the pipe (`| head`)."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # the interpreter flushes standard output once more at its end
        os.close(nowhere)


def shown(text: str) -> str:
    """Escape the control characters of a text that comes from an app, except tabs and line ends, for a terminal."""
    return "".join(each if each.isprintable() or each in "\t\n" else f"\\x{ord(each):02x}" for each in text)


def complain(kind: str, message: str) -> None:
    """Print a line on standard error: `cluster2: warning: …`."""
    click.echo(f"cluster2: {kind}: {shown(message)}", err=True)


def report_error(error: ClusterError) -> int:
    """Print an error on standard error: one line, and the detail below it. Returns its exit code."""
    complain("error", error.message)
    if error.detail:
        click.echo(shown(error.detail), err=True)
    return error.exit_code


def _version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"cluster2 {__version__}")
        ctx.exit()


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version and leave."
)
def cli() -> None:
    """Serve Python apps on all cores, and lose no request."""


def main() -> NoReturn:
    """Run the console script `cluster2`."""
    cli.main()
