"""The commands `run` and `start`: serve in the foreground, or in the background."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import click

from ..config.settings import Settings
from ..errors import ConfigError
from ..runtime.control_client import ControlClient
from . import complain, dev_commands
from .dev_commands import with_reload_flags
from .flags import OptionCommand, gather, require_target, with_options

_READY_FD_VARIABLE = "_CLUSTER2_READY_FD"
"""The environment variable by which `start` gives `run` the descriptor of a pipe. `run` writes to it when the workers are ready."""

_WARNING = re.compile(r"\S+ \S+ \[\d+\] warning (.*)")


@click.command(cls=OptionCommand)
@click.option("--reload", is_flag=True, help="development mode, as `cluster2 dev`: load the app again after each edit")
@with_reload_flags
@with_options
def run(**flags: Any) -> int:
    """Serve TARGET in the foreground.

    TARGET names an ASGI, WSGI or RSGI app, or a TCP handler: module:attr, or path/file.py:attr. With --factory it names a
    callable that returns one; 'module:create_app("prod")' calls it with arguments. Without :attr, application or app is
    looked for (with --factory: create_app or make_app).
    """
    if flags["reload"]:
        return dev_commands.serve(flags, click.get_current_context().meta["cluster2.arguments"])
    dev_commands.refuse_reload_flags(flags)
    # First of all: nothing that this process starts may inherit the descriptor or its name.
    on_ready = _announcer(os.environ.pop(_READY_FD_VARIABLE, None))
    config = require_target(gather(flags, warn=False))

    from .. import cluster

    code: int = cluster.run(config, on_ready=on_ready)
    return code


@click.command(cls=OptionCommand)
@with_options
def start(**flags: Any) -> int:
    """Serve TARGET in the background.

    Returns when the workers are ready, or with the exit code of what went wrong. TARGET and options are those of `run`;
    what the processes write goes to files in the directory of logs, unless log_to says otherwise. On a terminal it says
    where that is. Warnings of the start are shown.
    """
    config = require_target(gather(flags, warn=False))
    path = Path(config.settings.logs) / "master.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("ab")
    except OSError as error:
        raise ConfigError(f"can't write the log {path} (logs, {config.sources['logs']}): {error.strerror}") from None
    with log:
        before = log.tell()
        arguments = click.get_current_context().meta["cluster2.arguments"]
        if not config.explicit("log_to"):
            arguments = ("--log-to", "files", *arguments)
        elif config.settings.log_to != "files":
            source = config.sources["log_to"]
            complain(
                "note", f"log_to = {config.settings.log_to} ({source}): in the background standard error is {path}"
            )
        code = _launch(arguments, log)
    with path.open("rb") as said:
        said.seek(before if path.stat().st_size >= before else 0)  # it was rotated
        text = said.read().decode(errors="replace")
    if code:
        sys.stderr.write(text)
        return code
    for warning in _warnings(text):
        complain("warning", warning)
    if sys.stderr.isatty():
        _tell(config.settings)
    return code


def _warnings(log: str) -> list[str]:
    """Return the warnings in a part of master.log, of either format."""
    found = []
    for line in log.splitlines():
        if (text := _WARNING.fullmatch(line)) is not None:
            found.append(text[1])
        elif line.startswith("{"):
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("level") == "warning":
                    found.append(str(entry["message"]))
    return found


def _tell(settings: Settings) -> None:
    """Print on the terminal the addresses and directories of the cluster that has just become ready."""
    places = [f"logs in {settings.logs}"]
    if settings.cluster:
        found = ControlClient(Path(settings.pids)).call("status", timeout=10)
        click.echo(f"serving on {', '.join(found['addresses'])}", err=True)
        if found["monitor"] is not None:
            click.echo(f"the monitor's page is http://{found['monitor']['address']}{settings.monitor_path}", err=True)
        places.append(f"pids in {settings.pids}")
    click.echo(", ".join(places), err=True)


def _launch(arguments: tuple[str, ...], log: BinaryIO) -> int:
    """Start `cluster2 run` in a session of its own. Returns 0 when it is ready, or its exit code when it has ended."""
    # -P: the working directory doesn't come first on the import path, where it could hide cluster2. `chdir` adds it later.
    command = [sys.executable, "-P", "-m", "cluster2", "run", *arguments]
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as ready:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # without a terminal: a closed window sends it no HUP
                pass_fds=[writer],
                env=os.environ | {_READY_FD_VARIABLE: str(writer)},
            )
        finally:
            os.close(writer)  # so that the read ends if the child exits without a word
        try:
            if ready.readline() == b"ready\n":
                child.returncode = 0  # it runs on, as intended: otherwise subprocess warns of a running child
                return 0
            code = child.wait()
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise
    return code if code >= 0 else 128 - code


def _announcer(number: str | None) -> Callable[[], None] | None:
    """Return a function that writes to the pipe of that number that the cluster is ready; None: no process waits for that."""
    if number is None:
        return None
    try:
        descriptor = int(number)
        os.set_inheritable(descriptor, False)
    except (ValueError, OSError):
        return None

    def announce() -> None:
        try:
            os.write(descriptor, b"ready\n")
        except BrokenPipeError:
            pass  # the `start` command has ended; the cluster serves on
        os.close(descriptor)

    return announce
