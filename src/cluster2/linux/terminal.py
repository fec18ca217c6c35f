"""The terminal that a process was started from, and the moment when it is closed.

When a window is closed, or an ssh connection ends, the kernel hangs the terminal up: it takes it from all processes of the
session and sends HUP. The shell sends one, too. To a server HUP also means "reload". Taken for that, it left behind a server
without a terminal that kept its port and was visible on no screen. The terminal distinguishes the two: a HUP is a hang-up if the
terminal existed before and is gone now. `/dev/tty` can be opened exactly as long as a process has a controlling terminal (ENXIO
else), whatever its standard streams are.

One hang-up may bring several HUPs: from the kernel to the leader of the session, from a shell to its jobs, and from the kernel
again to the foreground process group when the leader has ended.

A terminal may go without a HUP: a shell that ends sends none to its jobs in the background. So the terminal is checked between
the signals: a HUP that comes long after the terminal has gone is a request again.

`nohup` ignores HUP to make the process go on. A service manager, or `cluster2 start`, gives it no terminal. Then every HUP is a
request.
"""

from __future__ import annotations

import os
import signal
import time

HANGUP_GRACE_S = 1.0
"""Seconds in which further HUPs belong to the same hang-up."""


class Terminal:
    """The controlling terminal of this process, if it has one.

    Attributes:
        outlived: HUP was ignored when this was made: the process is to go on without the terminal.
    """

    def __init__(self) -> None:
        """Check for a terminal. Call it before HUP gets a handler."""
        self.outlived = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._there = _is_there()
        self._gone_at: float | None = None

    def check_hangup(self) -> None:
        """Notice that the terminal has gone. Call it now and then; it takes 3 µs."""
        if self._there and not _is_there():
            self._there, self._gone_at = False, time.monotonic()

    def hung_up(self) -> bool:
        """Return whether a HUP that has just come means that the terminal was closed."""
        self.check_hangup()
        return self._gone_at is not None and time.monotonic() - self._gone_at < HANGUP_GRACE_S


def _is_there() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
