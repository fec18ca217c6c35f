"""Fork a process that the nearest subreaper adopts, within a bounded time.

**Two forks.** The zygote forks workers, but they have to be the master's children: the master reaps them and waits for them, and
they outlive the zygote. So the zygote forks an intermediate process, which forks the worker and exits at once. The kernel gives
the orphan to the nearest subreaper, the master. The worker must not go on before that: `PR_SET_PDEATHSIG` would fire for the
intermediate's death, and `getppid` would name it.

The worker waits on a pidfd of the intermediate, which becomes readable only after the kernel has moved its children (so says the
kernel's source; `getppid` is asked again anyway). The end of a pipe comes earlier, since files are closed first. A loop of
`getppid` works as well, but needs a core just then. `clone(CLONE_PARENT)` was rejected: it makes the master the parent with one
fork, but doesn't go through `fork`, so that glibc's handlers don't run.

Measured, from the call to the caller's return: 1.3 ms with a small zygote, 7 with 100 MiB of touched memory, 16 with 200. Each of
the two forks copies the page tables.

**Python's handlers run once.** With two calls of `os.fork` each handler of `os.register_at_fork` would run twice. A lock shared
between processes that a handler takes before a fork, and releases in the parent, would stay taken by the intermediate, which
never returns from its fork. So both forks are libc's, and this module takes Python's own steps around them by its C API, as
Python's documentation requires of programs that fork by themselves: `PyOS_BeforeFork` and `PyOS_AfterFork_Parent` in the zygote,
`PyOS_AfterFork_Child` in the worker. Each handler runs in the process that it is meant for, and sees its pid. The intermediate
runs none, and since 3.13 Python's lock of all threads is held there: it does nothing but fork and report. glibc's handlers
(`pthread_atfork`) run for both forks.

**Foreign code inside of a fork.** Handlers of the app, or of one of its libraries, may hang, in the zygote or in the worker.
Python calls them in the order of their registration. The handler of this module, which is registered before the app is imported,
comes first in the worker, and waits for the adoption.

- The worker hangs in a foreign handler, in Python or in C: the intermediate has reported its pid before it exited. So the master
  knows the worker, and kills it after `boot_timeout`.
- The intermediate hangs in a handler in C: the zygote kills it after FORK_TIMEOUT_S, and the kernel does at the zygote's end.
- The zygote hangs: the master kills it. If it is killed before it has read the report, the master finds the worker at its own end
  by the descriptors that the worker holds (`linux.leftover_processes`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import struct
import time
from collections.abc import Callable
from typing import NoReturn

from . import app_forks
from .processes import set_parent_death_signal

FORK_TIMEOUT_S = 10.0
"""Seconds for both forks. They take milliseconds; a machine that swaps is given time."""
_PID = struct.Struct("i")


class ForkTimeout(OSError):
    """A fork wasn't complete in time; what it had made is killed.

    Attributes:
        stacks: the Python stacks of the process that hung.
    """

    def __init__(self, stacks: str) -> None:
        super().__init__("a fork hung, probably in an at-fork handler of the app or of a library; it was killed")
        self.stacks = stacks


class _Fork:
    """One call of `fork_orphan`, as the worker's at-fork handler sees it.

    Attributes:
        born: called in the worker when it has been adopted.
        middle: pid of the intermediate.
    """

    def __init__(self, born: Callable[[], None]) -> None:
        self.born = born
        self.middle = 0


_under_way: _Fork | None = None
_registered = False

# PyDLL keeps the GIL: a child must not find the GIL given to a thread that the child doesn't have.
_python = ctypes.pythonapi
_libc_fork = ctypes.PyDLL(None, use_errno=True).fork


def register_handler() -> None:
    """Have our at-fork handler called before those that are registered later. Does nothing the second time."""
    global _registered
    if not _registered:
        _registered = True
        os.register_at_fork(after_in_child=_in_child)


def fork_orphan(
    born: Callable[[], None] = lambda: None,
    *,
    timeout_s: float = FORK_TIMEOUT_S,
    dump: Callable[[int], str] = lambda pid: "",
) -> int | None:
    """Fork a process that becomes the child of the nearest subreaper. Call it with one thread only.

    Args:
        born: called in the new process right after its adoption, before at-fork handlers that were registered after ours.
        dump: returns the stacks of the intermediate process, which hangs.

    Returns:
        In the caller, the new process's pid (it may have ended and been reaped already).
        In the new process None, after its adoption.

    Raises:
        ForkTimeout: it took more than `timeout_s` seconds.
        OSError: EAGAIN or ENOMEM from either fork, in the caller; nothing is left behind.
    """
    global _under_way
    register_handler()
    reader, writer = os.pipe()
    zygote = os.getpid()
    fork = _under_way = _Fork(born)
    app_forks.makes_worker(True)
    # Takes Python's import lock and calls the `before` handlers, once for both forks.
    _python.PyOS_BeforeFork()
    middle = _libc_fork()
    if middle == 0:
        _be_intermediate(fork, zygote, writer)
        _python.PyOS_AfterFork_Child()  # this is the worker
        _under_way = None
        app_forks.makes_worker(False)
        os.close(reader)
        os.close(writer)
        return None
    code = ctypes.get_errno()  # before foreign handlers run, which may change it
    _under_way = None
    _python.PyOS_AfterFork_Parent()
    app_forks.makes_worker(False)
    os.close(writer)
    try:
        if middle < 0:
            raise OSError(code, os.strerror(code))
        return _reported(reader, middle, time.monotonic() + timeout_s, dump)
    finally:
        os.close(reader)


def _reported(reader: int, middle: int, deadline: float, dump: Callable[[int], str]) -> int:
    """Wait for the report and for the end of the intermediate, in the zygote. Returns the new process's pid."""
    complete = _readable(reader, deadline) and _has_ended(middle, deadline)
    stacks = "" if complete else dump(middle)
    if not complete:
        with contextlib.suppress(ProcessLookupError):
            os.kill(middle, signal.SIGKILL)  # not reaped yet, so the pid is still its own
    how = _reap(middle)
    # Read after the intermediate's end: then its report is there, or will never be.
    answer = os.read(reader, _PID.size) if _readable(reader, time.monotonic()) else b""
    pid = _PID.unpack(answer)[0] if answer else 0
    if pid > 0:
        return int(pid)
    if not complete:
        raise ForkTimeout(stacks)
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    raise ChildProcessError(f"a process ended in the middle of a fork ({how})")


def _readable(descriptor: int, deadline: float | None = None) -> bool:
    """Wait until a descriptor is readable or has ended; without a deadline, wait for as long as it takes."""
    waiter = select.poll()  # not `select`, which can't take descriptors above 1023
    waiter.register(descriptor, select.POLLIN)
    return bool(waiter.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000))


def _has_ended(pid: int, deadline: float) -> bool:
    """Wait for the end of a child until the deadline."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:  # SIGCHLD is ignored: the kernel reaps by itself
        return True
    try:
        return _readable(pidfd, deadline)
    finally:
        os.close(pidfd)


def _reap(pid: int) -> str:
    """Wait for a child that has ended or was killed. Returns how it ended."""
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # SIGCHLD is ignored: the kernel reaps by itself
        return "how isn't known"
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def _be_intermediate(fork: _Fork, zygote: int, writer: int) -> None:
    """Fork the worker; return only in the worker."""
    fork.middle = os.getpid()
    try:
        set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != zygote:
            os._exit(1)
        pid = _libc_fork()
    except OSError as error:
        _end_intermediate(writer, -(error.errno or 1))
    if pid < 0:
        _end_intermediate(writer, -ctypes.get_errno())
    if pid > 0:
        _end_intermediate(writer, pid)


def _end_intermediate(writer: int, report: int) -> NoReturn:
    """Report and exit. The code after `fork_orphan` and the exit handlers are for other processes."""
    try:
        os.write(writer, _PID.pack(report))
    finally:
        os._exit(0)


def _in_child() -> None:
    """Run first of all at-fork handlers in the worker."""
    fork = _under_way
    if fork is None:
        return  # a fork of the app's own
    while os.getppid() == fork.middle:
        # If the intermediate is reaped right here, pidfd_open fails, and the loop sees the new parent.
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(fork.middle)
            try:
                _readable(pidfd)
            finally:
                os.close(pidfd)
    fork.born()
