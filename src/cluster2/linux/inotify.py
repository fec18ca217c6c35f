"""Watch a directory by inotify(7): the kernel reports when something in it is written to or renamed.

Polling idle files ten times a second costs little, but never nothing, and shows a line a tenth of a second late. With inotify no
process polls while nothing happens. The events themselves aren't read: a poll of the files finds more, and one poll covers all
events that came before it. So events that were dropped, since the queue holds 16,384, are no loss either.

Python's library has no binding. The three calls are those of libc; their arguments are int and char*, whatever the machine.
"""

from __future__ import annotations

import ctypes
import os

_IN_MODIFY, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE, _IN_DELETE_SELF, _IN_MOVE_SELF = (
    0x2,
    0x40,
    0x80,
    0x100,
    0x200,
    0x400,
    0x800,
)
_WRITE_EVENTS = _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE
"""There is something new to read."""
DIRECTORY_EVENTS = _WRITE_EVENTS | _IN_MOVED_FROM | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF
"""The directory isn't as it was."""
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # IN_NONBLOCK and IN_CLOEXEC are the same numbers
_BLOCK = 1 << 16


class Inotify:
    """A descriptor that is readable when something has happened in a directory."""

    def __init__(self, directory: str, events: int = _WRITE_EVENTS) -> None:
        """Watch the directory.

        Args:
            events: `_WRITE_EVENTS` or `DIRECTORY_EVENTS`.

        Raises:
            OSError: it isn't there, or `fs.inotify.max_user_instances` are in use.
        """
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._directory, self._events = directory, events
        self._fd = _checked(self._libc.inotify_init1(_FLAGS), "inotify_init1")
        try:
            self.renew()
        except OSError:
            os.close(self._fd)
            raise

    def renew(self) -> None:
        """Watch the directory that has this name now. Raises OSError: it isn't there."""
        path = os.fsencode(self._directory)
        _checked(self._libc.inotify_add_watch(self._fd, path, self._events), self._directory)

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._fd

    def clear(self) -> bool:
        """Discard the events until now. Returns whether there were any."""
        happened = False
        try:
            while os.read(self._fd, _BLOCK):
                happened = True
        except BlockingIOError:
            pass  # that was all
        return happened

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result
