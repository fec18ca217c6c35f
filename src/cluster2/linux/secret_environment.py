"""Secrets in the environment: taken out of it, and out of sight.

What a process was given as environment stands on its stack for as long as it lives, and `/proc/PID/environ` shows it to the
process itself and to all of the same user. An app that can be made to show a file (`../../proc/self/environ`) shows that, too.
`os.environ` is Python's copy of it, and unsetenv(3) only has libc forget where it stands: neither changes what the kernel shows.
So the value itself is overwritten. A program that is executed with libc's environment finds an empty value then.

What was put into the environment later (`os.environ[name] = …`) stands elsewhere in memory, where the kernel doesn't look.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable


def conceal(names: Iterable[str]) -> None:
    """Overwrite the values of these variables, but for Python's copy: `os.environ` has them still."""
    wanted = [os.fsencode(name) + b"=" for name in names if name in os.environ]
    if not wanted:
        return
    entries = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
    at = 0
    while (address := entries[at]) is not None:
        entry = ctypes.string_at(address)
        for beginning in wanted:
            if entry.startswith(beginning):
                ctypes.memset(address + len(beginning), 0, len(entry) - len(beginning))
        at += 1


def remove_and_overwrite(names: Iterable[str]) -> None:
    """Remove these variables, and overwrite their values."""
    names = list(names)
    conceal(names)
    for name in names:
        os.environ.pop(name, None)
