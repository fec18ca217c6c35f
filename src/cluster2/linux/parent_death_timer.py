"""End a worker some time after its master, whatever its threads do.

A worker hears of its master's end by its channel, or by the parent-death signal, and sees to its own end. Both take Python. A
main thread that never comes back from C code runs no handler, and if that code holds the GIL no other thread of Python's runs
either: such a worker would stay for ever, with its listening sockets, and connections would wait in a queue that nothing serves.

So the kernel and libc do it alone. The master holds the writing end of a pipe. Each worker has the reading end, as an open file
of its own, with O_ASYNC and F_SETSIG: when the writing end is closed, which is the master's end, the kernel sends that signal.
Its handler is libc's `alarm` itself. alarm(3) is async-signal-safe, and its argument, the number of seconds, is what a handler
gets: the number of the signal. Real-time signals have the numbers 34 to 64, which suits the time of a drain. SIGALRM without a
handler ends the process.

All workers read the same pipe, and once it has no writer the kernel sends the signal again whenever one of its readers is
closed. So each end of another worker sets the time anew: of two that are stuck, one may take twice as long.

An app that handles SIGALRM itself does without this.

Tried: `faulthandler.dump_traceback_later`, which has a thread in C, and timers of the kernel's, would have to be set anew all
the time while the master lives, and would end workers that were frozen (`docker pause`). Another process as undertaker would have
to outlive the master itself, and there is none that each cluster has. A parent-death signal of this kind isn't handled by a
stopped process.
"""

from __future__ import annotations

import fcntl
import math
import os
import signal

from . import app_forks
from .signals import ignore_here

_F_SETSIG = 10
_FIRST, _LAST = int(signal.SIGRTMIN), int(signal.SIGRTMAX)


class Lifeline:
    """The master's end: it ends when the master does."""

    def __init__(self) -> None:
        """Make the pipe."""
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)

    def twin(self) -> int:
        """Return a descriptor for one worker: an open file of its own, since owner and signal belong to the open file."""
        return os.open(f"/proc/self/fd/{self._reader}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def descriptors(self) -> list[int]:
        """Return both ends: no child may hold the writing end."""
        return [self._reader, self._writer]

    def close(self) -> None:
        """Let go."""
        os.close(self._reader)
        os.close(self._writer)


def arm(descriptor: int, seconds: float) -> int:
    """Have this process end so many seconds after the master. Call it in the main thread.

    Args:
        descriptor: a twin of the lifeline; it must stay open.
        seconds: rounded to what there are signals for, which is 34 to 64.

    Returns:
        The number of the signal, for `disarm`.
    """
    import ctypes

    number = max(_FIRST, min(_LAST, math.ceil(seconds)))
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    app_forks.in_child(lambda: signal.signal(number, signal.SIG_DFL))
    signal.signal(number, signal.SIG_DFL)  # so that Python, which doesn't see the next line, takes it for that
    libc.signal(number, ctypes.cast(libc.alarm, ctypes.c_void_p))
    fcntl.fcntl(descriptor, _F_SETSIG, number)
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    return number


def disarm(number: int) -> None:
    """Ignore the signal: this process sees to its end by itself."""
    ignore_here(number)
