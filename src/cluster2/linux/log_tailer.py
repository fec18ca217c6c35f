"""Follow log files while they are written, rotated, cut and removed, for `cluster2 logs -f` and the master's forwarder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import log_files
from .log_files import Found

MAX_PARTIAL_LINE_POLLS = 5
"""Polls without anything new after which the beginning of a line is shown without its end."""
MAX_ABSENT_POLLS = 50
"""Polls after which a file that isn't found any more counts as gone, though it may have another name."""
_MAX_LINE_BYTES = 1 << 20
"""Bytes after which a line that has no end is shown."""

Show = Callable[[str, bytes], None]
"""Takes the name of a log, and a line without its newline."""


@dataclass(slots=True)
class OpenLog:
    """A file that is read to its end, over all changes of its name.

    Attributes:
        at: the offset up to which it was read.
        pending: the line that has begun.
        quiet: polls since it has grown.
        absent: polls since it was found.
    """

    base: str
    fd: int
    at: int
    pending: bytes = b""
    quiet: int = 0
    absent: int = 0

    def more(self) -> Iterator[bytes]:
        """Yield the lines that have come since; an incomplete one when nothing more comes."""
        size = os.fstat(self.fd).st_size
        self.quiet = 0 if size != self.at else self.quiet + 1
        if size < self.at:  # it was cut
            self.at = 0
            yield from self.partial_line()
        for block in log_files.blocks(self.fd, self.at, size):
            self.at += len(block)
            *whole, self.pending = (self.pending + block).split(b"\n")
            yield from whole
            if len(self.pending) > _MAX_LINE_BYTES:
                yield from self.partial_line()
        if self.quiet >= MAX_PARTIAL_LINE_POLLS:
            yield from self.partial_line()

    def skip(self, most: int) -> int:
        """Skip what has come, except for the last `most` bytes. Returns how many were skipped."""
        skipped = os.fstat(self.fd).st_size - self.at - most
        if skipped <= 0:
            return 0
        self.at += skipped
        self.pending = b""
        return skipped

    def partial_line(self) -> Iterator[bytes]:
        """Yield the line that has begun, if there is one."""
        pending, self.pending = self.pending, b""
        if pending:
            yield pending

    def is_abandoned(self) -> bool:
        """Return whether the file probably has no writer any more: it has no name, or none that was seen."""
        self.absent += 1
        return self.absent >= MAX_ABSENT_POLLS or os.fstat(self.fd).st_nlink == 0


class LogTailer:
    """The files of a directory, or of one log, from now on.

    Rotated files are held open as well, until they are gone: a worker may still write to one. As long as the tailer holds one, no
    other file can have its inode, which identifies it. A name doesn't: between listing and opening it may have become another
    file's. So a file that isn't found by one poll isn't gone yet.
    """

    def __init__(
        self, place: str, named: str | None, lines: int, *, without: str = "", most: int | None = None
    ) -> None:
        """Open nothing yet.

        Args:
            place: the directory.
            named: the log, or the one file, that is followed; None: all.
            lines: how many of each log's last lines the first poll shows.
            without: a log that isn't followed.
            most: bytes of a file that a poll shows; of more it shows the end, and says so.
        """
        self._place, self._named, self._without, self._most = place, named, without, most
        self._open: dict[tuple[int, int], OpenLog] = {}
        self._lines: int | None = lines

    def poll(self, show: Show) -> None:
        """Show the lines that have come."""
        here = set()
        for each in sorted(
            filter(self._wanted, log_files.log_files(self._place)), key=lambda each: (each.base, -each.age)
        ):
            try:
                fd = log_files.open_to_read(self._place, each.name)
            except OSError:
                continue  # rotated just now: the next poll finds it by its new name
            seen = os.fstat(fd)
            key = seen.st_dev, seen.st_ino
            here.add(key)
            if key in self._open:
                os.close(fd)
                self._open[key].absent = 0
            else:
                self._open[key] = OpenLog(each.base, fd, self._start(fd, each))
        self._lines = None
        for key, file in list(self._open.items()):
            if self._most is not None and (skipped := file.skip(self._most)):
                show(file.base, f"... {skipped} bytes, see {file.base}".encode())
            for line in file.more():
                show(file.base, line)
            if key not in here and file.is_abandoned():
                for line in file.partial_line():
                    show(file.base, line)
                os.close(file.fd)
                del self._open[key]

    @property
    def pending(self) -> bool:
        """True if a line has begun that isn't shown yet: another poll is due."""
        return any(file.pending for file in self._open.values())

    def _wanted(self, each: Found) -> bool:
        return each.base != self._without and self._named in (None, each.base, each.name)

    def _start(self, fd: int, each: Found) -> int:
        if self._lines is None:
            return 0
        wanted = self._lines if each.age == 0 or each.name == self._named else 0
        return log_files.tail(fd, wanted)

    def close(self) -> None:
        """Close all files."""
        for file in self._open.values():
            os.close(file.fd)
        self._open.clear()
