"""Set up the logging of a cluster's processes: one line for each event, as text or as JSON, on standard error.

Standard error may be a file (`linux.log_files`). The code that logs doesn't depend on that.

*Floods.* A client or an app can cause any number of requests, and so any number of lines about them. These lines would fill the
disk, and cost more than the requests. So the lines of loggers that report on clients and apps (`_CAUSED_OUTSIDE`) are bounded by
`RateLimit`, each kind by itself. Lines that the app writes with its own loggers aren't bounded.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import select
import time
from collections.abc import Callable
from typing import Any

import msgspec

from ..config.settings import Settings
from ..core.token_bucket import TokenBucket

_OURS = ("cluster2", "uvicorn", "granian", "_granian")
"""The loggers that cluster2 configures. Apps use those of `uvicorn`, too, since they are used to it."""
KEPT_LOGGERS = (
    "cluster2", "cluster2.app", "cluster2.granian", "cluster2.http", "cluster2.http.websocket.library", "cluster2.lifespan",
    "cluster2.master", "cluster2.monitor", "cluster2.tcp", "cluster2.worker", "cluster2.wsgi", "cluster2.zygote",
    "granian", "granian.access", "_granian",
)  # fmt: skip
"""The loggers that an app can't silence by accident (`_KeptLogger`)."""
_CAUSED_OUTSIDE = (
    "cluster2.app", "cluster2.granian", "cluster2.http", "cluster2.monitor", "cluster2.tcp", "cluster2.worker", "cluster2.wsgi",
    "granian", "_granian", "asyncio",
)  # fmt: skip
"""The loggers that report on clients and apps. `cluster2.app` is the master's logger for faults of apps."""
_NUMBER = re.compile(r"0x[0-9a-f]+|[0-9]+")
_VERDICT = "_cluster2_passes"
"""The attribute of a record that has passed `RateLimit`. A record goes to several handlers, and must count once."""
_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", _VERDICT}

MAX_RATE_LIMITED_KINDS = 1000
"""The number of kinds that are remembered. Clients and apps can cause any number; above the bound all kinds begin anew."""


class RateLimit(logging.Filter):
    """A filter that bounds the lines of each kind. The next line that passes says how many were left out.

    Lines are of one kind if they are of the same logger, have the same text before arguments are inserted and, with a traceback,
    the same line that raised. So an error that every request causes doesn't hide another error.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Make a filter that has seen no line."""
        super().__init__()
        self._clock = clock
        self._kinds: dict[object, TokenBucket] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line passes."""
        verdict: bool | None = record.__dict__.get(_VERDICT)
        if verdict is None:
            verdict = record.levelno < logging.WARNING or not _is_caused_outside(record.name) or self._passes(record)
            record.__dict__[_VERDICT] = verdict
        return verdict

    def _passes(self, record: logging.LogRecord) -> bool:
        kind = _kind(record)
        if (allowance := self._kinds.get(kind)) is None:
            if len(self._kinds) >= MAX_RATE_LIMITED_KINDS:
                self._kinds.clear()
            allowance = self._kinds[kind] = TokenBucket()
        if not allowance.take(self._clock()):
            return False
        if allowance.refused:
            record.msg = f"{record.msg} ({allowance.refused} more like this were left out)"
            allowance.refused = 0
        return True


def _is_caused_outside(name: str) -> bool:
    return name in _CAUSED_OUTSIDE or name.startswith(("cluster2.http.", "granian.", "_granian."))


def _kind(record: logging.LogRecord) -> object:
    """Return the key of a line's kind."""
    text = str(record.msg).partition("\n")[0]
    if not record.args:  # a finished text: asyncio puts addresses of transports and tasks into its texts
        text = _NUMBER.sub("", text)
    raised = record.exc_info
    if not raised or raised[0] is None:
        return record.name, text
    at = raised[2]
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return record.name, text, raised[0], at and (at.tb_frame.f_code.co_filename, at.tb_lineno)


_limit = RateLimit()
_copies: list[Callable[[bytes], None]] = []


def copy_to(write: Callable[[bytes], None]) -> None:
    """Call `write` with each line of this process's log as well, from the next `configure` on."""
    _copies.append(write)


def copy_no_more(write: Callable[[bytes], None]) -> None:
    """Take back `copy_to`."""
    _copies.remove(write)


def configure(settings: Settings, *, waits: bool = True) -> None:
    """Set up our loggers and the engines'. The app's own logging is the app's: the root logger isn't touched.

    Args:
        waits: a line waits until standard error takes it. Otherwise a line that isn't taken at once is left out.
    """
    first: logging.Handler = logging.StreamHandler() if waits else _AtOnce()
    handlers = [first, *(_Copy(write) for write in _copies)]
    for each in handlers:
        each.setFormatter(_formatter(settings))
        each.addFilter(_limit)
    logging.getLogger("asyncio").addFilter(_limit)  # its lines go where the app's go
    level = settings.log_level.upper()
    for name in KEPT_LOGGERS:
        _keep(logging.getLogger(name))
    for name in _OURS:
        log = logging.getLogger(name)
        log.handlers[:] = handlers
        log.setLevel(level)
        log.propagate = False
    # At info, engines log their start and stop, which cluster2 logs itself.
    logging.getLogger("_granian").setLevel("DEBUG" if level == "DEBUG" else max(logging.WARNING, _number(level)))
    access = logging.getLogger("granian.access")
    access.handlers[:], access.propagate = [], True  # the engine may have switched it off in this process
    access.setLevel("INFO")


class _KeptLogger(logging.Logger):
    """A logger that is never disabled.

    `logging.config.dictConfig` disables all existing loggers that it doesn't name, unless `disable_existing_loggers` is false. So an
    app that configures its own logging would silence tracebacks, the access log, and in a script the master. An app can still
    configure one of these loggers by its name, or set its level.
    """

    @property
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        pass


def _keep(logger: logging.Logger) -> None:
    if type(logger) is logging.Logger:  # otherwise the app has its own class of loggers
        logger.__class__ = _KeptLogger


def line(text: str, level: int = logging.INFO, **extra: object) -> bytes:
    """Return a line in the format of our loggers, whatever `log_level` is.

    Args:
        extra: further fields of a JSON line.
    """
    record = logging.LogRecord("cluster2.log", level, "", 0, text, None, None)
    record.__dict__.update(extra)
    forms = (handler.formatter for handler in logging.getLogger("cluster2").handlers)
    form = (
        next((form for form in forms if isinstance(form, (_TextFormatter, _JsonFormatter))), None) or _TextFormatter()
    )
    return form.format(record).encode("utf-8", "backslashreplace") + b"\n"


def _formatter(settings: Settings) -> logging.Formatter:
    return _JsonFormatter() if settings.log_format == "json" else _TextFormatter()


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level]


class _AtOnce(logging.StreamHandler[Any]):
    """Writes only what standard error takes at once, so that a stopped terminal (^S) or a full pipe doesn't block the process.

    O_NONBLOCK is not set: the flag belongs to the open file description, so it would also change the user's shell. poll(2) reports
    when PIPE_BUF bytes can be written.
    """

    def __init__(self) -> None:
        super().__init__()
        self._left_out = 0
        self._cut = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fd = self.stream.fileno()
        except (AttributeError, OSError, ValueError):  # standard error was replaced by an object without a descriptor
            super().emit(record)
            return
        try:
            before = (
                f"{self._cut * chr(10)}... lines left out, since standard error was blocked: {self._left_out}\n"
                if self._left_out
                else ""
            )
            data = f"{before}{self.format(record)}\n".encode("utf-8", "backslashreplace")
            left = _write_at_once(fd, data)
        except Exception:
            self.handleError(record)
            return
        if len(left) < len(data):
            self._left_out, self._cut = 0, bool(left)
        self._left_out += bool(left)


def _write_at_once(fd: int, data: bytes) -> bytes:
    """Write as much as is taken without waiting, and return the rest. Raises OSError: the reading end is closed."""
    writable = select.poll()
    writable.register(fd, select.POLLOUT)
    with contextlib.suppress(BlockingIOError):  # another process has set O_NONBLOCK and filled the pipe since the poll
        while data and writable.poll(0):
            # Linux reports a pipe as writable when a whole page is free, and PIPE_BUF is a page: this write doesn't block.
            data = data[os.write(fd, data[: select.PIPE_BUF]) :]
    return data


class _Copy(logging.Handler):
    """Calls a function with each line."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(self.format(record).encode("utf-8", "backslashreplace") + b"\n")
        except Exception:
            self.handleError(record)


class _TextFormatter(logging.Formatter):
    """Formats a line as `2026-01-31 12:00:00.123 [pid] level  text`, in local time."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the traceback below it if there is one."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = record.levelname.lower()
        line = f"{stamp}.{int(record.msecs):03d} [{os.getpid()}] {level:<7} {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _JsonFormatter(logging.Formatter):
    """Formats a line as a JSON object: time (seconds since the epoch), pid, level, logger, message, fields of `extra`, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
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
