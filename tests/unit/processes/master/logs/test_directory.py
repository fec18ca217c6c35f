"""The directory of logs: nothing is lost or doubled by rotation, and all together stay within a bound."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster2.errors import ConfigError
from cluster2.linux import log_files
from cluster2.linux.log_files import ReopeningFile
from cluster2.processes.master.logs.directory import (
    FAST_LOG_POLL_INTERVAL_S,
    LOG_POLL_INTERVAL_S,
    MIN_FILE_BYTES,
    WRITER_GONE_AFTER_S,
    LogDirectory,
)

SIZE = 8192
LINE = 64
STEPS = st.lists(st.tuples(st.sampled_from("abABK"), st.integers(1, 40)), max_size=150)
"""Which writer writes how many lines (a, b), which one checks (A, B), and when the directory is polled (K)."""


BURST = [("a", 40)] * 7 + [("K", 1)]
"""The file is larger than two may be before it is rotated."""


def book(directory: Path | str, *, total: int = 0, size: int = SIZE, said: list[str] | None = None) -> LogDirectory:
    """A log directory that leaves this process's output alone."""
    return LogDirectory(str(directory), size, total, own=False, warn=(said if said is not None else []).append)


def lines_of(directory: str, base: str) -> list[str]:
    """All lines of a log, the oldest first."""
    files = sorted((each for each in log_files.log_files(directory) if each.base == base), key=lambda each: -each.age)
    return "".join(Path(directory, each.name).read_text() for each in files).splitlines()


def write(directory: str, steps: list[tuple[str, int]], total: int) -> dict[str, int]:
    """Two writers of one log and the keeper take steps; each writer looks at the latest after half a file. Lines of each."""
    keeper = book(directory, total=total)
    keeper.ensure_file(0)
    writers = {name: ReopeningFile(os.path.join(directory, log_files.worker(0))) for name in "ab"}
    counts, unseen = dict.fromkeys("ab", 0), dict.fromkeys("ab", 0)
    for follower in writers.values():
        follower.reopen_if_moved()
    for step, number in steps:
        if step == "K":
            keeper.poll()
            continue
        name = step.lower()
        if step in "AB" or unseen[name] + number * LINE > SIZE / 2:
            writers[name].reopen_if_moved()
            unseen[name] = 0
        for _ in range(number if step in "ab" else 0):
            os.write(writers[name].fd, f"{name} {counts[name]} ".ljust(LINE - 1, ".").encode() + b"\n")
            counts[name] += 1
            unseen[name] += LINE
    keeper.poll()
    for follower in writers.values():
        follower.close()
    return counts


@settings(max_examples=60)
@given(STEPS)
@example(BURST)
@example([*BURST, ("a", 40), ("K", 1), *BURST])
def test_no_line_is_lost_or_doubled(steps: list[tuple[str, int]]) -> None:
    """Whenever the file is rotated, and however late writers notice, each line is there once, and each writer's in order."""
    with tempfile.TemporaryDirectory() as directory:
        counts = write(directory, steps, total=0)
        found = lines_of(directory, log_files.worker(0))
        for name, count in counts.items():
            assert [line.split()[1] for line in found if line.startswith(name)] == [str(each) for each in range(count)]
        assert len(found) == sum(counts.values())


@settings(max_examples=60)
@given(STEPS)
@example(BURST)
def test_the_whole_is_bounded(steps: list[tuple[str, int]]) -> None:
    """After the keeper's look there is no more than the total; what is there are the youngest lines, without a gap."""
    total = 4 * SIZE
    with tempfile.TemporaryDirectory() as directory:
        counts = write(directory, steps, total=total)
        assert sum(each.size for each in log_files.log_files(directory)) <= total
        found = lines_of(directory, log_files.worker(0))
        for name, count in counts.items():
            numbers = [int(line.split()[1]) for line in found if line.startswith(name)]
            assert numbers == list(range(count - len(numbers), count))


def test_who_never_looks_is_cut(tmp_path: Path) -> None:
    """A writer that doesn't notice the rotation costs twice a file's size at most, and the log says what was dropped."""
    said: list[str] = []
    keeper = book(tmp_path, total=8 * SIZE, said=said)
    keeper.ensure_file(3)
    stuck = os.open(tmp_path / "worker.3.log", os.O_WRONLY | os.O_APPEND)
    for _ in range(50):
        os.write(stuck, b"x" * SIZE)
        assert keeper.poll() in (FAST_LOG_POLL_INTERVAL_S, LOG_POLL_INTERVAL_S)
        assert sum(each.size for each in log_files.log_files(str(tmp_path))) <= 4 * SIZE
    os.close(stuck)
    assert len(said) == 1
    assert "MiB were dropped" in said[0]
    assert len(log_files.log_files(str(tmp_path))) < 5


def test_a_worker_begins_in_a_file_that_is_not_due(tmp_path: Path) -> None:
    """A worker that dies before it notices a rotation keeps its last output: a large file is rotated before it begins."""
    keeper = book(tmp_path, total=32 * SIZE)
    for life in range(3):
        keeper.ensure_file(0)
        writer = ReopeningFile(str(tmp_path / "worker.0.log"))
        writer.reopen_if_moved()
        keeper.poll()
        os.write(writer.fd, b"%d" % life * 3 * SIZE)
        writer.close()
    keeper.poll()
    assert "".join(lines_of(str(tmp_path), "worker.0.log")) == "0" * 3 * SIZE + "1" * 3 * SIZE + "2" * 3 * SIZE


def test_a_burst_twice_in_a_row(tmp_path: Path) -> None:
    """A burst is rotated while the file of another one is there: neither is taken for one that grew after its rotation."""
    keeper = book(tmp_path)
    keeper.ensure_file(0)
    writer = ReopeningFile(str(tmp_path / "worker.0.log"))
    for each in range(3):
        writer.reopen_if_moved()
        os.write(writer.fd, b"%d" % each * (4 + each) * SIZE)
        keeper.poll()
    writer.close()
    keeper.poll()
    sizes = [(tmp_path / f"worker.0.log.{age}").stat().st_size for age in (3, 2, 1)]
    assert sizes == [4 * SIZE, 5 * SIZE, 6 * SIZE]


def test_a_smaller_share_cuts_nothing(tmp_path: Path) -> None:
    """More logs share the total: what was rotated when there were fewer stays whole, also for a keeper that begins anew."""
    keeper = book(tmp_path, total=16 * SIZE, size=8 * SIZE)
    keeper.ensure_file(0)
    (tmp_path / "worker.0.log").write_bytes(b"x" * 9 * SIZE)
    keeper.poll()
    for slot in range(1, 8):
        keeper.ensure_file(slot)
    keeper.poll()
    book(tmp_path, total=16 * SIZE, size=8 * SIZE).poll()
    assert (tmp_path / "worker.0.log.1").stat().st_size == 9 * SIZE


def test_who_says_much_loses_its_own_past(tmp_path: Path) -> None:
    """Files of the largest log are removed; those that were written to long ago go, others are emptied."""
    keeper = book(tmp_path, total=10 * SIZE)
    old = time.time() - 2 * WRITER_GONE_AFTER_S
    for name, size in (
        ("master.log.1", SIZE),
        ("worker.0.log", 0),
        *((f"worker.0.log.{n}", SIZE) for n in range(1, 20)),
    ):
        (tmp_path / name).write_bytes(b"x" * size)
        os.utime(tmp_path / name, (old, old))
    (tmp_path / "unrelated").write_bytes(b"x" * 100 * SIZE)
    keeper.poll()
    assert (tmp_path / "master.log.1").stat().st_size == SIZE
    assert sorted(path.name for path in tmp_path.glob("worker*")) == sorted(
        ["worker.0.log", *(f"worker.0.log.{n}" for n in range(1, 10))]
    )
    assert (tmp_path / "unrelated").exists()


def test_many_logs_share_the_total(tmp_path: Path) -> None:
    """With many workers each file is rotated earlier, so that those which are written fit as well."""
    keeper = book(tmp_path, total=16 * SIZE)
    for slot in range(32):
        keeper.ensure_file(slot)
        (tmp_path / f"worker.{slot}.log").write_bytes(b"x" * SIZE)
    keeper.poll()
    assert sum(each.size for each in log_files.log_files(str(tmp_path))) <= 16 * SIZE
    assert (tmp_path / "worker.7.log").stat().st_size == 0


def test_without_a_size_nothing_is_rotated(tmp_path: Path) -> None:
    """`log_size = 0`: something else does it."""
    keeper = book(tmp_path, size=0, total=1)
    keeper.ensure_file(0)
    (tmp_path / "worker.0.log").write_bytes(b"x" * 10 * SIZE)
    assert keeper.poll() == LOG_POLL_INTERVAL_S
    assert [path.name for path in tmp_path.iterdir()] == ["worker.0.log"]


def test_a_directory_that_is_taken_away_is_said_once(tmp_path: Path) -> None:
    """The keeper goes on looking; it says again what is wrong only when that changes."""
    said: list[str] = []
    keeper = book(tmp_path / "logs", said=said)
    keeper.ensure_file(0)
    (tmp_path / "logs" / "worker.0.log").write_bytes(b"x" * 2 * SIZE)
    (tmp_path / "logs" / "worker.0.log.1").mkdir()
    (tmp_path / "logs" / "worker.0.log.1" / "x").touch()
    assert keeper.poll() == LOG_POLL_INTERVAL_S
    assert keeper.poll() == LOG_POLL_INTERVAL_S
    assert len(said) == 1
    assert "can't be kept in order" in said[0]


@pytest.mark.parametrize("blocked", ["worker.0.log.1", "worker.0.log.2", "worker.0.log"])
def test_what_is_in_the_way_of_one_log(tmp_path: Path, blocked: str) -> None:
    """A directory by the name of a file: the other logs are rotated all the same, and the whole stays within its bound."""
    said: list[str] = []
    keeper = book(tmp_path, total=8 * SIZE, said=said)
    (tmp_path / blocked).mkdir()
    keeper.ensure_file(0)
    keeper.ensure_file(1)
    kept = b"x" * SIZE
    for _ in range(20):
        for name in {"worker.0.log", "worker.1.log"} - {blocked}:
            with (tmp_path / name).open("ab") as file:
                file.write(kept + b"x")
        keeper.poll()
        assert sum(each.size for each in log_files.log_files(str(tmp_path))) <= 8 * SIZE
    assert (tmp_path / "worker.1.log.1").stat().st_size == SIZE + 1
    assert all(each.age < 25 for each in log_files.log_files(str(tmp_path)))
    assert "can't be kept in order" in said[0]


def test_a_place_that_cannot_be_is_a_line(tmp_path: Path) -> None:
    """The option, its value and the way out."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"logs = '.*/file/logs': can't write there: Not a directory; name another"):
        book(tmp_path / "file" / "logs")


def test_a_file_that_is_still_written_is_not_removed(tmp_path: Path) -> None:
    """However long its writer has been silent: it is cut, and goes when it is let go."""
    keeper = book(tmp_path, total=4 * SIZE)
    keeper.ensure_file(0)
    old = time.time() - 2 * WRITER_GONE_AFTER_S
    silent = os.open(tmp_path / "worker.0.log", os.O_WRONLY | os.O_APPEND)
    os.write(silent, b"x" * 2 * SIZE)
    keeper.poll()
    for age in range(2, 9):
        (tmp_path / f"worker.0.log.{age}").write_bytes(b"x" * SIZE)
        os.utime(tmp_path / f"worker.0.log.{age}", (old, old))
    os.rename(tmp_path / "worker.0.log.1", tmp_path / "worker.0.log.9")
    os.utime(tmp_path / "worker.0.log.9", (old, old))
    keeper.poll()
    assert os.fstat(silent).st_nlink == 1
    assert os.fstat(silent).st_size == 0
    assert sum(each.size for each in log_files.log_files(str(tmp_path))) <= 4 * SIZE
    os.close(silent)
    keeper.poll()
    assert not (tmp_path / "worker.0.log.9").exists()


def test_what_is_taken_away_is_made_again(tmp_path: Path) -> None:
    """Missing files are made again: the directory, and files of workers, which may not be able to make them."""
    keeper = book(tmp_path / "logs")
    keeper.ensure_file(0)
    (tmp_path / "logs" / "worker.0.log").rename(tmp_path / "moved")
    keeper.poll()
    assert (tmp_path / "logs" / "worker.0.log").stat().st_size == 0
    (tmp_path / "logs" / "worker.0.log").unlink()
    (tmp_path / "logs").rmdir()
    keeper.poll()
    assert (tmp_path / "logs" / "worker.0.log").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(("before", "after"), [("", ""), ("a\n", "a\n"), ("no end", "no end\n")])
def test_the_end_of_a_worker_is_told_in_its_file(tmp_path: Path, before: str, after: str) -> None:
    """The end of a worker is a line of its own below its last output."""
    keeper = book(tmp_path)
    keeper.ensure_file(3)
    (tmp_path / "worker.3.log").write_text(before)
    keeper.note_exit(3, 4711, "SIGSEGV", False)
    text = (tmp_path / "worker.3.log").read_text()
    assert text.startswith(after)
    assert text.endswith("error   worker 4711 has ended: SIGSEGV\n")
    assert text.count("\n") == after.count("\n") + 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_belong_to_whoever_workers_are(tmp_path: Path) -> None:
    """Those that are there, and those that are made later; one that has another name as well isn't given away."""
    said: list[str] = []
    keeper = book(tmp_path, said=said)
    keeper.ensure_file(0)
    keeper.set_owner((65534, 65533))
    keeper.ensure_file(1)
    for slot in (0, 1):
        found = (tmp_path / f"worker.{slot}.log").stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65534, 65533, 0o640)
    secret = tmp_path / "secret"
    secret.touch()
    (tmp_path / "worker.2.log").hardlink_to(secret)
    keeper.ensure_file(2)
    assert secret.stat().st_uid == 0


def test_a_full_disk_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is reported again when it has had space meanwhile."""
    said: list[str] = []
    keeper = book(tmp_path, said=said)
    disk = os.statvfs(tmp_path)
    free = [0]
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((*disk[:4], free[0], *disk[5:])))
    for number, expected in ((0, 1), (0, 1), (1000, 1), (0, 2)):
        free[0] = number
        keeper.poll()
        assert len(said) == expected, said
    assert "is full" in said[0]


def test_a_limit_of_file_size_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a file has reached RLIMIT_FSIZE the log says so, once for each value of the limit; the file is rotated."""
    said: list[str] = []
    keeper = book(tmp_path, said=said)
    keeper.ensure_file(0)
    log = tmp_path / "worker.0.log"
    limit: list[int | None] = [None]
    monkeypatch.setattr(log_files, "file_size_limit", lambda: limit[0])
    for value, size, expected in ((None, 6000, 0), (8000, 6000, 0), (8000, 8000, 1), (8000, 8000, 1), (7000, 7000, 2)):
        limit[0] = value
        log.write_bytes(b"x" * size)
        keeper.poll()
        assert len(said) == expected, said
        assert log.stat().st_size == (size if value is None else 0), "half of the limit is reason to rotate"
    assert said[0] == (
        f"RLIMIT_FSIZE allows files of 8000 bytes, and worker.0.log in {tmp_path} has reached that: "
        "what is logged beyond it is lost; the cluster serves on; raise the limit (LimitFSIZE=, ulimit -f)"
    )


def test_a_limit_of_file_size_where_another_program_rotates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `log_size = 0` the limit is reported, and nothing is rotated."""
    said: list[str] = []
    keeper = book(tmp_path, size=0, said=said)
    keeper.ensure_file(0)
    monkeypatch.setattr(log_files, "file_size_limit", lambda: 5000)
    (tmp_path / "worker.0.log").write_bytes(b"x" * 5000)
    for _ in range(2):
        keeper.poll()
    assert len(said) == 1
    assert [each.name for each in log_files.log_files(str(tmp_path))] == ["worker.0.log"]


def test_small_files_are_not_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size below that of a line rotates files of 4 KiB; of each log so many are kept, the newest."""
    monkeypatch.setattr("cluster2.processes.master.logs.directory.MAX_ROTATED_FILES", 3)
    keeper = book(tmp_path, size=1, total=1 << 30)
    keeper.ensure_file(0)
    log = tmp_path / "worker.0.log"
    log.write_text("short\n")
    keeper.poll()
    assert not (tmp_path / "worker.0.log.1").exists()
    for turn in range(6):
        log.write_text(f"{turn}" * (MIN_FILE_BYTES + 1))
        keeper.poll()
    names = [each.name for each in log_files.log_files(str(tmp_path))]
    assert names == ["worker.0.log", "worker.0.log.1", "worker.0.log.2", "worker.0.log.3"]
    assert (tmp_path / "worker.0.log.3").read_text().startswith("3")


def test_a_link_is_not_cut(tmp_path: Path) -> None:
    """The target of a link isn't ours, also if the link was made between two polls."""
    other = tmp_path / "other"
    other.write_text("kept")
    (tmp_path / "worker.0.log.1").symlink_to(other)
    with pytest.raises(OSError, match=r"symbolic links|ELOOP"):
        log_files.empty(str(tmp_path / "worker.0.log.1"))
    assert other.read_text() == "kept"


def test_a_directory_that_was_made_for_nothing(tmp_path: Path) -> None:
    """A process without output leaves no directory; one that existed, or that has output in it, stays."""
    made = tmp_path / "logs"
    for said, before, after in ((b"", False, False), (b"", True, True), (b"hello\n", False, True)):
        if before:
            made.mkdir()
        book = LogDirectory(str(made), 1 << 20, 1 << 22, own="")
        (made / "worker.0.log").write_bytes(said)
        book.close()
        assert made.exists() == after
        if after:
            assert (made / "worker.0.log").read_bytes() == said
            (made / "worker.0.log").unlink()
            made.rmdir()
