"""Show the log files of workers on the master's standard error as well (`log_to = both`).

The output of workers goes to files, so that none of it is lost when a worker crashes (`linux.log_files`). In a terminal, or in
the output of a container, operators need to see it as well. So the master reads the files when inotify reports a write, ten times
a second at most.

**It never blocks on the reader of standard error**: a pipe that isn't emptied, or a terminal that was stopped. It writes when
poll(2) reports that it can, and no more than a pipe then takes for sure (PIPE_BUF). While it waits it reads nothing. If a worker
writes faster than that, lines are left out here; they are in the file, and a line says so.

**It does not let the event loop wait for standard error.** libuv would set O_NONBLOCK. That flag belongs to the open file
description, so it would change the user's shell as well, for good. The loop waits for an epoll that has the descriptor instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import time

from ....linux.inotify import Inotify
from ....linux.log_files import MASTER_LOG
from ....linux.log_tailer import LogTailer
from ....runtime.step_guard import StepGuard

logger = logging.getLogger("cluster2.master")

_FORWARD_POLL_INTERVAL_S = 0.1
"""Seconds between two polls."""
MAX_FORWARDED_BYTES = 1 << 20
"""Bytes of each file that one poll shows."""
_FORWARD_TURN_S = 0.005
"""Seconds that one turn may write for, since it holds the master's loop."""
_FORWARDER_SHUTDOWN_GRACE_S = 0.5
"""Seconds at the end in which the reader may take what is left."""


class LogForwarder:
    """Copies the lines that workers write from now on."""

    def __init__(self, directory: str, fd: int = 2) -> None:
        """Make a forwarder. It reads nothing yet.

        Args:
            directory: the directory of log files.
            fd: the descriptor to write to.
        """
        self._directory, self._fd = directory, fd
        self._tailer = LogTailer(directory, None, 0, without=MASTER_LOG, most=MAX_FORWARDED_BYTES)
        self._tailer.poll(self._take)  # lines that are there already are old
        self._unsent = bytearray()
        self._guard = StepGuard(_report)
        self._shown: set[bytes] = set()
        self._inotify: Inotify | None = None
        self._writable = select.epoll()
        self._waits = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Forward from now on, on the running loop."""
        self._loop = asyncio.get_running_loop()
        try:
            self._inotify = Inotify(self._directory)
        except OSError as error:
            logger.warning("the log files are polled ten times a second, since inotify fails: %s", error)
        self._poll()

    def stop(self) -> None:
        """Show the lines that are left, and stop."""
        if self._timer is not None:
            self._timer.cancel()
        self._sleep()
        deadline = time.monotonic() + _FORWARDER_SHUTDOWN_GRACE_S
        self._tailer.poll(self._take)
        while self._unsent and time.monotonic() < deadline:
            self._write(_FORWARD_POLL_INTERVAL_S)
        self._tailer.close()
        self._writable.close()
        if self._inotify is not None:
            self._inotify.close()

    def leave_out(self, line: bytes) -> None:
        """Leave out a line that this process is about to write to a file: it is on standard error already."""
        self._shown.add(line)

    def _poll(self) -> None:
        """Show new lines. Lines that can't be read now are read at the next poll, which each poll schedules."""
        self._sleep()
        with self._guard("the workers' output can't be shown"):
            if self._inotify is not None:
                self._inotify.clear()
            self._tailer.poll(self._take)
        self._write_pending()

    def _write_pending(self) -> None:
        """Write unsent lines. Then wait until the reader has taken some, or until the next poll is due."""
        assert self._loop is not None
        self._stop_waiting()
        self._write()
        if self._unsent:
            with contextlib.suppress(
                OSError
            ):  # epoll refuses regular files: they always take more, so only the turn was over
                self._writable.register(self._fd, select.EPOLLOUT)
                self._waits = True
                self._loop.add_reader(self._writable.fileno(), self._write_pending)
                return
        self._timer = self._loop.call_later(
            _FORWARD_POLL_INTERVAL_S, self._write_pending if self._unsent else self._rest
        )

    def _rest(self) -> None:
        """Wait for inotify, unless another poll is due anyway."""
        assert self._loop is not None
        if self._inotify is None or self._tailer.pending or self._guard.is_failing():
            self._poll()
        else:
            self._loop.add_reader(self._inotify.fileno(), self._poll)

    def _sleep(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._stop_waiting()
            if self._inotify is not None:
                self._loop.remove_reader(self._inotify.fileno())

    def _stop_waiting(self) -> None:
        assert self._loop is not None
        if self._waits:
            self._waits = False
            self._loop.remove_reader(self._writable.fileno())
            self._writable.unregister(self._fd)

    def _take(self, log: str, line: bytes) -> None:
        whole = line + b"\n"
        if whole in self._shown:
            self._shown.remove(whole)
        else:
            self._unsent += whole

    def _write(self, patience: float = 0.0) -> None:
        """Write for one turn, as much as the reader takes at once. Wait so many seconds for a reader that takes nothing."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        deadline = time.monotonic() + _FORWARD_TURN_S
        sent = 0
        try:
            while sent < len(self._unsent) and poll.poll(patience * 1000) and time.monotonic() < deadline:
                sent += os.write(self._fd, memoryview(self._unsent)[sent : sent + select.PIPE_BUF])
        except BlockingIOError:
            pass  # another process has set O_NONBLOCK, and has filled the pipe since poll(2)
        except OSError:  # it has no reader any more; the lines are in the files
            sent = len(self._unsent)
        del self._unsent[:sent]


def _report(text: str, detail: str) -> None:
    logger.warning("%s", text)
    if detail:
        logger.error("%s", detail)
