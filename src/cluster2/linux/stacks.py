"""The Python stacks of another process, even if it is stuck in C or in a loop that never releases the GIL.

A signal handler in Python runs only between two bytecodes of the main thread, so it can't show a thread that is in C. The
standard library's `faulthandler` has a handler in C that reads the frames of all threads without the GIL and writes them with
write(2). It is registered for SIGUSR1 with a memfd that master and worker share. The master empties the memfd, sends the signal
and reads what appears. A process that is stopped writes nothing. The master then reports its state in /proc.

A Python handler adds what only Python knows, such as where tasks wait (`add`). It has a signal of its own, SIGURG, which does
nothing to a process that has no handler for it. Tried: `faulthandler` can call it (`chain`). But its own handler doesn't block
the signal then: some in a row used up the alternate stack, and ended the process by SIGSEGV.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

from . import app_forks

_STACKS_TIMEOUT_S = 1.0
"""Seconds to wait for a process to write its stacks."""
_ADDITION_TIMEOUT_S = 1.0
"""Seconds to wait for the addition of a process: while its main thread is in C code, it adds nothing."""
_END_OF_ADDITION = b"\0"
"""The byte after the addition of a process."""
_STACKS_COMPLETE_AFTER_S = 0.03
"""Seconds without growth after which the stacks are taken for complete."""
MAX_STACKS_BYTES = 1 << 18
"""Bytes of the stacks that are read."""
_armed = -1
_UNARMED = "has only just begun, or its app has taken SIGUSR1 away"
_STATES = {"T": "stopped by a signal", "t": "stopped by a debugger", "D": "waiting in the kernel", "Z": "a zombie"}


def create() -> int:
    """Return a file for one process's stacks; the descriptor is close-on-exec."""
    return os.memfd_create("cluster2-stacks", os.MFD_CLOEXEC)


def arm(descriptor: int) -> None:
    """Write this process's stacks there whenever it is sent SIGUSR1."""
    global _armed
    _armed = descriptor
    faulthandler.register(signal.SIGUSR1, file=descriptor, all_threads=True)
    app_forks.in_child(_disarm)


def _disarm() -> None:
    """Unregister in a process that the app has forked: the file belongs to its parent."""
    faulthandler.unregister(signal.SIGUSR1)


def add(describe: Callable[[FrameType | None], str]) -> None:
    """Have this process add a text to its stacks on SIGURG, if it is armed. Call it in the main thread.

    Args:
        describe: returns the text; called in the main thread as soon as that runs Python code, with the frame where it is.
    """
    descriptor = _armed
    if descriptor < 0:
        return

    def write(number: int, frame: FrameType | None) -> None:
        if os.fstat(descriptor).st_size > MAX_STACKS_BYTES:
            return  # the master reads no more than this; other processes can send the signal as well
        try:
            text = describe(frame)
        except Exception as error:  # the exception must not reach the code that was interrupted
            text = f"what it works on isn't known: {error!r}"
        os.write(descriptor, b"\n" + text.encode("utf-8", "backslashreplace") + b"\n" + _END_OF_ADDITION)

    signal.signal(signal.SIGURG, write)


async def capture(descriptor: int, pidfd: int, pid: int, *, adds: bool = False) -> str:
    """Return the stacks of a process that has armed itself, or a line that says why there are none.

    Args:
        adds: it may have something to add (`add`), which is waited for as well.
    """
    import asyncio  # not at the top: the keeper, which imports this module, has no use for it

    if not _handles(pid, signal.SIGUSR1):
        return f"no stacks: process {pid} {_UNARMED}"
    _empty(descriptor)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGUSR1)
    except ProcessLookupError:
        return f"no stacks: process {pid} has ended"
    for _ in _growth(descriptor):
        await asyncio.sleep(0.01)
    if adds and os.fstat(descriptor).st_size and _handles(pid, signal.SIGURG):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGURG)
        deadline = time.monotonic() + _ADDITION_TIMEOUT_S
        while not _is_complete(descriptor) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
    return _found(descriptor, pid)


def capture_child(descriptor: int, pid: int) -> str:
    """Return the stacks of a child that hasn't been reaped; blocks, for a process without an event loop."""
    if not _handles(pid, signal.SIGUSR1):
        return f"no stacks: process {pid} {_UNARMED}"
    _empty(descriptor)
    os.kill(pid, signal.SIGUSR1)
    for _ in _growth(descriptor):
        time.sleep(0.01)
    return _found(descriptor, pid)


def _handles(pid: int, number: signal.Signals) -> bool:
    """Return whether a process handles a signal; true also for a process that has ended, which is reported later."""
    try:
        with open(f"/proc/{pid}/status") as file:
            facts = dict(line.split(":", 1) for line in file)
    except OSError:
        return True
    return "Z" in facts["State"] or bool(int(facts["SigCgt"], 16) >> (number - 1) & 1)


def _empty(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)  # the offset is shared with the process that writes


def _growth(descriptor: int) -> Iterator[None]:
    """Yield until the stacks are complete, or until _STACKS_TIMEOUT_S is over."""
    deadline = time.monotonic() + _STACKS_TIMEOUT_S
    size, since = 0, time.monotonic()
    while (now := time.monotonic()) < deadline:
        grown = os.fstat(descriptor).st_size
        if grown != size:
            size, since = grown, now
        elif size and now - since >= _STACKS_COMPLETE_AFTER_S:
            return
        yield


def _is_complete(descriptor: int) -> bool:
    """Return whether a process has ended its addition to the stacks."""
    return os.pread(descriptor, 1, os.fstat(descriptor).st_size - 1) == _END_OF_ADDITION


def _found(descriptor: int, pid: int) -> str:
    found = os.pread(descriptor, MAX_STACKS_BYTES, 0).rstrip(_END_OF_ADDITION).decode(errors="replace").rstrip()
    return found or f"no stacks: process {pid} doesn't react; it is {_state(pid)}"


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            letter = file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
    return _STATES.get(letter, f"in state {letter}")
