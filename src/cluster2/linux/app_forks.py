"""Clean up in the processes that the app forks: signals, and the descriptors of the process that it was forked from.

`multiprocessing` and `os.fork` copy a worker (or a zygote at import, or a master in an event handler) with all that makes it one:

- *Signals.* The handlers, and the descriptor that wakes the event loop, are copied. TERM for the child (`Process.terminate` sends
  it) would not end the child but make the worker leave, through the socket that both share. So the child gets the default effect
  of each signal that this project or the event loop handles. Handlers of the app's own stay.
- *Descriptors.* With a copy of a connection, the client waits for its end until the child ends. With a copy of a listener, the
  port is in use after the shutdown. With one of a channel, the other side never learns that the process has ended. So all of
  those are closed in the child. Their numbers stay in use, for /dev/null: objects in the child's memory still name them, and
  would close what gets such a number later. That also keeps libuv in the child from changing the epoll set, which it shares with
  its parent.

A program that is executed needs none of this: handlers and descriptors end with the exec. Two ways to execute run these handlers
all the same, and may be about to hand one of the descriptors to the program: `subprocess` with a `preexec_fn`, and libuv
(`asyncio.create_subprocess_exec`), which blocks all signals meanwhile. They are recognized and left alone.

A fork in C that runs no Python handlers keeps everything, as under any server.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

_OURS = ("cluster2", "uvloop", "asyncio")
_EXECUTES = "subprocess"


class _HasDescriptor(Protocol):
    def fileno(self) -> int: ...


_withheld: weakref.WeakSet[_HasDescriptor] = weakref.WeakSet()
_calls: list[Callable[[], Iterable[int]]] = []
_steps: list[Callable[[], object]] = []
_installed = False
_makes_worker = False


def install() -> None:
    """Clean up in the children of this process from now on. Call it before the app can fork or register handlers."""
    global _installed
    if not _installed:
        _installed = True
        os.register_at_fork(after_in_child=_in_child)


def withhold(*owners: _HasDescriptor) -> None:
    """Close the descriptors of these objects in children, for as long as the objects live."""
    _withheld.update(owners)


@contextlib.contextmanager
def withholding(descriptors: Callable[[], Iterable[int]]) -> Iterator[None]:
    """Close the descriptors that `descriptors()` returns in children, until the block ends. Numbers below 0 mean none."""
    _calls.append(descriptors)
    try:
        yield
    finally:
        _calls.remove(descriptors)


@contextlib.contextmanager
def withholding_new_polls() -> Iterator[None]:
    """Close the epoll sets that are made within this block in children: an event loop's."""
    before = set(_polls())
    yield
    made = [descriptor for descriptor in _polls() if descriptor not in before]
    withhold_for_good(lambda: made)


def withhold_for_good(descriptors: Callable[[], Iterable[int]]) -> None:
    """Close the descriptors that `descriptors()` returns in children, up to the end of the process."""
    _calls.append(descriptors)


def in_child(step: Callable[[], object]) -> None:
    """Take this step in children as well."""
    _steps.append(step)


def makes_worker(now: bool) -> None:
    """Leave what is forked now as it is: it becomes a worker."""
    global _makes_worker
    _makes_worker = now


def _in_child() -> None:
    if _makes_worker:
        return  # a worker sets its signals itself, and needs its descriptors
    if sys._getframe(1).f_globals.get("__name__") == _EXECUTES or _is_all_blocked():
        return
    waker = _reset_signals()
    for step in _steps:
        step()
    own = {waker, *_own()}
    _close(own | _copies(own))
    for owned in (_withheld, _calls, _steps):
        owned.clear()  # a child of the child has none of them


def _is_all_blocked() -> bool:
    return {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1} <= signal.pthread_sigmask(
        signal.SIG_BLOCK, ()
    )


def _reset_signals() -> int:
    """Return the descriptor that woke the event loop; -1: there was none."""
    waker = signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler) and str(getattr(handler, "__module__", "")).partition(".")[0] in _OURS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    return waker


def _own() -> Iterator[int]:
    for call in _calls:
        with contextlib.suppress(OSError):  # a listener is closed
            yield from call()
    for owner in _withheld:
        with contextlib.suppress(OSError, ValueError):  # closed
            yield owner.fileno()


def _copies(descriptors: set[int]) -> set[int]:
    """Return the copies of these sockets that the process has: servers duplicate listeners."""
    sockets, found = set[int](), set[int]()
    for mine in descriptors:
        with contextlib.suppress(OSError):  # closed
            if stat.S_ISSOCK((status := os.fstat(mine)).st_mode):
                sockets.add(status.st_ino)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listed the directory is closed by now
            status = os.fstat(int(name))
            if status.st_ino in sockets and stat.S_ISSOCK(status.st_mode):
                found.add(int(name))
    return found


def _close(descriptors: set[int]) -> None:
    wanted = sorted(descriptor for descriptor in descriptors if descriptor >= 0)
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # no descriptor is left, or there is no such file here
        for descriptor in wanted:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        return
    for descriptor in wanted:
        os.dup2(null, descriptor, inheritable=False)
    os.close(null)


def _polls() -> Iterator[int]:
    """Yield the descriptors of epoll sets, and of the rings that libuv changes them through."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listed the directory is closed by now
            if os.readlink(f"/proc/self/fd/{name}") in ("anon_inode:[eventpoll]", "anon_inode:[io_uring]"):
                yield int(name)
