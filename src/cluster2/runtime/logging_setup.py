"""How processes of a cluster write their log: one line an event, as text or as JSON, on standard error.

That may be a file (`kernel.logfiles`); who logs needn't know.

*Floods.* A client or an app can cause as many requests, and so as many lines about them, as it likes: they would fill the disk,
and cost more than the requests. So lines of the loggers that tell of such things (`_CAUSED_OUTSIDE`) are bounded by `RateLimit`,
each kind by itself: the code that logs needn't care. What the app logs by loggers of its own is the app's business.
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
"""Loggers whose lines are ours to write. Apps log by `uvicorn`'s, out of habit."""
KEPT_LOGGERS = (
    "cluster2", "cluster2.app", "cluster2.granian", "cluster2.http", "cluster2.http.websocket.library", "cluster2.lifespan",
    "cluster2.master", "cluster2.monitor", "cluster2.tcp", "cluster2.worker", "cluster2.wsgi", "cluster2.zygote",
    "granian", "granian.access", "_granian",
)  # fmt: skip
"""Loggers that an app doesn't silence by accident (`_KeptLogger`)."""
_CAUSED_OUTSIDE = (
    "cluster2.app", "cluster2.granian", "cluster2.http", "cluster2.monitor", "cluster2.tcp", "cluster2.worker", "cluster2.wsgi",
    "granian", "_granian", "asyncio",
)  # fmt: skip
"""Loggers that tell what clients and apps do. `cluster2.app` is the master's, for what apps do to it."""
_NUMBER = re.compile(r"0x[0-9a-f]+|[0-9]+")
_VERDICT = "_cluster2_passes"
"""The attribute of a record that has been through `RateLimit`: there are several handlers, and it counts once."""
_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", _VERDICT}

MAX_RATE_LIMITED_KINDS = 1000
"""Kinds that are remembered. Texts of clients and apps can make any number; beyond it all begin anew."""


class RateLimit(logging.Filter):
    """Bounds lines of one kind. The next line that passes says how many were left out.

    Of one kind are lines of a logger that differ only in their arguments and, with a traceback, were raised at the same place. So
    an error that comes with each request doesn't hide another one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing was logged yet."""
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
    """Return what lines of the same kind have in common."""
    text = str(record.msg).partition("\n")[0]
    if not record.args:  # a text that was put together before: asyncio names transports and tasks by their address
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
    # What engines say at info is about a start and a stop that we announce ourselves.
    logging.getLogger("_granian").setLevel("DEBUG" if level == "DEBUG" else max(logging.WARNING, _number(level)))
    access = logging.getLogger("granian.access")
    access.handlers[:], access.propagate = [], True  # where the engine has switched it off, in this very process
    access.setLevel("INFO")


class _KeptLogger(logging.Logger):
    """A logger that is never disabled.

    `logging.config.dictConfig` disables all loggers that exist and that it doesn't name, unless it is told not to. An app that
    configures its own logging would silence tracebacks, the access log, and in a script the master. An app that names one of
    our loggers has it as it wants it, and so has one that sets its level.
    """

    @property
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        pass


def _keep(logger: logging.Logger) -> None:
    if type(logger) is logging.Logger:  # else an app has a class of its own for loggers
        logger.__class__ = _KeptLogger


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
