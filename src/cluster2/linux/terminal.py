"""The terminal that a process was started from, and the moment when it is closed.

A window that is closed, a connection of ssh that ends: the kernel hangs the terminal up. It takes it from all processes of the
session and sends HUP, and so does the shell. To a server HUP also means "reload", and taken for that it left a server behind
which had lost its terminal, kept its port, and that nothing on a screen told of. The two are told apart by the terminal: a HUP
that finds gone what was there before is the hang-up. `/dev/tty` can be opened exactly as long as a process has a controlling
terminal (ENXIO else), whatever its standard streams are.

One hang-up may bring several HUPs: from the kernel to the leader of the session, from a shell to its jobs, and from the kernel
again to the foreground process group when the leader has ended.

A terminal may go without a HUP: a shell that ends sends none to its jobs in the background. So there are looks between the
signals: a HUP that comes long after the terminal has gone is a request again.

`nohup` says by an ignored HUP that the process is to go on. So does a service manager, or `cluster2 start`, by giving it no
terminal: then every HUP is a request.
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
        """Look; before HUP gets a handler."""
        self.outlived = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._there = _is_there()
        self._gone_at: float | None = None

    def check_hangup(self) -> None:
        """Notice that it has gone. Call it now and then; it takes 3 µs."""
        if self._there and not _is_there():
            self._there, self._gone_at = False, time.monotonic()

    def hung_up(self) -> bool:
        """Return whether a HUP that has just come tells that the terminal was closed."""
        self.check_hangup()
        return self._gone_at is not None and time.monotonic() - self._gone_at < HANGUP_GRACE_S


def _is_there() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
