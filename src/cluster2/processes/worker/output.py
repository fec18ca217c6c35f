"""The output of a worker: standard output and error, which are a file of its slot, and the access log.

With `log_to = files` the descriptors 1 and 2 become the slot's file before the worker does anything else. So the output of the
worker, its libraries and its children is there, including the last lines before a crash. The pid is in the line with which the
worker begins, in each line of cluster2's own, and in the line that the master writes at the end (`master.logs.directory`).

Python's streams write each line at its end. If the disk is full the line is lost without an error: a `print` that raised would
fail a request, which is worse than a missing line.
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
_DISCARDED_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
"""Errors of a disk that is full or broken."""


class WorkerOutput:
    """The log files of a worker.

    Attributes:
        access: the access log; None: requests aren't logged.
    """

    def __init__(self, settings: Settings, directory: str, slot: int, *, output: bool = True) -> None:
        """Prepare; `redirect` opens the files.

        Args:
            directory: the directory of log files; "": all output goes to standard error.
            output: whether descriptors 1 and 2 become the slot's file.
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
        """Redirect the output of this process to the files."""
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
            self._warn_once("its log", error)

    def tick(self) -> None:
        """Write the lines of the access log that have accumulated."""
        if self.access is not None:
            self.access.flush()

    def reopen_if_moved(self) -> None:
        """Reopen the files that were rotated."""
        for each in (self._output, self._requests):
            if each is not None:
                try:
                    each.reopen_if_moved()
                    self._failed.pop(each.path, None)
                except OSError as error:
                    self._warn_once(each.path, error)

    def _write(self, data: bytes) -> None:
        """Write lines of the access log. An error is logged, not raised: it must not fail requests."""
        fd = _STDERR if self._requests is None else self._requests.fd
        if fd >= 0:
            try:
                log_files.write_all(fd, data)
            except OSError as error:
                self._warn_once("access log", error)

    def _warn_once(self, file: str, error: OSError) -> None:
        if self._failed.get(file) != str(error):
            self._failed[file] = str(error)
            logger.warning("%s can't be written: %s", file, error.strerror)


class _Output(io.FileIO):
    """A file behind a Python stream that ignores the errors of a full disk."""

    def write(self, data: Any) -> int:
        """Write the data, or lose it if the disk is full."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _DISCARDED_ERRNOS:
                raise
            return memoryview(data).nbytes


def _replace(name: str, number: int) -> None:
    """Replace `sys.stdout` or `sys.stderr` by a stream that writes each line at once, and ignores the errors of a full disk."""
    before = getattr(sys, name)
    if not isinstance(before, io.TextIOWrapper) or before.fileno() != number:
        return  # the app has put something of its own there
    with contextlib.suppress(OSError):
        before.flush()
    before.reconfigure(line_buffering=True)  # the app may have kept a reference
    stream = io.TextIOWrapper(
        io.BufferedWriter(_Output(number, "w", closefd=False)),
        encoding=before.encoding,
        errors=before.errors,
        line_buffering=True,
        write_through=before.write_through,
    )
    setattr(sys, name, stream)
