"""Run the periodic steps of a process so that one that fails neither ends the loop nor fills the log.

A process that supervises or serves does many small things now and then: it measures memory, rotates a log, looks whether a file
was renamed. Each of them can fail for a moment, when descriptors (EMFILE), memory (ENOMEM) or the disk (ENOSPC) have run out, and
works again when they are back. An exception that leaves the step would end the loop, and with it all else that the loop does.

This module uses the standard library only, since the keeper is executed without site-packages.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from types import TracebackType

from ..errors import ClusterError

REPORT_INTERVAL_S = 60.0
"""Seconds before the same failure of a step that works in between is reported again."""

Report = Callable[[str, str], None]
"""Takes one line, and the traceback if the failure is not the system's (else "")."""


class StepGuard:
    """Reports what fails in a step, once for each cause until the step works again, and lets the caller go on.

    It is used as `with guard("the memory of this worker"): row.memory = resident_memory()`.
    """

    def __init__(self, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._clock = clock
        self._steps: dict[str, _Step] = {}
        self._failing: set[str] = set()
        self._reported: dict[str, tuple[str, float]] = {}

    def __call__(self, name: str) -> _Step:
        """Return the context in which the step of that name runs; it ends each Exception, but no KeyboardInterrupt."""
        step = self._steps.get(name)
        if step is None:
            step = self._steps[name] = _Step(self, name)
        return step

    def failed(self, name: str, error: Exception, then: str = "it is tried again") -> None:
        """Report that a step has failed, and what follows, unless that is known."""
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
        """Note that a step has worked: its next failure is news."""
        self._failing.discard(name)


class _Step:
    """One step of a guard, as a context manager: a generator's costs five times as much."""

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
    """Return what an error says, as the end of a sentence: without the error's number, with the file's name."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
