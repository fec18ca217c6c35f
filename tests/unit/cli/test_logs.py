"""`cluster2 logs`: the end of logs, and what follows, whatever becomes of the files meanwhile."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result

from cluster2.cli import cli
from cluster2.linux import log_files
from cluster2.linux.log_tailer import MAX_ABSENT_POLLS, MAX_PARTIAL_LINE_POLLS, LogTailer
from tests.unit.cli.test_cli import runner


class Shown(list[tuple[str, str]]):
    """What `Following` shows."""

    def __init__(self, directory: Path, named: str | None = None, lines: int = 10) -> None:
        super().__init__()
        self.following = LogTailer(str(directory), named, lines)

    def look(self, times: int = 1) -> list[str]:
        """The lines that are new."""
        before = len(self)
        for _ in range(times):
            self.following.poll(lambda log, line: self.append((log, line.decode())))
        return [line for _, line in self[before:]]


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Shown]:
    shown = Shown(tmp_path)
    yield shown
    shown.following.close()


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def rotate(directory: Path, name: str) -> None:
    """As the logbook does it."""
    ages = sorted((int(each.suffix[1:]) for each in directory.glob(f"{name}.*")), reverse=True)
    for age in ages:
        (directory / f"{name}.{age}").rename(directory / f"{name}.{age + 1}")
    (directory / name).rename(directory / f"{name}.1")
    (directory / name).touch()


def test_all_logs_are_followed(shown: Shown, tmp_path: Path) -> None:
    """First the end of each, then what comes, also in files that are made later."""
    add(tmp_path / "master.log", "1\n2\n")
    add(tmp_path / "master.log.1", "0\n")
    assert shown.look() == ["1", "2"]
    add(tmp_path / "worker.7.log", "a\n")
    add(tmp_path / "master.log", "3\n")
    assert sorted(shown.look()) == ["3", "a"]
    assert shown[-1][0] == "worker.7.log"
    assert shown.look() == []


def test_rotation_loses_and_doubles_nothing(shown: Shown, tmp_path: Path) -> None:
    """What is written to the old file after its rotation comes as well, and before what stands in the new one."""
    log = tmp_path / "worker.0.log"
    log.touch()
    assert shown.look() == []
    with log.open("a", buffering=1) as late:
        late.write("1\n")
        rotate(tmp_path, "worker.0.log")
        late.write("2\n")
        add(log, "3\n")
        assert shown.look() == ["1", "2", "3"]
        rotate(tmp_path, "worker.0.log")
        late.write("4\n")
        add(log, "5\n")
        rotate(tmp_path, "worker.0.log")
        add(log, "6\n")
        assert shown.look() == ["4", "5", "6"]
    (tmp_path / "worker.0.log.3").unlink()
    assert shown.look() == []


def test_a_rotation_in_the_middle_of_a_look(shown: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that has become another file's between listing and opening costs nothing: a file isn't told by its name."""
    log, found = tmp_path / "worker.0.log", log_files.log_files
    add(log, "1\n")
    rotate(tmp_path, "worker.0.log")
    add(log, "2\n")
    assert shown.look() == ["2"]

    def meanwhile(directory: str) -> list[log_files.Found]:
        before = found(directory)
        rotate(tmp_path, "worker.0.log")
        return before

    monkeypatch.setattr(log_files, "log_files", meanwhile)
    add(log, "3\n")
    assert shown.look() == ["3"]
    monkeypatch.undo()
    add(log, "4\n")
    assert shown.look() == ["4"]


def test_a_file_that_is_cut_is_read_from_its_beginning(shown: Shown, tmp_path: Path) -> None:
    """As `> worker.0.log` in a shell does it, or copytruncate."""
    log = tmp_path / "worker.0.log"
    add(log, "one\ntwo\nhal")
    assert shown.look() == ["one", "two"]
    os.truncate(log, 0)
    assert shown.look() == ["hal"]
    add(log, "new\n")
    assert shown.look() == ["new"]


def test_the_beginning_of_a_line(shown: Shown, tmp_path: Path) -> None:
    """It waits for its end, but not for ever: last words may have none."""
    log = tmp_path / "worker.0.log"
    add(log, "par")
    assert shown.look() == []
    add(log, "tial\nlast wor")
    assert shown.look() == ["partial"]
    assert shown.look(MAX_PARTIAL_LINE_POLLS) == ["last wor"]
    assert shown.look(MAX_PARTIAL_LINE_POLLS) == []
    add(log, "ds\n")
    assert shown.look() == ["ds"]


def test_a_line_without_an_end_is_bounded(shown: Shown, tmp_path: Path) -> None:
    """Garbage without newlines is shown in pieces."""
    (tmp_path / "worker.0.log").touch()
    shown.look()
    add(tmp_path / "worker.0.log", "x" * 3_000_000)
    pieces = shown.look(MAX_PARTIAL_LINE_POLLS + 1)
    assert len(pieces) > 2
    assert "".join(pieces) == "x" * 3_000_000


def test_files_that_left_are_let_go(shown: Shown, tmp_path: Path) -> None:
    """One that was removed at once, one that was moved away when nothing has come for long."""
    add(tmp_path / "master.log", "1\n")
    add(tmp_path / "worker.0.log", "2\n")
    assert len(shown.look()) == 2
    with (tmp_path / "master.log").open("a", buffering=1) as writer:
        (tmp_path / "worker.0.log").unlink()
        (tmp_path / "master.log").rename(tmp_path / "away")
        shown.look()
        assert len(shown.following._open) == 1
        writer.write("3\n")
        assert shown.look() == ["3"]
    shown.look(MAX_ABSENT_POLLS)
    assert not shown.following._open


def test_one_log_is_followed(tmp_path: Path) -> None:
    """Others aren't."""
    one = Shown(tmp_path, "worker.0.log", 1)
    add(tmp_path / "master.log", "no\n")
    add(tmp_path / "worker.0.log", "1\n2\n")
    assert one.look() == ["2"]
    rotate(tmp_path, "worker.0.log")
    add(tmp_path / "worker.0.log", "3\n")
    assert one.look() == ["3"]
    one.following.close()


def call(directory: Path, *arguments: str) -> Result:
    return runner().invoke(cli, ["logs", "--logs", str(directory), *arguments], catch_exceptions=False)


def test_the_end_of_logs_is_shown(tmp_path: Path) -> None:
    """Of all, each line with the name of its log; of one without; as JSON with both; bytes that aren't UTF-8 as what they are."""
    add(tmp_path / "master.log", "".join(f"{each}\n" for each in range(20)))
    (tmp_path / "worker.3.log").write_bytes(b"a\xff\x1b[31m\nno end")
    assert call(tmp_path, "-n", "2").stdout.splitlines() == [
        "master     | 18",
        "master     | 19",
        "worker.3   | a\\xff\x1b[31m",
        "worker.3   | no end",
    ]
    assert call(tmp_path, "master", "-n", "1").stdout == "19\n"
    assert call(tmp_path, "3", "-n", "1").stdout == "no end\n"
    told = [json.loads(line) for line in call(tmp_path, "worker.3", "--json").stdout.splitlines()]
    assert told == [
        {"log": "worker.3.log", "line": "a\\xff\x1b[31m"},
        {"log": "worker.3.log", "line": "no end"},
    ]


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    """The directory, and what is there instead."""
    add(tmp_path / "master.log", "1\n")
    result = call(tmp_path, "worker.9")
    assert result.exit_code == 2
    assert f"logs = {tmp_path}: worker.9.log isn't there; there are: master.log" in result.stderr
    assert "no log files" in call(tmp_path / "none").stderr
    assert call(tmp_path, "../master").exit_code == 2
