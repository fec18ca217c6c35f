"""inotify(7): the kernel says when something in a directory is written to or renamed.

Looking ten times a second at files in which nothing happens costs little, but never nothing, and shows a line a tenth of a second
late. With inotify nobody looks while nothing happens. What the events say isn't read: a look tells more, and one look does for
all events that came before it. So events that were dropped, since the queue holds 16,384, are no loss either.

Python's library has no binding. The three calls are those of libc; their arguments are int and char*, whatever the machine.
"""

from __future__ import annotations

import ctypes
import os

MODIFY, MOVED_TO, CREATE = 0x2, 0x80, 0x100
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # IN_NONBLOCK and IN_CLOEXEC are the same numbers
_BLOCK = 1 << 16


class Inotify:
    """Readable when something was written in a directory."""

    def __init__(self, directory: str) -> None:
        """Watch it.

        Raises:
            OSError: it isn't there, or `fs.inotify.max_user_instances` are in use.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = _checked(libc.inotify_init1(_FLAGS), "inotify_init1")
        try:
            path = os.fsencode(directory)
            _checked(libc.inotify_add_watch(self._fd, path, MODIFY | MOVED_TO | CREATE), directory)
        except OSError:
            os.close(self._fd)
            raise

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._fd

    def clear(self) -> None:
        """Forget what has happened until now."""
        try:
            while os.read(self._fd, _BLOCK):
                pass
        except BlockingIOError:
            pass  # that was all

    def close(self) -> None:
        """Watch no more."""
        os.close(self._fd)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result
