"""The end of a child that the app forked in a call and that returns from the call as if it were the worker.

`os.fork` in a handler copies the worker. A child that executes a program or calls `os._exit` is left alone. One that returns
from the handler would go on as a second worker without connections. A thread of a pool would wait for calls for ever. An event
loop would be aborted by libuv (SIGABRT), since its epoll set is closed in children (`linux.app_forks`).

No request pays for the check. In the child only, the objects are replaced that a call uses when it sends, ends, or reports to the
loop. The first use of a replacement (`ForkedChildTrap`) logs one line and ends the process. There are two kinds of traps:

- Those of an engine, for its own calls (`set_trap`).
- Those of the event loop, for other threads and tasks. A thread of anyio's or of an executor, in which frameworks run sync
  handlers, reports its result by `call_soon_threadsafe`. A task that yields is scheduled by `call_soon`.

A child that waits for a future from before the fork isn't covered: its task reaches the loop, and libuv aborts. Most waits of
asyncio raise in a child ("no running event loop"), which ends the call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from ..linux import app_forks

_EXIT_CODE = 70
"""EX_SOFTWARE of sysexits(3): an error in the app."""
_NEVER_RETURN = "multiprocessing.popen_fork"
"""The module whose children never return from the fork: they end by `os._exit`."""

_Describe = Callable[[FrameType], str | None]
logger = logging.getLogger("cluster2.worker")


class ForkedChildTrap:
    """A replacement for any object that a call uses when it sends or ends: its use ends the process."""

    def __init__(self, call: str | None) -> None:
        """Wait for the first use.

        Args:
            call: describes the call that forked, for the log; None: the fork wasn't made in a call that is known.
        """
        self._call = call

    def end_process(self, *_: object, **__: object) -> NoReturn:
        """Log one line, and end the process without running anything of the worker's."""
        logger.error(
            "%s: process %d returned from the call in which the app forked it, and is ended; "
            "a forked child must end itself by os._exit()",
            self._call or "a thread or task of the app",
            os.getpid(),
        )
        os._exit(_EXIT_CODE)  # not sys.exit: the frames above are the worker's, and would run its shutdown

    def __getattr__(self, name: str) -> NoReturn:
        self.end_process()

    __getitem__ = __setitem__ = end_process


_SetTrap = Callable[[ForkedChildTrap], None]
_engines: list[tuple[_Describe, _SetTrap, asyncio.AbstractEventLoop]] = []


def end_returning_children(describe: _Describe, set_trap: _SetTrap) -> None:
    """End each child that the app forks from now on, and that returns from the call in which it was forked.

    Called on the worker's event loop.

    Args:
        describe: see `Engine.describe_frame`.
        set_trap: called in each forked child: replace what a call uses when it sends or ends.
    """
    if not _engines:
        app_forks.in_child(_set_traps)
    _engines.append((describe, set_trap, asyncio.get_running_loop()))


def frames_above() -> Iterator[FrameType]:
    """Yield the frames of this thread from the innermost one outwards."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _set_traps() -> None:
    frames = list(frames_above())
    if any(frame.f_globals.get("__name__") == _NEVER_RETURN for frame in frames):
        return
    calls = (describe(frame) for frame in frames for describe, _, _ in _engines)
    trap = ForkedChildTrap(next(filter(None, calls), None))
    for _, set_trap, _ in _engines:
        set_trap(trap)
    # Last, since an engine may still call its loop when it sets a trap.
    for loop in {loop for _, _, loop in _engines}:
        _trap_loop(loop, trap)


def _trap_loop(loop: asyncio.AbstractEventLoop, trap: ForkedChildTrap) -> None:
    """End the process when something is scheduled on the parent's loop."""

    def schedule(callback: Callable[..., object], *arguments: Any, **options: Any) -> None:
        # An async generator that is collected in the child has the loop make a task of its `aclose`: that is no return.
        if callback != loop.create_task:
            trap.end_process()

    with contextlib.suppress(
        AttributeError
    ):  # a loop without a dictionary can't be trapped; asyncio's and uvloop's can
        loop.call_soon = loop.call_soon_threadsafe = schedule  # type: ignore[assignment,method-assign]
