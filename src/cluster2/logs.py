"""How processes of a cluster write their log: one line an event, as text or as JSON, on standard error.

That may be a file (`kernel.logfiles`); who logs needn't know.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import msgspec

from .settings import Settings

_OURS = ("cluster2", "uvicorn", "granian", "_granian")
_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


_copies: list[Callable[[bytes], None]] = []


def copy_to(write: Callable[[bytes], None]) -> None:
    """Have all lines of this process's log given to that as well, from the next `configure` on, for as long as it lives."""
    _copies.append(write)


def copy_no_more(write: Callable[[bytes], None]) -> None:
    """Take back `copy_to`."""
    _copies.remove(write)


def configure(settings: Settings) -> None:
    """Set up our loggers and the engines'. The app's own logging is the app's: the root logger isn't touched."""
    handlers: list[logging.Handler] = [logging.StreamHandler(), *(_Copy(write) for write in _copies)]
    for each in handlers:
        each.setFormatter(_formatter(settings))
    level = settings.log_level.upper()
    for name in _OURS:
        log = logging.getLogger(name)
        log.handlers[:] = handlers
        log.setLevel(level)
        log.propagate = False
    # What engines say at info is about a start and a stop that we announce ourselves.
    for name in ("uvicorn.error", "_granian"):
        logging.getLogger(name).setLevel("DEBUG" if level == "DEBUG" else max(logging.WARNING, _number(level)))
    for name in ("uvicorn.access", "granian.access"):
        access = logging.getLogger(name)
        access.handlers[:], access.propagate = [], True  # where an engine has switched it off, in this very process
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
