"""Signals of a worker that has no master (`cluster = false`), and the watchdog that bounds its end.

In a cluster the master kills a worker that doesn't leave within `drain_timeout` and a margin, for example because a handler holds
the loop, or because the lifespan shutdown or a hook of `worker.on_stop` hangs. Without a master the process has to end itself,
and its loop may be what hangs. So the signal that begins the end also arms a watchdog of faulthandler: a C thread that needs
neither the loop nor the GIL. It writes the stacks of all threads to standard error, which show what hung, and ends the process
with code 1.

A Python signal handler arms the watchdog, not the loop: while a request holds the loop in Python code, Python still runs signal
handlers between two bytecodes. In C code it does not. Then only SIGKILL helps, as for any process.
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
"""Signals that make a master, or gunicorn's, reload or scale. Their default effect would end or stop the process."""

logger = logging.getLogger("cluster2.worker")


class StandaloneSignals:
    """The signals of a worker without a master."""

    def __init__(
        self, settings: Settings, send: Callable[[messages.ChannelMessage], None], terminal: Terminal | None = None
    ) -> None:
        """Prepare; `arrange` installs the handlers.

        Args:
            send: receives notes about signals that have no effect here.
            terminal: the terminal that started the process.
        """
        self._terminal = terminal
        self._settings = settings
        self._send = send
        self._ends_at: float | None = None
        self._stderr = -1
        self._arranged: asyncio.AbstractEventLoop | None = None

    def arrange(self, loop: asyncio.AbstractEventLoop, terminated: Callable[[signal.Signals], None]) -> None:
        """Call `terminated` on the loop for TERM and INT, and bound the time until the end. Report signals that need a master."""
        self._arranged = loop
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, terminated, number)
            # The loop learns of the signal by its wake-up descriptor, so it doesn't need the handler, which is replaced here.
            signal.signal(number, self._bound_end)
            signal.siginterrupt(number, False)  # signal.signal() switches that on: system calls would fail with EINTR
        for number in _NEEDS_A_MASTER:
            loop.add_signal_handler(number, self._ignored, number)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up, terminated)

    def close(self) -> None:
        """Disarm the watchdog, and ignore signals from now on, since the exit code is decided."""
        if self._ends_at is not None:
            faulthandler.cancel_dump_traceback_later()
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1
        if self._arranged is not None:
            signals.ignore_from_now(self._arranged, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, *_NEEDS_A_MASTER))
            self._arranged = None

    def _bound_end(self, number: int, frame: FrameType | None) -> None:
        """Arm the watchdog, or bring it forward: the second signal ends the lame duck."""
        now = time.monotonic()
        bound = self._settings.drain_timeout + _END_MARGIN_S
        if self._ends_at is None:
            self._ends_at = now + self._settings.lame_duck + bound
        elif now + bound < self._ends_at:
            self._ends_at = now + bound
        if self._stderr < 0:  # a duplicate, since the app may replace or close sys.stderr
            self._stderr = os.dup(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2)
        faulthandler.dump_traceback_later(self._ends_at - now, exit=True, file=self._stderr)

    def _hung_up(self, terminated: Callable[[signal.Signals], None]) -> None:
        """Shut down if the terminal was closed, unless the process is to outlive it (nohup)."""
        if self._terminal is None or not self._terminal.hung_up():
            self._ignored(signal.SIGHUP)
        elif not self._terminal.outlived and self._ends_at is None:
            self._send(messages.Note("the terminal was closed: shutting down"))
            self._bound_end(signal.SIGHUP, None)
            terminated(signal.SIGHUP)

    def _ignored(self, number: signal.Signals) -> None:
        """Report that a signal has no effect."""
        self._send(
            messages.Note(f"{number.name} has no effect with cluster = false: there is no master to reload or to scale")
        )
