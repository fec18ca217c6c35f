"""What becomes of a periodic step that fails: it is reported once for each cause, and the loop goes on."""

from __future__ import annotations

import errno

import pytest

from cluster2.errors import ConfigError
from cluster2.runtime.step_guard import REPORT_INTERVAL_S, StepGuard, reason

EMFILE = OSError(errno.EMFILE, "Too many open files", "/proc/1/stat")


class Log:
    """A guard, its clock, and what it has reported."""

    def __init__(self) -> None:
        self.now = 0.0
        self.said: list[tuple[str, str]] = []
        self.guard = StepGuard(lambda text, detail: self.said.append((text, detail)), lambda: self.now)

    def run(self, error: BaseException | None = None, step: str = "the step") -> bool:
        """Run a step that fails in this way; whether it has failed."""
        with self.guard(step) as run:
            if error is not None:
                raise error
        return run.failed


def test_once_for_each_cause() -> None:
    """A failure is reported when it begins, not again while it lasts; another cause is reported, too."""
    log = Log()
    assert log.run(EMFILE)
    assert log.run(EMFILE)
    assert [text for text, _ in log.said] == ["the step: Too many open files: /proc/1/stat; it is tried again"]
    assert log.run(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert log.run(EMFILE, "another step")
    assert len(log.said) == 3


def test_again_after_it_has_worked() -> None:
    """A failure that comes and goes is reported again, but not more often than once a minute."""
    log = Log()
    for _ in range(10):
        log.run(EMFILE)
        assert not log.run()
    assert len(log.said) == 1
    log.now = REPORT_INTERVAL_S
    log.run(EMFILE)
    assert len(log.said) == 2


def test_what_has_a_traceback() -> None:
    """A refusal of the system, or of an option, is one line; a fault of ours comes with its traceback."""
    log = Log()
    log.run(ConfigError("a bad option"))
    log.run(KeyError("fault"))
    assert log.said[0] == ("the step: a bad option; it is tried again", "")
    text, detail = log.said[1]
    assert text == "the step: KeyError: 'fault'; it is tried again"
    assert "Traceback" in detail
    assert "test_step_guard.py" in detail


def test_what_passes() -> None:
    """An interrupt leaves the step."""
    with pytest.raises(KeyboardInterrupt):
        Log().run(KeyboardInterrupt())


def test_reasons() -> None:
    """The reason is the system's text, without its number."""
    assert reason(OSError(errno.EMFILE, "Too many open files")) == "Too many open files"
    assert reason(OSError("told by the zygote")) == "told by the zygote"
    assert reason(ValueError("bad")) == "bad"
