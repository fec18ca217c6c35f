"""The end of a child that the app forked in a call and that returns from the call as if it were the worker.

`os.fork` in a handler copies the worker. A child that executes a program or calls `os._exit` is left alone. One that returns
from the handler would go on as a second worker without connections. A thread of a pool would wait for calls for ever. An event
loop would be aborted by libuv (SIGABRT), since its epoll set is closed in children (`linux.app_forks`).

No request pays for the check. The engine replaces, in the child only, the objects that a call uses when it sends or ends. The
first use of a replacement (`ForkedChildTrap`) logs one line and ends the process.

A child that suspends its coroutine without sending, receiving or returning isn't covered. Most waits of asyncio raise in a
child ("no running event loop"), which ends the call. The others (`sleep(0)`, a future from before the fork) reach the loop, and
libuv aborts.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import NoReturn

from ..linux import app_forks

_EXIT_CODE = 70
"""EX_SOFTWARE of sysexits(3): an error in the app."""

logger = logging.getLogger("cluster2.worker")


class ForkedChildTrap:
    """A replacement for any object that a call uses when it sends or ends: its use ends the process."""

    def __init__(self, call: str | None) -> None:
        """Wait for the first use.

        Args:
            call: describes the call that forked, for the log; None: the fork wasn't made in one.
        """
        self._call = call

    def end_process(self, *_: object) -> NoReturn:
        """Log one line, and end the process without running anything of the worker's."""
        logger.error(
            "%s: process %d returned from the call in which the app forked it, and is ended; "
            "a forked child must end itself by os._exit()",
            self._call or "a task of the app",
            os.getpid(),
        )
        os._exit(_EXIT_CODE)  # not sys.exit: the frames above are the worker's, and would run its shutdown

    def __getattr__(self, name: str) -> NoReturn:
        self.end_process()

    __getitem__ = __setitem__ = end_process


def end_returning_children(
    describe: Callable[[FrameType], str | None], set_trap: Callable[[ForkedChildTrap], None]
) -> None:
    """End each child that the app forks from now on, and that returns from the call in which it was forked.

    Args:
        describe: see `Engine.describe_frame`.
        set_trap: called in each forked child: replace what a call uses when it sends or ends.
    """
    app_forks.in_child(partial(_set, describe, set_trap))


def frames_above() -> Iterator[FrameType]:
    """Yield the frames of this thread from the innermost one outwards."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _set(describe: Callable[[FrameType], str | None], set_trap: Callable[[ForkedChildTrap], None]) -> None:
    call = next(filter(None, map(describe, frames_above())), None)
    set_trap(ForkedChildTrap(call))
