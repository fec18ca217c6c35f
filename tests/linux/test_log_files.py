"""Log files: what is found, opened, followed and read from its end."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster2.linux import log_files
from cluster2.linux.log_files import ReopeningFile
from tests.linux.children import told


def test_only_own_regular_files_are_found_and_read(tmp_path: Path) -> None:
    """A file that has another name, is a link, a fifo or a directory, or lies elsewhere, is neither listed nor opened."""
    logs, outside = tmp_path / "logs", tmp_path / "master.log"
    logs.mkdir()
    outside.write_text("secret")
    for name in ("master.log", "worker.12.log", "worker.12.log.3", "passwd", "access.log.gz", "worker.x.log"):
        (logs / name).write_text(name)
    (logs / "access.log").symlink_to(outside)
    os.mkfifo(logs / "worker.1.log")
    (logs / "worker.2.log").mkdir()
    assert [each.name for each in log_files.log_files(str(logs))] == ["master.log", "worker.12.log", "worker.12.log.3"]
    for name in ("master.log", "worker.12.log.3"):
        fd = log_files.open_to_read(str(logs), name)
        assert os.read(fd, 100).decode() == name
        os.close(fd)
    attempts = ["../master.log", "/etc/passwd", "..", ".", "", "passwd", "access.log", "worker.1.log", "worker.2.log"]
    attempts += ["master.log\0", "master.log/", "./master.log", "master.log\n", "worker.٣.log", "worker.012345.log"]
    for name in attempts:
        with pytest.raises(OSError):
            log_files.open_to_read(str(logs), name)


def test_a_directory_that_is_not_there_has_no_files(tmp_path: Path) -> None:
    """Before anything was logged the list is empty."""
    assert log_files.log_files(str(tmp_path / "none")) == []


def test_what_is_no_regular_file_is_not_written_to(tmp_path: Path) -> None:
    """A link would lead elsewhere, a fifo would block."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo"):
        with pytest.raises(OSError):
            log_files.open_to_write(str(tmp_path / name))
    assert not (tmp_path / "elsewhere").exists()


def test_a_follower_opens_again_what_was_rotated(tmp_path: Path) -> None:
    """A writer goes on in the renamed file until it checks, then in the one that has the name; a missing file is made again."""
    path = tmp_path / "worker.0.log"
    follower = ReopeningFile(str(path))
    assert follower.reopen_if_moved()
    assert not follower.reopen_if_moved()
    os.write(follower.fd, b"1\n")
    path.rename(tmp_path / "worker.0.log.1")
    os.write(follower.fd, b"2\n")
    assert follower.reopen_if_moved()
    os.write(follower.fd, b"3\n")
    path.unlink()
    assert follower.reopen_if_moved()
    os.write(follower.fd, b"4\n")
    follower.close()
    assert (tmp_path / "worker.0.log.1").read_text() == "1\n2\n"
    assert path.read_text() == "4\n"


def test_a_follower_that_cannot_open_goes_on_as_before(tmp_path: Path) -> None:
    """The error is raised, and the file that was open stays in use."""
    path = tmp_path / "a" / "worker.0.log"
    path.parent.mkdir()
    follower = ReopeningFile(str(path))
    follower.reopen_if_moved()
    path.parent.rename(tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        follower.reopen_if_moved()
    os.write(follower.fd, b"on\n")
    follower.close()
    assert (tmp_path / "b" / "worker.0.log").read_text() == "on\n"


def test_whether_a_file_is_open_to_write(tmp_path: Path) -> None:
    """The kernel knows of any writer; readers don't count. A process that opens the file just then isn't disturbed."""
    path = tmp_path / "file"
    path.touch()
    assert log_files.is_open_to_write(str(path)) is False
    reader = os.open(path, os.O_RDONLY)
    assert log_files.is_open_to_write(str(path)) is False
    with path.open("a"):
        assert log_files.is_open_to_write(str(path)) is True
    code = "import sys, time; f = open(sys.argv[1], 'a'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline()
        assert log_files.is_open_to_write(str(path)) is True
        other.communicate()
    os.close(reader)


def test_a_lease_that_is_broken_disturbs_nobody(tmp_path: Path) -> None:
    """A process that opens the file over and over during the check: neither of the two fails or waits."""
    path = tmp_path / "file"
    path.touch()
    ended = threading.Event()

    def open_and_close() -> None:
        while not ended.is_set():
            os.close(log_files.open_to_write(str(path)))

    thread = threading.Thread(target=open_and_close)
    thread.start()
    try:
        answers = {log_files.is_open_to_write(str(path)) for _ in range(2000)}
    finally:
        ended.set()
        thread.join()
    assert answers <= {True, False}


def test_the_end_of_a_line(tmp_path: Path) -> None:
    """A line that is added below must begin a line of its own."""
    for text, ends in (("", True), ("a\n", True), ("a\nb", False)):
        path = tmp_path / "file"
        path.write_text(text)
        fd = os.open(path, os.O_RDONLY)
        assert log_files.ends_a_line(fd) is ends
        os.close(fd)


@pytest.mark.parametrize(
    "text", ["", "a", "a\n", "\n", "a\nb", "a\nb\n", "\n\n\n", "x" * 70_000 + "\n" + "y" * 70_000 + "\nz\n"]
)
@pytest.mark.parametrize("lines", [0, 1, 2, 3, 100])
def test_the_last_lines(tmp_path: Path, text: str, lines: int) -> None:
    """The last lines are those that a program that reads all would show, over blocks of any number."""
    path = tmp_path / "file"
    path.write_text(text)
    fd = os.open(path, os.O_RDONLY)
    start = log_files.tail(fd, lines)
    os.close(fd)
    whole = text.splitlines(keepends=True)
    assert text[start:] == "".join(whole[len(whole) - min(lines, len(whole)) :])


def test_the_search_for_last_lines_is_bounded(tmp_path: Path) -> None:
    """A file without lines isn't read to its beginning."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 300_000)
    fd = os.open(path, os.O_RDONLY)
    assert log_files.tail(fd, 3, most=100_000) == 200_000
    os.close(fd)


def test_the_limit_of_file_size() -> None:
    """The soft limit of this process counts; a write beyond it fails with EFBIG, since Python ignores SIGXFSZ."""

    def limited() -> list[object]:
        none = log_files.file_size_limit()
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        fd = os.memfd_create("log")
        written = os.write(fd, bytes(20))
        try:
            log_files.write_all(fd, b"more")
        except OSError as error:
            return [none, log_files.file_size_limit(), written, error.errno]
        return []

    assert told(limited) == [None, 10, 10, errno.EFBIG]
