"""Remove secrets from the environment of this process, and from what the kernel shows of it.

The environment that a process was given stays on its stack until its end, and `/proc/PID/environ` shows it to the process itself
and to all processes of the same user. An app that can be made to show a file (`../../proc/self/environ`) shows that, too.
`os.environ` is Python's copy of it, and unsetenv(3) only removes libc's pointer: neither changes what the kernel shows. So the
value itself is overwritten. A program that is executed with libc's environment finds an empty value then.

A variable that was set later (`os.environ[name] = …`) is elsewhere in memory, which the kernel doesn't show.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable


def conceal(names: Iterable[str]) -> None:
    """Overwrite the values of these variables, except for Python's copy, which stays in `os.environ`."""
    wanted = [os.fsencode(name) + b"=" for name in names if name in os.environ]
    if not wanted:
        return
    entries = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
    at = 0
    while (address := entries[at]) is not None:
        # `environ` is libc's array of pointers into the stack; these bytes are what /proc shows.
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
