"""Signals, and the bound of the end, of a worker that has no master (`cluster = false`).

With a cluster the master kills a worker that doesn't leave within `drain_timeout` and a margin: one whose handler holds the
loop, or whose lifespan shutdown or `worker.on_stop` hangs. Without a master the process has to end itself, and its loop may be
what hangs. So the signal that begins the end also arms a watchdog of faulthandler's: a thread in C that needs neither the loop
nor the GIL. It writes the stacks of all threads to standard error, which show what hung, and ends the process with code 1.

The watchdog is armed by a signal handler of Python's, not by the loop: while a handler holds the loop in Python code, Python
still runs signal handlers between two bytecodes. (In C code it doesn't; then only SIGKILL helps, as with any process.)
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from ...config.settings import Settings
from ...linux import signals
from ...linux.terminal import Terminal
from ...protocol import messages

_END_MARGIN_S = 2.0
"""Seconds beyond `drain_timeout` for the app and its hooks to stop, as with a master."""
_NEEDS_A_MASTER = (signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)
"""Signals by which a master, or gunicorn's, is told to reload or to scale: their default effect would end or stop the process."""

logger = logging.getLogger("cluster2.worker")


class StandaloneSignals:
    """The signals of a worker without a master."""

    def __init__(
        self, settings: Settings, say: Callable[[messages.Talk], None], terminal: Terminal | None = None
    ) -> None:
        """Arrange nothing yet.

        Args:
            say: told of signals that mean nothing here.
            terminal: that the process was started from.
        """
        self._terminal = terminal
        self._settings = settings
        self._say = say
        self._ends_at: float | None = None
        self._stderr = -1
        self._arranged: asyncio.AbstractEventLoop | None = None

    def arrange(self, loop: asyncio.AbstractEventLoop, terminated: Callable[[signal.Signals], None]) -> None:
        """Call `terminated` on the loop for TERM and INT, and bound what comes then; report signals that need a master."""
        self._arranged = loop
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, terminated, number)
            # The loop hears of the signal by its wake-up descriptor, so the handler's place is free.
            signal.signal(number, self._end_is_near)
            signal.siginterrupt(number, False)
        for number in _NEEDS_A_MASTER:
            loop.add_signal_handler(number, self._ignored, number)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up, terminated)

    def close(self) -> None:
        """Disarm the watchdog; from now on signals are ignored, since the exit code is decided."""
        if self._ends_at is not None:
            faulthandler.cancel_dump_traceback_later()
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1
        if self._arranged is not None:
            signals.ignore_from_now(self._arranged, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, *_NEEDS_A_MASTER))
            self._arranged = None

    def _end_is_near(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        bound = self._settings.drain_timeout + _END_MARGIN_S
        if self._ends_at is None:
            self._ends_at = now + self._settings.lame_duck + bound
        elif now + bound < self._ends_at:
            self._ends_at = now + bound  # the second signal ends the lame duck
        if self._stderr < 0:  # the app may replace or close sys.stderr
            self._stderr = os.dup(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2)
        faulthandler.dump_traceback_later(self._ends_at - now, exit=True, file=self._stderr)

    def _hung_up(self, terminated: Callable[[signal.Signals], None]) -> None:
        """End with the terminal, if that was closed and it isn't to be outlived."""
        if self._terminal is None or not self._terminal.hung_up():
            self._ignored(signal.SIGHUP)
        elif not self._terminal.outlived and self._ends_at is None:
            self._say(messages.Note("the terminal was closed: shutting down"))
            self._end_is_near(signal.SIGHUP, None)
            terminated(signal.SIGHUP)

    def _ignored(self, number: signal.Signals) -> None:
        self._say(
            messages.Note(f"{number.name} has no effect with cluster = false: there is no master to reload or to scale")
        )
