"""What a worker writes: its output, which is a file of its slot, and the access log.

With `log_to = files` the descriptors 1 and 2 become the slot's file before the worker does anything, so that whatever it, its
libraries or its children say is there, up to a crash's last words. The pid stands in the line that the worker begins with, in
each line of our own, and in the one that the master writes below it all (`master.logbook: ended`).

What Python's streams take is written with the line that it ends. If the disk is full it is lost, and nobody notices: a `print`
that raises would fail a request, which is worse than a line that is missing.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import io
import logging
import os
import sys
from typing import Any

from ...config.settings import Settings
from ...engines.access_log import AccessLog, GranianLogHandler
from ...linux import log_files
from ...linux.log_files import ReopeningFile
from ...runtime import logging_setup

logger = logging.getLogger("cluster2.worker")

STDOUT, _STDERR = 1, 2
DISCARDED_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
"""A disk that is full or broken."""


class WorkerOutput:
    """What is written, and where to.

    Attributes:
        access: None: requests aren't logged.
    """

    def __init__(self, settings: Settings, directory: str, slot: int, *, output: bool = True) -> None:
        """Nothing is opened yet.

        Args:
            directory: of log files; "": all goes to standard error.
            output: whether descriptors 1 and 2 shall be the slot's file.
        """
        self._failed: dict[str, str] = {}
        path = os.path.join(directory, log_files.worker(slot))
        self._output = ReopeningFile(path, 1, _STDERR) if directory and output else None
        self._requests: ReopeningFile | None = None
        self.access: AccessLog | None = None
        if settings.access_log:
            self._requests = ReopeningFile(os.path.join(directory, log_files.ACCESS_LOG)) if directory else None
            self.access = AccessLog(slot, settings.log_format == "json", self._write)
            granians = logging.getLogger("granian.access")
            granians.handlers[:], granians.propagate = [GranianLogHandler(self.access)], False

    def redirect(self, generation: int, slot: int) -> None:
        """Be this process's output from now on."""
        if not faulthandler.is_enabled():
            faulthandler.enable(_STDERR)
        self.reopen_if_moved()
        if self._output is None:
            return
        for number, name in ((STDOUT, "stdout"), (_STDERR, "stderr")):
            _replace(name, number)
        begins = logging_setup.line(
            f"worker {os.getpid()} begins (slot {slot}, generation {generation})", slot=slot, generation=generation
        )
        try:
            log_files.write_all(_STDERR, begins)
        except OSError as error:
            self._complain("its log", error)

    def tick(self) -> None:
        """Write the lines that have come together."""
        if self.access is not None:
            self.access.flush()

    def reopen_if_moved(self) -> None:
        """See whether files were rotated."""
        for each in (self._output, self._requests):
            if each is not None:
                try:
                    each.reopen_if_moved()
                    self._failed.pop(each.path, None)
                except OSError as error:
                    self._complain(each.path, error)

    def _write(self, data: bytes) -> None:
        """A log that can't be written is no reason to answer nobody."""
        fd = _STDERR if self._requests is None else self._requests.fd
        if fd >= 0:
            try:
                log_files.write_all(fd, data)
            except OSError as error:
                self._complain("access log", error)

    def _complain(self, what: str, error: OSError) -> None:
        if self._failed.get(what) != str(error):
            self._failed[what] = str(error)
            logger.warning("%s can't be written: %s", what, error.strerror)


class _Output(io.FileIO):
    """What a stream of Python writes to."""

    def write(self, data: Any) -> int:
        """Write, or lose."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in DISCARDED_ERRNOS:
                raise
            return memoryview(data).nbytes


def _replace(name: str, number: int) -> None:
    """Put a stream that writes each line at once, and never fails for a full disk, in place of `sys.stdout` or `sys.stderr`."""
    before = getattr(sys, name)
    if not isinstance(before, io.TextIOWrapper) or before.fileno() != number:
        return  # the app has put something of its own there
    with contextlib.suppress(OSError):
        before.flush()
    before.reconfigure(line_buffering=True)  # whoever has kept it
    stream = io.TextIOWrapper(
        io.BufferedWriter(_Output(number, "w", closefd=False)),
        encoding=before.encoding,
        errors=before.errors,
        line_buffering=True,
        write_through=before.write_through,
    )
    setattr(sys, name, stream)
