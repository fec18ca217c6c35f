"""What can go wrong, and the exit code that says so.

Every error that a user can cause is a `ClusterError`: its text is one line that names the thing, where it came from and the
way out; its `exit_code` is part of the contract of the command line (see `docs/signals.md`).
"""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType
from typing import ClassVar

_OURS = (f"{Path(__file__).parent}/", "<frozen importlib")
_MACHINERY = ("/importlib/__init__.py", "/pkgutil.py")


_MAX_QUOTED_CHARS = 500
"""Characters of an error's text that a message repeats."""


class ClusterError(Exception):
    """The base of all errors that cluster2 raises on purpose.

    Attributes:
        exit_code: what a command that ends with this error returns to the shell.
        detail: more than one line, shown below the message where there is room for it (the traceback of the app's own
            import, for one); empty where there is none.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class UsageError(ClusterError):
    """The command was called in a way that it doesn't have."""

    exit_code = 2


class AppError(ClusterError):
    """The app can't be imported, isn't an app, or failed to start."""

    exit_code = 3


class AddressInUse(ClusterError):
    """Somebody else listens on an address that we were told to bind."""

    exit_code = 4


class ConfigError(ClusterError):
    """An option has a value that can't be used, or that the engine can't honour."""

    exit_code = 5


class NotRunning(ClusterError):
    """No master is running on that pids directory."""

    exit_code = 6


class AlreadyRunning(ClusterError):
    """A master is running on that pids directory."""

    exit_code = 7


class NoAnswer(ClusterError):
    """A master is there, but it didn't answer, or not in time."""


class DelegateError(ClusterError):
    """Delegated work failed: its handler raised, there is none, or nobody is there to do it.

    Attributes:
        type: the name of the type of what was raised.
        traceback: of what was raised, as text; "" where there is none.
    """

    def __init__(self, message: str, *, type: str = "", traceback: str = "") -> None:
        super().__init__(message, detail=traceback)
        self.type = type
        self.traceback = traceback


class DelegateTimeout(DelegateError, TimeoutError):
    """No answer came in time."""


class ChannelFull(ClusterError):
    """The master takes less than this worker says: so much waits already that no more is accepted."""


class NotAWorker(ClusterError, RuntimeError):
    """What only a worker can do was asked of another process."""


def as_cluster_error(error: BaseException) -> ClusterError:
    """Return an error of ours as it is, and any other as one that names its type and has its traceback as `detail`."""
    if isinstance(error, ClusterError):
        return error
    return ClusterError(one_line(error), detail="".join(traceback.format_exception(error)).rstrip())


def one_line(error: BaseException) -> str:
    """Return an error's kind and the first line of its text, for a message of one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:_MAX_QUOTED_CHARS]}" if text else type(error).__name__


def raised_in(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """Return what a logger takes as `exc_info`, with the traceback from the first frame of the user's code on.

    The frames before it are ours and those of the import machinery. They tell nothing about an error in a function of the user's.
    """
    first: TracebackType | None = error.__traceback__
    while first is not None and _is_ours(first.tb_frame.f_code.co_filename):
        first = first.tb_next
    return type(error), error, first


def trace(error: BaseException) -> str:
    """Return the traceback of an error in the user's code from its first frame on.

    It is empty if nothing of the user's code ran and the error's text is one line, as that of a module that isn't there: the
    message says all of that.
    """
    kind, value, first = raised_in(error)
    lines = traceback.format_exception(kind, value, first)
    return "" if first is None and len(lines) == 1 else "".join(lines).rstrip()


def _is_ours(filename: str) -> bool:
    return filename.startswith(_OURS) or filename.endswith(_MACHINERY)


def by_exit_code(code: int, message: str, *, detail: str = "") -> ClusterError:
    """The error of the kind that has this exit code; it has crossed a wire."""
    kinds: dict[int, type[ClusterError]] = {kind.exit_code: kind for kind in _KINDS}
    return kinds.get(code, ClusterError)(message, detail=detail)


_KINDS = (ClusterError, UsageError, AppError, AddressInUse, ConfigError, NotRunning, AlreadyRunning)
