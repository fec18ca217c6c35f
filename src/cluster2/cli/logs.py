"""`logs`: the directory of logs, also while it is written to and rotated."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click

from ..config import lookup
from ..errors import UsageError
from ..kernel import logfiles
from ..kernel.logfiles import Found
from . import shown_until_left

POLL = 0.2
"""Seconds between two looks for more."""
PATIENCE = 5
"""Looks without anything new after which the beginning of a line is shown without its end."""
ABSENT = 50
"""Looks after which a file that isn't found any more counts as gone, though somebody has it under another name."""
COLOURS = ("cyan", "green", "magenta", "yellow", "blue")
MOST_LINE = 1 << 20
"""Bytes after which a line that has no end is shown."""

Show = Callable[[str, bytes], None]
"""Takes the name of a log, and a line without its end."""


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

    NAME is master, access, worker.0, or just the slot's number; also a file that was rotated, such as worker.0.log.1.
    Files are there if the cluster runs in the background (start) or with log_to = files.
    """
    place = str(lookup("logs", directory))
    named = None if name is None else _base(name)
    found = [each for each in logfiles.found(place) if (each.name == named if named else each.age == 0)]
    if not found and not (follow and named is None):
        there = ", ".join(each.name for each in logfiles.found(place))
        says = (
            f"{named} isn't there; there are: {there}"
            if there
            else "there are no log files (log_to = files makes some)"
        )
        raise UsageError(f"logs = {place}: {says}")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever a log says, on whatever terminal
    show = _as_json if as_json else _for_people(len(found) > 1 or (follow and named is None))
    with shown_until_left():
        if follow:
            _follow(place, named, lines, show)
        for each in found:
            _show_end(place, each, lines, show)
    return 0


def _base(name: str) -> str:
    """The file that a name means."""
    if name.isdecimal():
        return logfiles.worker(int(name))
    return name if ".log" in name else f"{name}.log"


def _show_end(place: str, each: Found, lines: int, show: Show) -> None:
    with contextlib.suppress(FileNotFoundError):  # it was rotated away just now
        fd = logfiles.open_to_read(place, each.name)
        with os.fdopen(fd, "rb"):
            start = logfiles.tail(fd, lines)
            size = os.fstat(fd).st_size
            pending = b""
            for block in logfiles.blocks(fd, start, size):
                *whole, pending = (pending + block).split(b"\n")
                for line in whole:
                    show(each.base if each.age == 0 else each.name, line)
            if pending:
                show(each.base, pending)


@dataclass(slots=True)
class Open:
    """A file that is read to its end, whatever it is called by then.

    Attributes:
        at: up to where it was read.
        pending: the line that has begun.
        quiet: looks since it has grown.
        absent: looks since it was found.
    """

    base: str
    fd: int
    at: int
    pending: bytes = b""
    quiet: int = 0
    absent: int = 0

    def more(self) -> Iterator[bytes]:
        """The lines that have come since; one that isn't complete when nothing more comes."""
        size = os.fstat(self.fd).st_size
        self.quiet = 0 if size != self.at else self.quiet + 1
        if size < self.at:  # it was cut
            self.at = 0
            yield from self.rest()
        for block in logfiles.blocks(self.fd, self.at, size):
            self.at += len(block)
            *whole, self.pending = (self.pending + block).split(b"\n")
            yield from whole
            if len(self.pending) > MOST_LINE:
                yield from self.rest()
        if self.quiet >= PATIENCE:
            yield from self.rest()

    def rest(self) -> Iterator[bytes]:
        """The line that has begun, if one has."""
        pending, self.pending = self.pending, b""
        if pending:
            yield pending

    def gone(self) -> bool:
        """Whether nobody will write to it any more, as far as one can know: it has no name, or none that we see."""
        self.absent += 1
        return self.absent >= ABSENT or os.fstat(self.fd).st_nlink == 0


class Following:
    """All files of a directory, or of one log, from now on.

    Files that were rotated are held open as well, until they have gone: a worker may still write to one; and as long as we hold
    it, no other file can have its inode, by which we know it. A name says nothing: between listing and opening it may have
    become another file's. So one that isn't found at a look isn't gone yet.
    """

    def __init__(self, place: str, named: str | None, lines: int) -> None:
        """The first look shows so many lines of each log."""
        self._place, self._named = place, named
        self._open: dict[tuple[int, int], Open] = {}
        self._lines: int | None = lines

    def look(self, show: Show) -> None:
        """Show what has come."""
        here = set()
        files = [each for each in logfiles.found(self._place) if self._named in (None, each.base, each.name)]
        for each in sorted(files, key=lambda each: (each.base, -each.age)):
            try:
                fd = logfiles.open_to_read(self._place, each.name)
            except OSError:
                continue  # rotated away just now: the next look finds it by its new name
            seen = os.fstat(fd)
            key = seen.st_dev, seen.st_ino
            here.add(key)
            if key in self._open:
                os.close(fd)
                self._open[key].absent = 0
            else:
                self._open[key] = Open(each.base, fd, self._start(fd, each))
        self._lines = None
        for key, file in list(self._open.items()):
            for line in file.more():
                show(file.base, line)
            if key not in here and file.gone():
                for line in file.rest():
                    show(file.base, line)
                os.close(file.fd)
                del self._open[key]

    def _start(self, fd: int, each: Found) -> int:
        if self._lines is None:
            return 0
        wanted = self._lines if each.age == 0 or each.name == self._named else 0
        return logfiles.tail(fd, wanted)

    def close(self) -> None:
        """Close all."""
        for file in self._open.values():
            os.close(file.fd)
        self._open.clear()


def _follow(place: str, named: str | None, lines: int, show: Show) -> None:
    following = Following(place, named, lines)
    with contextlib.closing(following):
        while True:
            following.look(show)
            sys.stdout.flush()
            time.sleep(POLL)


def _as_json(log: str, line: bytes) -> None:
    sys.stdout.write(json.dumps({"log": log, "line": line.decode("utf-8", "backslashreplace")}) + "\n")


def _for_people(named: bool) -> Show:
    """Lines with the name of their log, if there are several. A terminal gets colours, and no control characters of others."""
    terminal = sys.stdout.isatty()

    def show(log: str, line: bytes) -> None:
        text = line.decode("utf-8", "backslashreplace")
        head = f"{log.removesuffix('.log'):<10} | " if named else ""
        if terminal:
            text = "".join(each if each.isprintable() or each == "\t" else f"\\x{ord(each):02x}" for each in text)
            if head and not os.environ.get("NO_COLOR"):
                head = click.style(head, fg=COLOURS[sum(log.encode()) % len(COLOURS)])
        sys.stdout.write(f"{head}{text}\n")

    return show
