"""Fork a process that the nearest subreaper adopts, within a bounded time.

**Two forks.** The zygote forks workers, but they have to be the master's children: the master reaps them and waits for
them, and they outlive the zygote. So the zygote forks an intermediate process, which forks the worker and exits at once;
the kernel gives the orphan to the nearest subreaper, the master. The worker must not go on before that:
`PR_SET_PDEATHSIG` would fire for the intermediate's death, and `getppid` would name it. It waits on a pidfd of the
intermediate, which becomes readable only after the kernel has moved its children (so says the kernel's source; `getppid`
is asked again anyway). The end of a pipe comes earlier, since files are closed first; asking `getppid` in a loop works
as well, but needs a core just then. Not chosen: `clone(CLONE_PARENT)` makes the master the parent with one fork, but
doesn't go through `os.fork`, so that neither glibc's nor CPython's fork handlers run. Measured, from the call to the
caller's return: 1.3 ms with a small zygote, 7 with 100 MiB of touched memory, 16 with 200: each of the two forks copies
the page tables.

**Foreign code inside of a fork.** `os.fork` calls what the app, or a library of its, has registered with
`os.register_at_fork`, and any of it may hang, in the zygote, in the intermediate or in the worker. Python calls handlers
in the order of their registration, so ours, which are registered before the app is imported, come first. In the
intermediate they ask for SIGKILL at the zygote's end (at that time nothing else would end a process that hangs), and
after the second fork they exit, so that no foreign handler runs there. In the worker they report its pid and wait for
the adoption: a worker that hangs in a foreign handler is known to the master, which kills it after `boot_timeout`. What
hangs in the intermediate is killed by the zygote after FORK_TIMEOUT_S; a zygote that hangs is killed by the master.

Handlers in C (`pthread_atfork`) run before those in Python. A worker that hangs in one has reported nothing; the master
finds it at its own end by what it holds (`kernel.leftovers`).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import time
from collections.abc import Callable
from typing import NoReturn

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
    """One call of `fork_orphan`, as the at-fork handlers see it.

    Attributes:
        writer: where the worker reports its pid.
        born: called in the worker when it has been adopted.
        zygote: pid of the caller.
        middle: pid of the intermediate; 0 before it exists.
    """

    def __init__(self, writer: int, born: Callable[[], None]) -> None:
        self.writer = writer
        self.born = born
        self.zygote = os.getpid()
        self.middle = 0


_under_way: _Fork | None = None
_registered = False


def register_handlers() -> None:
    """Have our at-fork handlers called before those that are registered later. Does nothing the second time."""
    global _registered
    if not _registered:
        _registered = True
        os.register_at_fork(after_in_parent=_in_parent, after_in_child=_in_child)


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
    register_handlers()
    reader, writer = os.pipe()
    _under_way = _Fork(writer, born)
    try:
        middle = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    finally:
        if os.getpid() == _under_way.zygote:
            _under_way = None
    if middle == 0:
        os.close(reader)
        _fork_again(writer)
        return None
    os.close(writer)
    try:
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
    # Not before the intermediate's end: then one of two reports is there, or nobody is left who could write one.
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
    """Wait until a descriptor is readable or has ended; None: for as long as it takes."""
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


def _fork_again(writer: int) -> None:
    """Fork in the intermediate process; return only in the worker."""
    try:
        pid = os.fork()
    except OSError as error:
        _end_intermediate(writer, -(error.errno or 1))
    if pid:  # only if the handlers weren't called: they end the intermediate
        _end_intermediate(writer, pid)
    os.close(writer)


def _end_intermediate(writer: int, report: int) -> NoReturn:
    """Report and exit: the code after `fork_orphan` isn't this process's, nor are its exit handlers."""
    try:
        os.write(writer, _PID.pack(report))
    finally:
        os._exit(0)


def _in_child() -> None:
    """Run first of all at-fork handlers in the intermediate, and in the worker."""
    global _under_way
    fork = _under_way
    if fork is None:
        return  # a fork of the app's own
    if not fork.middle:
        fork.middle = os.getpid()
        set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != fork.zygote:
            os._exit(1)
        return
    _under_way = None
    os.write(fork.writer, _PID.pack(os.getpid()))
    while os.getppid() == fork.middle:
        # Should the intermediate be reaped right here, there is nothing to open, and the loop sees the new parent.
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(fork.middle)
            try:
                _readable(pidfd)
            finally:
                os.close(pidfd)
    fork.born()


def _in_parent() -> None:
    """End the intermediate as soon as it has forked the worker, which reports for itself."""
    fork = _under_way
    if fork is None or fork.middle != os.getpid():
        return
    try:
        # Called after a failed fork as well; then there is no child, and `os.fork` is to raise its error.
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return
    os._exit(0)
