"""The errors of cluster2, each with the exit code of a command that ends with it.

Every error that a user can cause is a `ClusterError`. Its text is one line with the thing, its source and the way out. Its
`exit_code` is part of the contract of the command line (`docs/signals.md`).
"""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType
from typing import ClassVar

_OURS = (f"{Path(__file__).parent}/", "<frozen importlib")
_MACHINERY = ("/importlib/__init__.py", "/pkgutil.py")


_MAX_QUOTED_CHARS = 500
"""The number of characters of an error's text that a message quotes."""


class ClusterError(Exception):
    """The base of all errors that cluster2 raises on purpose.

    Attributes:
        exit_code: the exit code of a command that ends with this error.
        detail: further lines, such as the traceback of the app's import, for outputs that can show them; "": none.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class UsageError(ClusterError):
    """The command was called with arguments that it doesn't have."""

    exit_code = 2


class AppError(ClusterError):
    """The app can't be imported, isn't an app, or has failed to start."""

    exit_code = 3


class AddressInUse(ClusterError):
    """Another process listens on an address that the options name."""

    exit_code = 4


class ConfigError(ClusterError):
    """An option has a value that can't be used, or that the engine doesn't support."""

    exit_code = 5


class NotRunning(ClusterError):
    """No master is running on that pids directory."""

    exit_code = 6


class AlreadyRunning(ClusterError):
    """A master is running on that pids directory."""

    exit_code = 7


class NoAnswer(ClusterError):
    """A master runs but did not respond, or not in time."""


class DelegateError(ClusterError):
    """Delegated work failed: the handler raised, there is no handler, or there is no master.

    Attributes:
        type: the name of the type of the exception.
        traceback: the traceback of the exception as text; "": there is none.
    """

    def __init__(self, message: str, *, type: str = "", traceback: str = "") -> None:
        super().__init__(message, detail=traceback)
        self.type = type
        self.traceback = traceback


class DelegateTimeout(DelegateError, TimeoutError):
    """The result of delegated work did not come in time."""


class ChannelFull(ClusterError):
    """The channel to the master is full: the worker sends more than the master reads."""


class NotAWorker(ClusterError, RuntimeError):
    """A function that works in workers only was called in another process."""


def as_cluster_error(error: BaseException) -> ClusterError:
    """Return a ClusterError as it is, and any other error as a ClusterError with its type, and its traceback as `detail`."""
    if isinstance(error, ClusterError):
        return error
    return ClusterError(one_line(error), detail="".join(traceback.format_exception(error)).rstrip())


def one_line(error: BaseException) -> str:
    """Return an error's type and the first line of its text, for a message of one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:_MAX_QUOTED_CHARS]}" if text else type(error).__name__


def raised_in(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """Return the `exc_info` of an error for a logger, with the traceback from the first frame of the user's code on.

    The frames before that one are of cluster2 and of the import machinery. They don't help with an error in a user's function.
    """
    first: TracebackType | None = error.__traceback__  # the outermost frame; tb_next leads towards the one that raised
    while first is not None and _is_ours(first.tb_frame.f_code.co_filename):
        first = first.tb_next
    return type(error), error, first


def trace(error: BaseException) -> str:
    """Return the traceback of an error in the user's code from its first frame on.

    It is empty if no code of the user ran and the error's text is one line, as for a module that doesn't exist: then the message
    says all of it.
    """
    kind, value, first = raised_in(error)
    lines = traceback.format_exception(kind, value, first)
    return "" if first is None and len(lines) == 1 else "".join(lines).rstrip()


def _is_ours(filename: str) -> bool:
    return filename.startswith(_OURS) or filename.endswith(_MACHINERY)


def by_exit_code(code: int, message: str, *, detail: str = "") -> ClusterError:
    """Make an error of the class that has this exit code, of one that another process has sent."""
    kinds: dict[int, type[ClusterError]] = {kind.exit_code: kind for kind in _KINDS}
    return kinds.get(code, ClusterError)(message, detail=detail)


_KINDS = (ClusterError, UsageError, AppError, AddressInUse, ConfigError, NotRunning, AlreadyRunning)
