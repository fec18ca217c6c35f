"""Find out which other processes use a directory: each holds a shared lock on it (`DirectoryClaim`).

The lock is flock(2) on the directory itself, so it leaves no file behind, and the kernel gives it up when the process ends. A
process that finds the lock taken isn't kept out; it learns the pids of the others from /proc/locks, the only place where
the kernel names the holders of a lock.

flock(2) works on any descriptor, also of a directory that the process can't write. File systems without it (some of the network)
refuse: then nothing is known of others.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re

from . import app_forks

_LOCK = re.compile(r"\d+: FLOCK\s+ADVISORY\s+(?:READ|WRITE)\s+(\d+)\s+[0-9a-f]+:[0-9a-f]+:(\d+)\s")


class DirectoryClaim:
    """This process's use of a directory, for as long as the object isn't released.

    Attributes:
        shared: another process used the directory when this claim was made.
        others: pids of those processes, as far as they are known: a process of another pid namespace has none here.
    """

    def __init__(self, path: str) -> None:
        """Claim an existing directory. Raises OSError: it can't be opened."""
        self.shared = False
        self.others: list[int] = []
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                # Exclusive first: that fails if another process holds the lock, whatever its kind.
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.shared = True
                self.others = _holders(os.fstat(self._fd).st_ino)
            # Fails only while another process is between the two calls here; that process finds nothing wrong then.
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        app_forks.withhold(self)

    def fileno(self) -> int:
        """Return the descriptor that has the lock; -1 after `release`."""
        return self._fd

    def release(self) -> None:
        """Give the claim up. A second call does nothing."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                # Not left to close(2): a child that was forked in C, past `app_forks`, shares the lock.
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = -1


def _holders(inode: int) -> list[int]:
    """Return the pids of the processes that hold a lock on a file. /proc/locks has pid 0 for one that isn't visible from here."""
    try:
        with open("/proc/locks") as file:
            found = [(int(pid), int(number)) for pid, number in _LOCK.findall(file.read())]
    except OSError:  # not every sandbox has this file
        return []
    # The device isn't compared: on overlay and btrfs, stat(2) has another one than the kernel's own tables.
    return sorted({pid for pid, number in found if number == inode and pid not in (0, os.getpid())})
