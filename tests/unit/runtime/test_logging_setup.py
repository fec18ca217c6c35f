"""Log lines, as text and as JSON."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster2.config.settings import Settings
from cluster2.core.token_bucket import LINES_INTERVAL_S, LINES_PER_INTERVAL
from cluster2.runtime import logging_setup

pytestmark = pytest.mark.usefixtures("own_process")


def configured(monkeypatch: pytest.MonkeyPatch, **options: object) -> io.StringIO:
    """Set up the loggers so that they write into a buffer."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logging_setup.configure(Settings(**options))  # type: ignore[arg-type]
    return stream


def test_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line has the local time with milliseconds, the pid, the level and the text."""
    stream = configured(monkeypatch)
    logging.getLogger("cluster2.master").warning("%d are gone", 3)
    line = rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{3}} \[{os.getpid()}\] warning 3 are gone\n"
    assert re.fullmatch(line, stream.getvalue())


def test_text_with_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback stands below its line."""
    stream = configured(monkeypatch)
    try:
        raise KeyError("name")
    except KeyError:
        logging.getLogger("cluster2.worker").exception("it failed")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("error   it failed")
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-1] == "KeyError: 'name'"


def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line is one object with the facts, what `extra` gave, and the exception."""
    stream = configured(monkeypatch, log_format="json")
    log = logging.getLogger("cluster2.tcp")
    log.info("two\nlines", extra={"slot": 3, "odd": object, "nested": {"a": [1, None]}})
    try:
        raise KeyError("name")
    except KeyError:
        log.exception("it failed")
    one, two = map(json.loads, stream.getvalue().splitlines())
    assert (one["level"], one["logger"], one["message"]) == ("info", "cluster2.tcp", "two\nlines")
    assert (one["pid"], one["slot"], one["odd"], one["nested"]) == (os.getpid(), 3, str(object), {"a": [1, None]})
    assert abs(one["time"] - two["time"]) < 60
    assert "exception" not in one
    assert two["exception"].endswith("KeyError: 'name'")


@pytest.mark.parametrize("form", ["text", "json"])
def test_text_that_is_not_unicode(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """A file name that isn't UTF-8 (a lone surrogate in Python's eyes) costs neither the line nor the next one."""
    stream = configured(monkeypatch, log_format=form)
    logging.getLogger("cluster2.worker").warning("file %s", os.fsdecode(b"a\xff"), extra={"odd": {(1, 2): 2**70}})
    logging.getLogger("cluster2.worker").warning("next")
    first, second = stream.getvalue().splitlines()
    assert "file a" in first
    assert "next" in second


@pytest.mark.parametrize(
    ("level", "shown"),
    [("debug", {"debug", "info", "warning"}), ("info", {"info", "warning"}), ("error", set[str]())],
)
def test_levels(monkeypatch: pytest.MonkeyPatch, level: str, shown: set[str]) -> None:
    """`log_level` says what is shown of ours."""
    stream = configured(monkeypatch, log_level=level)
    for each in ("debug", "info", "warning"):
        getattr(logging.getLogger("cluster2.any"), each)(each)
    assert {line.split()[-1] for line in stream.getvalue().splitlines()} == shown


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn.error", "uvicorn.access"])
def test_loggers_that_apps_use_by_habit(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What an app says by a logger of uvicorn's is written as it would be there."""
    stream = configured(monkeypatch)
    logging.getLogger(name).info("by habit")
    assert stream.getvalue().count("by habit") == 1


def test_the_apps_logging_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The root logger isn't touched, nothing of ours reaches it, and a second call doesn't double the lines."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    configured(monkeypatch)
    stream = configured(monkeypatch)
    assert (root.handlers, root.level) == before
    logging.getLogger("cluster2.master").warning("once")
    assert stream.getvalue().count("once") == 1


def test_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that nobody empties holds up no master; when somebody reads again he is told how much was left out."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    log = logging.getLogger("cluster2.master")
    with open(reader, "rb", buffering=0) as read, open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        logging_setup.configure(Settings(), waits=False)
        for number in range(3000):
            log.warning("%d is %s", number, "x" * 99)
        taken = b"".join(iter(lambda: read.read(1 << 16), None))
        log.warning("the last one")
        told = read.read(1 << 16)
    whole = [line for line in taken.splitlines() if line.endswith(b"x" * 99)]
    assert told is not None
    assert re.match(
        rf"\n?\.\.\. lines left out, since standard error was blocked: {3000 - len(whole)}\n.* the last one\n$",
        told.decode(),
    )


def flood(name: str, count: int, level: int = logging.WARNING, text: str = "%d") -> None:
    """So many lines of a kind."""
    for number in range(count):
        logging.getLogger(name).log(level, text, number)


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """That of the limit, which has seen nothing yet."""
    clock = Clock()
    monkeypatch.setattr(logging_setup, "_limit", logging_setup.RateLimit(clock))
    return clock


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_flood(monkeypatch: pytest.MonkeyPatch, clock: Clock, form: str) -> None:
    """Of lines that others cause a few pass at once, then one a second, which tells how many were left out; copies count once."""
    copied: list[bytes] = []
    logging_setup.copy_to(copied.append)
    try:
        stream = configured(monkeypatch, log_format=form)
        flood("cluster2.http", 1000)
        assert len(stream.getvalue().splitlines()) == LINES_PER_INTERVAL
        assert "_cluster2" not in stream.getvalue()
        clock.now = LINES_INTERVAL_S
        flood("cluster2.http", 5)
        lines = stream.getvalue().splitlines()
        assert len(lines) == len(copied) == LINES_PER_INTERVAL + 1
        assert f"0 ({1000 - LINES_PER_INTERVAL} more like this were left out)" in lines[-1]
        clock.now = 100 * LINES_INTERVAL_S
        flood("cluster2.http", 2)
        assert len(stream.getvalue().splitlines()) == LINES_PER_INTERVAL + 3
    finally:
        logging_setup.copy_no_more(copied.append)


def test_kinds_of_lines(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """A flood hides no line of another kind: another text, another logger, or an exception from another place."""
    stream = configured(monkeypatch)

    def one() -> None:
        raise KeyError("one")

    def other() -> None:
        raise KeyError("other")

    def failing(raiser: Callable[[], None]) -> None:
        try:
            raiser()
        except KeyError as error:
            logging.getLogger("cluster2.wsgi").error("%s raised", "GET /", exc_info=error)

    flood("cluster2.http", 100)
    flood("cluster2.http", 1, text="another %d")
    flood("cluster2.tcp", 1)
    for _ in range(100):
        failing(one)
    failing(other)
    said = stream.getvalue()
    assert (said.count("another 0"), said.count("KeyError: 'one'"), said.count("KeyError: 'other'")) == (
        1,
        LINES_PER_INTERVAL,
        1,
    )
    assert len(re.findall(r"warning 0$", said, re.MULTILINE)) == 2


def test_what_is_not_bounded(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """What the master tells of its workers, and what an app logs itself, passes whole, and so does what is only information."""
    stream = configured(monkeypatch)
    for name, level in (
        ("cluster2.processes.master", logging.WARNING),
        ("uvicorn.error", logging.ERROR),
        ("cluster2.http", logging.INFO),
    ):
        flood(name, 100, level)
    assert len(stream.getvalue().splitlines()) == 300


def test_kinds_without_end(clock: Clock) -> None:
    """Texts that are made up anew each time cost no memory without end."""
    limit = logging_setup.RateLimit(clock)
    for number in range(3 * logging_setup.MAX_RATE_LIMITED_KINDS):
        limit.filter(logging.LogRecord("cluster2.http", logging.ERROR, "", 0, f"text {number}", None, None))
    assert len(limit._kinds) <= logging_setup.MAX_RATE_LIMITED_KINDS


def test_loggers_that_an_app_does_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app's `dictConfig`, which disables existing loggers, leaves ours alone, before and after they are configured."""
    quiet = {"version": 1, "root": {"level": "INFO"}}
    logging.config.dictConfig(quiet)
    stream = configured(monkeypatch)
    logging.config.dictConfig(quiet)
    for name in logging_setup.KEPT_LOGGERS:
        logging.getLogger(name).error("from %s", name)
    for name in logging_setup.KEPT_LOGGERS:
        assert f"from {name}\n" in stream.getvalue()


def test_an_app_may_configure_our_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that `dictConfig` names is as the app wants it."""
    stream = configured(monkeypatch)
    logging.config.dictConfig({"version": 1, "loggers": {"cluster2.http": {"level": "CRITICAL"}}})
    logging.getLogger("cluster2.http").error("not wanted")
    assert stream.getvalue() == ""
    logging.getLogger("cluster2.http").setLevel(logging.NOTSET)


def test_all_loggers_are_kept() -> None:
    """Each logger that the package makes is among those that an app doesn't silence."""
    package = Path(logging_setup.__file__).parent
    made = re.findall(
        r"getLogger\(\"((?:cluster2|_?granian)[\w.]*)\"\)", "".join(path.read_text() for path in package.rglob("*.py"))
    )
    assert set(made) <= set(logging_setup.KEPT_LOGGERS)
