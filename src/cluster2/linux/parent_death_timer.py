"""End a worker some time after its master, even if its main thread never runs Python again.

A worker learns of its master's end from its channel, or from the parent-death signal, and drains and exits by itself. Both need
Python. A main thread that never returns from C code runs no handler, and if that code holds the GIL no other Python thread runs
either. Such a worker would stay for ever with its listening sockets, and connections would wait in a queue that nothing serves.

Two timers cover this.

*The alarm* needs the kernel and libc only. The master holds the writing end of a pipe. Each worker has the reading end, as an
open file of its own, with O_ASYNC and F_SETSIG. When the master ends, the writing end is closed and the kernel sends that signal.
Its handler is libc's `alarm` itself. alarm(3) is async-signal-safe, and its argument, a number of seconds, is what a handler
gets: the number of the signal. Real-time signals have the numbers 34 to 64, which suits the duration of a drain. SIGALRM without
a handler ends the process.

- All workers read the same pipe. Once it has no writer, the kernel sends the signal again whenever one of its readers is closed.
  So each end of another worker restarts the alarm: of two workers that are stuck, one may take twice as long.
- An app that handles SIGALRM itself does without the alarm. It would not end the process, and it would replace the app's own
  timer, since a process has one ITIMER_REAL. `arm` then does nothing. A handler that the app sets later, around one call, isn't
  known to `arm`: if the master ends during that call, the app's timer is replaced.

*The kill timer* (`kill_after`) is for a worker whose main thread still runs Python. Its handler of the parent-death signal
replaces the alarm by a POSIX timer (timer_create(2)) that sends SIGKILL. That timer is independent of SIGALRM and ITIMER_REAL, so
the app may use both during the drain, and no handler or signal mask holds it up.

Tried and rejected:

- `faulthandler.dump_traceback_later`, which has a thread in C, and a kernel timer that is set in advance. Both would have to be
  renewed all the time while the master lives, and would end workers that were frozen (`docker pause`).
- Another process that ends the workers. It would have to outlive the master, and there is none that each cluster has.
- A parent-death signal with this handler: a stopped process doesn't handle it.
- SIGALRM with setitimer(2) in place of the kill timer: it ended workers in the middle of a request that used SIGALRM itself.
"""

from __future__ import annotations

import fcntl
import math
import os
import signal
import time
from typing import Any

from . import app_forks
from .signals import ignore_here

_F_SETSIG = 10
_MIN_SIGNAL, _MAX_SIGNAL = int(signal.SIGRTMIN), int(signal.SIGRTMAX)
_SIGEV_SIGNAL = 0
_SIGEVENT_BYTES = 64


class Lifeline:
    """The master's end of the pipe: the kernel closes it when the master ends."""

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
        """Close both ends. Workers that are armed get their signal."""
        os.close(self._reader)
        os.close(self._writer)


def arm(descriptor: int, seconds: float) -> int | None:
    """Have SIGALRM end this process so many seconds after the master. Call it in the main thread.

    Args:
        descriptor: a twin of the lifeline; it must stay open.
        seconds: rounded up, and bounded to the numbers of real-time signals, which are 34 to 64.

    Returns:
        The number of the signal, for `disarm`; None: the app handles SIGALRM itself, and nothing was done.
    """
    import ctypes

    # None is a handler that C code has set.
    if signal.getsignal(signal.SIGALRM) != signal.SIG_DFL:
        return None
    number = max(_MIN_SIGNAL, min(_MAX_SIGNAL, math.ceil(seconds)))
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    app_forks.in_child(lambda: signal.signal(number, signal.SIG_DFL))
    # Python doesn't see libc's call: this makes it report, and restore, the default effect.
    signal.signal(number, signal.SIG_DFL)
    libc.signal(number, ctypes.cast(libc.alarm, ctypes.c_void_p))
    # The handler must be in place before O_ASYNC is set: the default effect of a real-time signal ends the process.
    fcntl.fcntl(descriptor, _F_SETSIG, number)
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    return number


def disarm(number: int) -> None:
    """Ignore the signal from now on, and cancel the alarm that it has set. Call it in the main thread."""
    ignore_here(number)
    # With a handler the timer may be the app's own, set after `arm`. Then SIGALRM ends nothing, so it can stay.
    if signal.getsignal(signal.SIGALRM) == signal.SIG_DFL:
        signal.alarm(0)


def kill_after(seconds: float) -> None:
    """Have the kernel send SIGKILL to this process after so many seconds. A fork doesn't inherit the timer.

    Raises:
        OSError: there can be no more timers (RLIMIT_SIGPENDING).
    """
    import ctypes

    class SignalEvent(ctypes.Structure):  # struct sigevent: a pointer, two ints, and a union up to 64 bytes
        _fields_ = (
            ("value", ctypes.c_void_p),
            ("signo", ctypes.c_int),
            ("notify", ctypes.c_int),
            ("rest", ctypes.c_ubyte * (_SIGEVENT_BYTES - ctypes.sizeof(ctypes.c_void_p) - 8)),
        )

    class TimerSpec(ctypes.Structure):  # struct itimerspec: the interval, then the first expiry
        _fields_ = (
            ("interval_s", ctypes.c_long),
            ("interval_ns", ctypes.c_long),
            ("value_s", ctypes.c_long),
            ("value_ns", ctypes.c_long),
        )

    library = _timer_library()
    timer = ctypes.c_void_p()
    event = SignalEvent(signo=signal.SIGKILL, notify=_SIGEV_SIGNAL)
    if library.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
        raise OSError(code := ctypes.get_errno(), f"timer_create: {os.strerror(code)}")
    # A value of 0 would disarm the timer.
    whole, part = divmod(max(1, round(seconds * 1e9)), 1_000_000_000)
    if library.timer_settime(timer, 0, ctypes.byref(TimerSpec(0, 0, whole, part)), None):
        raise OSError(code := ctypes.get_errno(), f"timer_settime: {os.strerror(code)}")


def _timer_library() -> Any:
    """Return the library that has timer_create: libc itself, or librt before glibc 2.34."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    return library if hasattr(library, "timer_create") else ctypes.CDLL("librt.so.1", use_errno=True)
