"""What workers write to their files, shown on the master's standard error as well (`log_to = both`).

Workers' output goes to files, so that nothing of it is lost whatever becomes of them (`kernel.logfiles`). Who runs a cluster in a
terminal, or collects a container's output, wants to see it there, too. So the master reads the files on, when the kernel says
that one was written to, ten times a second at most.

It never waits for who reads its standard error: a pipe that isn't emptied, a terminal that was stopped. It writes when poll(2)
says that it can, and no more than a pipe is bound to take then (PIPE_BUF); meanwhile it reads nothing. What is left out, of a
worker that writes faster than that, stands in its file, and a line says so. The loop isn't asked to wait for room there: libuv
would set O_NONBLOCK, for all who have that terminal, the shell as well, and for good. It waits for an epoll that does.
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

FORWARD_POLL_INTERVAL_S = 0.1
"""Seconds between two looks."""
MAX_FORWARDED_BYTES = 1 << 20
"""Bytes that a look shows of each file."""
FORWARD_TURN_S = 0.005
"""Seconds of the master's that one look may write for."""
FORWARDER_SHUTDOWN_GRACE_S = 0.5
"""Seconds at the end for who reads."""


class LogForwarder:
    """Copies what the workers' files get, from now on."""

    def __init__(self, directory: str, fd: int = 2) -> None:
        """Nothing is read yet.

        Args:
            directory: of log files.
            fd: where to.
        """
        self._directory, self._fd = directory, fd
        self._following = LogTailer(directory, None, 0, without=MASTER_LOG, most=MAX_FORWARDED_BYTES)
        self._following.poll(self._take)  # what is there already isn't news
        self._unsent = bytearray()
        self._guard = StepGuard(_report)
        self._told: set[bytes] = set()
        self._inotify: Inotify | None = None
        self._room = select.epoll()
        self._waits = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Look when there is something, on the running loop."""
        self._loop = asyncio.get_running_loop()
        try:
            self._inotify = Inotify(self._directory)
        except OSError as error:
            logger.warning("workers' output is looked for ten times a second, since inotify fails: %s", error)
        self._poll()

    def stop(self) -> None:
        """Show what is left, and look no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._sleep()
        deadline = time.monotonic() + FORWARDER_SHUTDOWN_GRACE_S
        self._following.poll(self._take)
        while self._unsent and time.monotonic() < deadline:
            self._write(FORWARD_POLL_INTERVAL_S)
        self._following.close()
        self._room.close()
        if self._inotify is not None:
            self._inotify.close()

    def leave_out(self, line: bytes) -> None:
        """That line is about to be written to a file by this process; its readers have been told already."""
        self._told.add(line)

    def _poll(self) -> None:
        """Show what has come. What can't be read now is read at the next look: nothing but a look leads to another one."""
        self._sleep()
        with self._guard("the workers' output can't be shown"):
            if self._inotify is not None:
                self._inotify.clear()
            self._following.poll(self._take)
        self._write_pending()

    def _write_pending(self) -> None:
        """Write what is unsent; then wait for room, or for the end of a pause."""
        assert self._loop is not None
        self._wait_no_more()
        self._write()
        if self._unsent:
            with contextlib.suppress(OSError):  # a file: it isn't full, only our turn was over
                self._room.register(self._fd, select.EPOLLOUT)
                self._waits = True
                self._loop.add_reader(self._room.fileno(), self._write_pending)
                return
        self._timer = self._loop.call_later(
            FORWARD_POLL_INTERVAL_S, self._write_pending if self._unsent else self._rest
        )

    def _rest(self) -> None:
        """Wait for more, unless there is reason to look anyway."""
        assert self._loop is not None
        if self._inotify is None or self._following.pending or self._guard.is_failing():
            self._poll()
        else:
            self._loop.add_reader(self._inotify.fileno(), self._poll)

    def _sleep(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._wait_no_more()
            if self._inotify is not None:
                self._loop.remove_reader(self._inotify.fileno())

    def _wait_no_more(self) -> None:
        assert self._loop is not None
        if self._waits:
            self._waits = False
            self._loop.remove_reader(self._room.fileno())
            self._room.unregister(self._fd)

    def _take(self, log: str, line: bytes) -> None:
        whole = line + b"\n"
        if whole in self._told:
            self._told.remove(whole)
        else:
            self._unsent += whole

    def _write(self, patience: float = 0.0) -> None:
        """Write for a turn, as much as is taken at once; wait so many seconds for who takes nothing."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        deadline = time.monotonic() + FORWARD_TURN_S
        sent = 0
        try:
            while sent < len(self._unsent) and poll.poll(patience * 1000) and time.monotonic() < deadline:
                sent += os.write(self._fd, memoryview(self._unsent)[sent : sent + select.PIPE_BUF])
        except BlockingIOError:
            pass  # somebody has made it non-blocking, and took the room that there was
        except OSError:  # nobody reads any more; there are the files
            sent = len(self._unsent)
        del self._unsent[:sent]


def _report(text: str, detail: str) -> None:
    logger.warning("%s", text)
    if detail:
        logger.error("%s", detail)
