"""Run the periodic steps of a process so that a step that fails neither ends the loop nor fills the log.

A process has small periodic steps: it measures memory, rotates a log, checks whether a file was renamed. Each step can fail for a
while, when descriptors (EMFILE), memory (ENOMEM) or the disk (ENOSPC) have run out, and works again later. An exception that left
the step would end the loop with all its other steps.

This module uses the standard library only, since the keeper is executed without site-packages.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from types import TracebackType

from ..errors import ClusterError

REPORT_INTERVAL_S = 60.0
"""Seconds before a failure is reported again, if the step has worked in between."""

Report = Callable[[str, str], None]
"""Takes one line, and the traceback; "" if the operating system is the cause of the failure."""


class StepGuard:
    """Contains and reports the failures of steps: once for each cause, until the step works again.

    It is used as `with guard("the memory of this worker"): row.memory = resident_memory()`.
    """

    def __init__(self, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._clock = clock
        self._steps: dict[str, _Step] = {}
        self._failing: set[str] = set()
        self._reported: dict[str, tuple[str, float]] = {}

    def __call__(self, name: str) -> _Step:
        """Return the context for the step of that name. It contains any Exception, but not KeyboardInterrupt."""
        step = self._steps.get(name)
        if step is None:
            step = self._steps[name] = _Step(self, name)
        return step

    def failed(self, name: str, error: Exception, then: str = "it is tried again") -> None:
        """Report the failure of a step, unless it was reported before.

        Args:
            then: the end of the line, which says what follows.
        """
        number = error.errno if isinstance(error, OSError) else None
        cause = f"{type(error).__name__}: {number or error}"
        before, at = self._reported.get(name, ("", 0.0))
        now = self._clock()
        known = before == cause and (name in self._failing or now - at < REPORT_INTERVAL_S)
        self._failing.add(name)
        if known:
            return
        self._reported[name] = cause, now
        expected = isinstance(error, OSError | ClusterError)
        text = reason(error) if expected else f"{type(error).__name__}: {error}"
        detail = "" if expected else "".join(traceback.format_exception(error))
        self._report(f"{name}: {text}; {then}", detail)

    def is_failing(self) -> bool:
        """Return whether the last run of some step has failed."""
        return bool(self._failing)

    def worked(self, name: str) -> None:
        """Note that a step has worked, so that its next failure is reported."""
        self._failing.discard(name)


class _Step:
    """The context manager of one step. A generator with `contextlib.contextmanager` costs five times as much."""

    __slots__ = ("_guard", "_name", "failed")

    def __init__(self, guard: StepGuard, name: str) -> None:
        self._guard = guard
        self._name = name
        self.failed = False

    def __enter__(self) -> _Step:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.failed = isinstance(error, Exception)
        if error is None:
            self._guard.worked(self._name)
        elif isinstance(error, Exception):
            self._guard.failed(self._name, error)
        return self.failed


def reason(error: Exception) -> str:
    """Return the text of an error as the end of a sentence: without the error's number, with the file's name."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
