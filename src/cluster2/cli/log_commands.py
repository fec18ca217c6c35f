"""The command `logs`: show the log files, also while they are written and rotated."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time

import click

from ..errors import UsageError
from ..linux import log_files
from ..linux.log_files import Found
from ..linux.log_tailer import LogTailer, Show
from ..runtime.option_sources import lookup
from . import complain, shown, shown_until_left

_POLL_INTERVAL_S = 0.2
"""Seconds between two checks for new lines."""
_WORKER_COLOURS = ("cyan", "green", "magenta", "yellow", "blue")


@click.command()
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--logs", "directory", metavar="PATH", help="The directory of log files.  [./logs]")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, over rotations, until Ctrl-C.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=10, metavar="N", help="How many lines of each.  [10]"
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, one line an object: log, line.")
def logs(name: str | None, directory: str | None, follow: bool, lines: int, as_json: bool) -> int:
    """Show the end of the logs, or of one.

    NAME is master, access, worker.0, or the number of a slot; also a rotated file, such as worker.0.log.1.
    There are no log files with log_to = stderr.
    """
    place = str(lookup("logs", directory))
    named = None if name is None else _base(name)
    there = _found(place)
    found = [each for each in there if (each.name == named if named else each.age == 0)]
    if not found and not (follow and named is None):
        says = (
            f"{named} isn't there; there are: {', '.join(each.name for each in there)}"
            if there
            else "there are no log files; with log_to = both or files a cluster makes some"
        )
        raise UsageError(f"logs = {place}: {says}")
    found = _legible(place, found)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal's encoding may lack a character of the log
    show = _as_json if as_json else _for_people(len(found) > 1 or (follow and named is None))
    with shown_until_left():
        if follow:
            _follow(place, named, lines, show)
        for each in found:
            _show_end(place, each, lines, show)
    return 0


def _found(place: str) -> list[Found]:
    try:
        return log_files.log_files(place)
    except OSError as error:
        raise UsageError(f"logs = {place}: {error.strerror}; --logs names another directory") from None


def _legible(place: str, found: list[Found]) -> list[Found]:
    """Return the files that this user may read, with a warning for each other one. Raises UsageError: none can be read."""
    legible, refused = [], ""
    for each in found:
        try:
            os.close(log_files.open_to_read(place, each.name))
        except FileNotFoundError:  # rotated away just now
            pass
        except OSError as error:
            refused = f"{os.path.join(place, each.name)} can't be read: {error.strerror}"
            complain("warning", refused)
            continue
        legible.append(each)
    if found and not legible:
        raise UsageError(f"logs = {place}: {refused}; run this command as root, or as the user of the workers")
    return legible


def _base(name: str) -> str:
    """Return the file name that the argument NAME stands for."""
    if name.isdecimal():
        return log_files.worker(int(name))
    return name if ".log" in name else f"{name}.log"


def _show_end(place: str, each: Found, lines: int, show: Show) -> None:
    with contextlib.suppress(FileNotFoundError):  # it was rotated away just now
        fd = log_files.open_to_read(place, each.name)
        with os.fdopen(fd, "rb"):
            start = log_files.tail(fd, lines)
            size = os.fstat(fd).st_size
            pending = b""
            for block in log_files.blocks(fd, start, size):
                *whole, pending = (pending + block).split(b"\n")
                for line in whole:
                    show(each.base if each.age == 0 else each.name, line)
            if pending:
                show(each.base, pending)


def _follow(place: str, named: str | None, lines: int, show: Show) -> None:
    following = LogTailer(place, named, lines)
    with contextlib.closing(following):
        while True:
            following.poll(show)
            sys.stdout.flush()
            time.sleep(_POLL_INTERVAL_S)


def _as_json(log: str, line: bytes) -> None:
    sys.stdout.write(json.dumps({"log": log, "line": line.decode("utf-8", "backslashreplace")}) + "\n")


def _for_people(named: bool) -> Show:
    """Return a function that prints lines for people. On a terminal it uses colours, and escapes control characters.

    Args:
        named: there are several logs, so each line has the name of its log.
    """
    terminal = sys.stdout.isatty()

    def show(log: str, line: bytes) -> None:
        text = line.decode("utf-8", "backslashreplace")
        head = f"{log.removesuffix('.log'):<10} | " if named else ""
        if terminal:
            text = shown(text)
            if head and not os.environ.get("NO_COLOR"):
                head = click.style(head, fg=_WORKER_COLOURS[sum(log.encode()) % len(_WORKER_COLOURS)])
        sys.stdout.write(f"{head}{text}\n")

    return show
