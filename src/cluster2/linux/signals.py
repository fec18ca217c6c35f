"""Set a process's signal dispositions as `cluster2.core.signal_table` declares them for its kind.

Handlers are installed where they are needed. This module sets the rest. A process that the master executes begins with default
dispositions and an empty mask (`linux.processes: execute`). The master itself inherits both from its parent: a mask that blocks
TERM would make it ignore a shutdown, and with an ignored CHLD the kernel would reap its workers before it could ask how they
ended.

A signal that is ignored stays ignored in programs that the app executes, at import or in a handler of a request: `kill` wouldn't
end them. So a signal that a cluster process ignores has a handler that does nothing, which an exec replaces by the default
effect. Only PIPE and XFSZ, which Python itself ignores (and `subprocess` restores), are left to Python.

That handler is a libc function that takes an int and does nothing: `abs`. One in Python would wake the event loop for nothing,
and crash: Python's handlers run on the alternate stack, if there is one, and the kernel puts a frame there for each signal that
is pending. The stack that `faulthandler` makes was full, and the process ended by SIGSEGV, when it got 20 at once.

A handler without SA_ONSTACK runs on the stack that is in use, which is the alternate one while a Python handler is about to run.
So all signals are blocked while `abs` runs, and pending ones are delivered one after the other, not one on top of the other.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..core.signal_table import SIGNAL_EFFECTS, Disposition, Role

_MASK_BYTES = 128
"""The size of sigset_t."""
_SA_RESTART = 0x10000000
"""Interrupted system calls go on."""


def numbers(name: str) -> list[int]:
    """Return the numbers of the signals that a row of the table is about."""
    if name == "RTMIN to RTMAX":
        return list(range(signal.SIGRTMIN, signal.SIGRTMAX + 1))
    return [int(signal.Signals[f"SIG{name}"])]


def settle(role: Role) -> None:
    """Ignore what a process of this kind ignores. Call it in the main thread."""
    for name, effects in SIGNAL_EFFECTS.items():
        match effects[role].disposition:
            case Disposition.IGNORED:
                for number in numbers(name):
                    signal.signal(number, signal.SIG_IGN)
            case Disposition.DROPPED:
                for number in numbers(name):
                    ignore_here(number)


def ignore_here(number: int) -> None:
    """Ignore a signal in this process, but not in programs that it executes. Call it in the main thread."""
    import ctypes

    class SignalAction(ctypes.Structure):  # struct sigaction of glibc and musl, on Linux's 64-bit architectures
        _fields_ = (
            ("handler", ctypes.c_void_p),
            ("mask", ctypes.c_ubyte * _MASK_BYTES),
            ("flags", ctypes.c_int),
            ("restorer", ctypes.c_void_p),
        )

    libc = ctypes.CDLL(None, use_errno=True)
    action = SignalAction(
        ctypes.cast(libc.abs, ctypes.c_void_p), (ctypes.c_ubyte * _MASK_BYTES)(*b"\xff" * _MASK_BYTES), _SA_RESTART
    )
    signal.signal(number, _dropped)  # for what Python says, and puts back if an app takes the signal for a while
    if libc.sigaction(number, ctypes.byref(action), None):
        raise OSError(ctypes.get_errno(), f"sigaction({number})")


def _dropped(number: int, frame: FrameType | None) -> None:
    """Do nothing."""


def ignore_from_now(loop: asyncio.AbstractEventLoop, handled: Iterable[int]) -> None:
    """Ignore signals that the loop has handled until now: the exit code is decided.

    A loop that is closed restores the default effect of the signals that it handled, and so does the interpreter when it ends: a
    TERM that came then would end the process with -15 in place of its exit code. An ignored signal stays ignored. Between the two
    steps the signals have their default effect, so they are blocked meanwhile.
    """
    numbers = list(handled)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def given_back(handled: Iterable[int]) -> Iterator[None]:
    """Restore the effects of these signals when the block ends; not if it raises, since the process ends then."""
    before = {number: signal.getsignal(number) for number in handled}
    yield
    for number, effect in before.items():
        if effect is not None:
            signal.signal(number, effect)


def settle_master() -> None:
    """Set the dispositions of a master, and undo what it has inherited."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    settle("master")
    ignore_until_handled()


def ignore_until_handled() -> None:
    """Ignore the signals that a service manager or logrotate may send as soon as there is a pid, until the loop handles them."""
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU):
        ignore_here(number)
