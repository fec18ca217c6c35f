"""Log files that several processes write, one process rotates, and others read.

**Writing.** A worker's descriptors 1 and 2 *are* its file. So its final output is there however it ends: a traceback, or the
lines that faulthandler or glibc write in the middle of a crash. A pipe would need a reader: a full pipe blocks the process that
writes, and the reader copies every byte. A file takes all that comes, from descendants as well. All descriptors have `O_APPEND`:
the kernel puts each write(2) behind the last one in one step. So several processes can share a file, and a file that was
truncated is simply written from its beginning.

**Rotating.** `NAME.log` becomes `NAME.log.1` by rename(2), and 1 becomes 2. A writer has the file, not its name, and goes on in
what is now `.1`: nothing is lost, nothing is copied, and no message is sent. A process checks now and then (a worker ten times a
second, once when idle) if the name still leads to the file that it has open, by one stat(2), and if not opens the name again
(`ReopeningFile`). That works for any rotation: by the master, by logrotate or by hand.

**Writers that don't check** (a worker that prints in an endless loop, a program that an app has started) go on in a file that has
been rotated. That file is bounded by truncation (`master.logs.directory`), for which `O_APPEND` is needed as well. It must not be
removed: it would grow unseen. The kernel reports whether some process still has it open to write, without a search through /proc:
a read lease, fcntl(2), is refused then (`is_open_to_write`).

**Reading.** A reader opens only regular files with one of the known names, in the directory itself: no link, no fifo, no path
that leads out. A reader keeps its descriptor over a rotation, too: it reads the old file to its end before it opens the new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import resource
import signal
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

MASTER_LOG, ACCESS_LOG = "master.log", "access.log"
_LOG_NAME_PATTERN = re.compile(r"(?P<base>(?:master|access|worker\.\d{1,5})\.log)(?:\.(?P<age>[1-9]\d{0,5}))?")
"""The names of log files; `age` counts rotations."""
_LOG_FILE_MODE = 0o640
_MAX_LEASE_TRIES = 100
"""Attempts to open a file that another process has leased, a millisecond each."""
READ_BLOCK_BYTES = 1 << 16
"""Bytes of one read."""
_MAX_TAIL_BYTES = 1 << 20
"""Bytes at the end of a file in which its last lines are searched."""


class Found(NamedTuple):
    """A file of a directory of logs.

    Attributes:
        base: the name that it is written under.
        age: how many rotations ago it was written; 0: it is the one that is written now.
        changed: when, in seconds since the epoch.
        inode: the file's identity, which a rotation doesn't change.
    """

    name: str
    base: str
    age: int
    size: int
    changed: float
    inode: int


def worker(slot: int) -> str:
    """Return the name of a slot's file."""
    return f"worker.{slot}.log"


def open_to_write(path: str, *, readable: bool = False) -> int:
    """Return a descriptor that appends to a file, which is made if needed. Raises OSError, also if it is a link."""
    flags = (
        (os.O_RDWR if readable else os.O_WRONLY)
        | os.O_APPEND
        | os.O_CREAT
        | os.O_CLOEXEC
        | os.O_NOFOLLOW
        | os.O_NONBLOCK
        | os.O_NOCTTY
    )
    fd = _open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it isn't a regular file")
        # O_NONBLOCK was for the open alone: an open of a fifo without a reader would wait.
        os.set_blocking(fd, True)
    except OSError:
        os.close(fd)
        raise
    return fd


def _open(path: str, flags: int) -> int:
    """Open a file; wait for a lease (below) up to 0.1 s. O_NONBLOCK makes the open fail with EAGAIN while one is broken."""
    for _ in range(_MAX_LEASE_TRIES):
        with contextlib.suppress(BlockingIOError):
            return os.open(path, flags, _LOG_FILE_MODE)
        time.sleep(0.001)
    return os.open(path, flags, _LOG_FILE_MODE)


def is_open_to_write(path: str) -> bool | None:
    """Return whether some process has a descriptor that can write to the file; None: the kernel doesn't report it.

    That is so if the file is another user's and this process has no CAP_LEASE, or on some file systems. The lease is given back
    at once. If another process opens the file to write just then, the kernel would send SIGIO, which ends a process that doesn't
    expect it. So F_SETSIG selects a signal that does nothing.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        # SIGURG is ignored by default, SIGIO ends the process.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    else:
        return False
    finally:
        os.close(fd)


def empty(path: str) -> None:
    """Truncate a file. Raises OSError, also if it is a link: its target isn't a log file."""
    fd = open_to_write(path)
    try:
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


class ReopeningFile:
    """Descriptors of this process that follow a name over rotations."""

    def __init__(self, path: str, *numbers: int) -> None:
        """Open nothing yet; `reopen_if_moved` does it.

        Args:
            path: absolute.
            numbers: descriptors that are replaced by the file (1 and 2); none: `fd` alone is kept.
        """
        self.path = path
        self.fd = numbers[-1] if numbers else -1
        self._numbers = numbers
        self._opened: tuple[int, int] | None = None

    def reopen_if_moved(self) -> bool:
        """Open the file again if its name leads elsewhere. Returns whether it did.

        Raises:
            OSError: it can't be opened; the file that was open stays in use.
        """
        try:
            there = os.stat(self.path, follow_symlinks=False)
            if (there.st_dev, there.st_ino) == self._opened:
                return False
        except FileNotFoundError:
            pass  # the file is made again below
        fd = open_to_write(self.path)
        opened = os.fstat(fd)
        for number in self._numbers:
            # dup2 replaces the file in one step: a line written by another thread goes to the old file or to the new one.
            os.dup2(fd, number, inheritable=True)
        if self._numbers:
            os.close(fd)
        else:
            if self.fd >= 0:
                os.close(self.fd)
            self.fd = fd
        self._opened = opened.st_dev, opened.st_ino
        return True

    def close(self) -> None:
        """Close the descriptor, unless it is a standard one."""
        if not self._numbers and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def write_all(fd: int, data: bytes) -> None:
    """Write all the data, in as many calls as needed. Raises OSError: the disk is full, the reader of a pipe has gone."""
    while data:
        data = data[os.write(fd, data) :]


def file_size_limit() -> int | None:
    """Return how many bytes a file may have that this process writes (RLIMIT_FSIZE, the soft limit); None: any number.

    Python ignores SIGXFSZ, so a write beyond it fails with EFBIG. Processes inherit the limit.
    """
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def ends_a_line(fd: int) -> bool:
    """Return whether a file that can be read is empty, or ends with a newline."""
    size = os.fstat(fd).st_size
    return not size or os.pread(fd, 1, size - 1) in (b"\n", b"")


def log_files(directory: str) -> list[Found]:
    """Return the log files of a directory, by name and age; none if the directory doesn't exist. Other files are ignored."""
    files = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                match = _LOG_NAME_PATTERN.fullmatch(entry.name)
                try:
                    seen = entry.stat(follow_symlinks=False) if match else None
                except FileNotFoundError:
                    continue  # renamed just now
                if match and seen and stat.S_ISREG(seen.st_mode):
                    age = int(match["age"] or 0)
                    files.append(Found(entry.name, match["base"], age, seen.st_size, seen.st_mtime, seen.st_ino))
    except FileNotFoundError:
        return []
    return sorted(files, key=lambda each: (each.base, each.age))


def open_to_read(directory: str, name: str) -> int:
    """Return a descriptor of a file of the directory.

    Raises:
        OSError: there is none, or the name isn't one of a log file, or it is no regular file.
    """
    if not _LOG_NAME_PATTERN.fullmatch(name):
        raise FileNotFoundError(errno.ENOENT, "no such log", name)
    fd = os.open(
        os.path.join(directory, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    )
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "no such log", name)
    return fd


def tail(fd: int, lines: int, most: int = _MAX_TAIL_BYTES) -> int:
    """Return the offset where the last `lines` lines of a file begin, searched from its end, in its last `most` bytes only."""
    end = at = os.fstat(fd).st_size
    if lines <= 0:
        return end
    floor = max(0, end - most)
    wanted = lines
    while at > floor:
        start = max(floor, at - READ_BLOCK_BYTES)
        block = os.pread(fd, at - start, start)
        if at == end and block.endswith(b"\n"):
            wanted += 1  # the newline at the end of the file begins no line
        where = len(block)
        while (where := block.rfind(b"\n", 0, where)) >= 0:
            wanted -= 1
            if wanted == 0:
                return start + where + 1
        at = start
    return floor


def blocks(fd: int, start: int, end: int) -> Iterator[bytes]:
    """Yield the content of a file between two offsets, block by block; less if it was truncated meanwhile."""
    while start < end and (block := os.pread(fd, min(READ_BLOCK_BYTES, end - start), start)):
        start += len(block)
        yield block
