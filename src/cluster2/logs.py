"""How processes of a cluster write their log: one line an event, as text or as JSON, on standard error.

That may be a file (`kernel.logfiles`); who logs needn't know.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import time
from collections.abc import Callable
from typing import Any

import msgspec

from .settings import Settings

_OURS = ("cluster2", "uvicorn", "granian", "_granian")
"""Loggers whose lines are ours to write. Apps log by `uvicorn`'s, out of habit."""
_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


_copies: list[Callable[[bytes], None]] = []


def copy_to(write: Callable[[bytes], None]) -> None:
    """Have all lines of this process's log given to that as well, from the next `configure` on, for as long as it lives."""
    _copies.append(write)


def copy_no_more(write: Callable[[bytes], None]) -> None:
    """Take back `copy_to`."""
    _copies.remove(write)


def configure(settings: Settings, *, waits: bool = True) -> None:
    """Set up our loggers and the engines'. The app's own logging is the app's: the root logger isn't touched.

    Args:
        waits: whether a line waits for who reads standard error; else what isn't taken at once is left out.
    """
    first: logging.Handler = logging.StreamHandler() if waits else _AtOnce()
    handlers = [first, *(_Copy(write) for write in _copies)]
    for each in handlers:
        each.setFormatter(_formatter(settings))
    level = settings.log_level.upper()
    for name in _OURS:
        log = logging.getLogger(name)
        log.handlers[:] = handlers
        log.setLevel(level)
        log.propagate = False
    # What engines say at info is about a start and a stop that we announce ourselves.
    logging.getLogger("_granian").setLevel("DEBUG" if level == "DEBUG" else max(logging.WARNING, _number(level)))
    access = logging.getLogger("granian.access")
    access.handlers[:], access.propagate = [], True  # where the engine has switched it off, in this very process
    access.setLevel("INFO")


def line(text: str, level: int = logging.INFO, **extra: object) -> bytes:
    """A line as our loggers would write it, whatever `log_level` is.

    Args:
        extra: further fields of a JSON line.
    """
    record = logging.LogRecord("cluster2.log", level, "", 0, text, None, None)
    record.__dict__.update(extra)
    forms = (handler.formatter for handler in logging.getLogger("cluster2").handlers)
    form = next((form for form in forms if isinstance(form, (TextFormatter, JsonFormatter))), None) or TextFormatter()
    return form.format(record).encode("utf-8", "backslashreplace") + b"\n"


def _formatter(settings: Settings) -> logging.Formatter:
    return JsonFormatter() if settings.log_format == "json" else TextFormatter()


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level]


class _AtOnce(logging.StreamHandler[Any]):
    """Writes what standard error takes at once: a terminal that was stopped (^S), a pipe that nobody empties, holds nobody up.

    Not by O_NONBLOCK: that would be everybody's who has the same terminal. poll(2) says when PIPE_BUF can be written.
    """

    def __init__(self) -> None:
        super().__init__()
        self._left_out = 0
        self._cut = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fd = self.stream.fileno()
        except (AttributeError, OSError, ValueError):  # it is no file
            super().emit(record)
            return
        try:
            before = f"{self._cut * chr(10)}... lines that nobody took: {self._left_out}\n" if self._left_out else ""
            data = f"{before}{self.format(record)}\n".encode("utf-8", "backslashreplace")
            left = _write_at_once(fd, data)
        except Exception:
            self.handleError(record)
            return
        if len(left) < len(data):
            self._left_out, self._cut = 0, bool(left)
        self._left_out += bool(left)


def _write_at_once(fd: int, data: bytes) -> bytes:
    """Write what is taken without waiting; returns the rest. Raises OSError: nobody will read it."""
    room = select.poll()
    room.register(fd, select.POLLOUT)
    with contextlib.suppress(BlockingIOError):  # somebody has made it non-blocking, and took the room that there was
        while data and room.poll(0):
            data = data[os.write(fd, data[: select.PIPE_BUF]) :]
    return data


class _Copy(logging.Handler):
    """Gives each line to whoever wants it."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(self.format(record).encode("utf-8", "backslashreplace") + b"\n")
        except Exception:
            self.handleError(record)


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00.123 [pid] level  text`; local time."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with the traceback below it where there is one."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = record.levelname.lower()
        line = f"{stamp}.{int(record.msecs):03d} [{os.getpid()}] {level:<7} {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (seconds since the epoch), pid, level, logger, message, what `extra` gave, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        entry: dict[str, Any] = {
            "time": record.created,
            "pid": os.getpid(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in record.__dict__.items() if key not in _FIELDS}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(entry, enc_hook=str).decode()
        except (ValueError, TypeError, OverflowError):  # a lone surrogate (a file name that isn't UTF-8), an odd key
            return json.dumps(entry, default=str, skipkeys=True)
