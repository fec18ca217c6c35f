"""What the system refuses while a cluster serves: a full disk, a file system that is read-only, RLIMIT_FSIZE. Nothing ends it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.system.clients import get
from tests.system.harness import Running, command, free_port, sample, wait_until

Start = Callable[..., Running]


def mount(*arguments: str) -> bool:
    """Whether something could be mounted."""
    return os.geteuid() == 0 and subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    found = tmp_path / "disk"
    found.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=400k", "none", str(found)):
        pytest.skip("nothing may be mounted here")
    yield found
    while subprocess.run(["umount", "-l", str(found)], capture_output=True, check=False).returncode == 0:
        pass  # the second one, if there was one


def serving(start: Start, directory: Path, *options: str) -> Running:
    """A cluster that writes pid files and logs below a directory."""
    paths = ("--pids", str(directory / "pids"), "--logs", str(directory / "logs"), "--log-to", "both", "--access-log")
    site = ("run", sample("plain"), "--bind", "127.0.0.1:0", "--monitor-port", str(free_port()), "--workers", "2")
    running = start(command(*site, *paths, *options))
    running.pids = directory / "pids"
    return running.ready()


def goes_on(running: Running) -> None:
    """A worker that dies is replaced, and all commands are carried out; each request is answered."""
    before = running.workers()
    os.kill(before[0]["pid"], signal.SIGKILL)
    wait_until(
        lambda: {row["pid"] for row in running.workers()} - {row["pid"] for row in before}, lambda: running.stderr
    )
    for verb, params in (
        ("recycle", {}),
        ("reload", {}),
        ("scale", {"workers": 3}),
        ("scale", {"workers": 2}),
        ("disable", {}),
        ("enable", {}),
    ):
        running.ask(verb, **params)
        assert get(running.address).body == b"hello"
    running.signal(signal.SIGUSR1)
    wait_until(lambda: running.status()["workers"], "it has heard of that")
    assert get(running.address).body == b"hello"


def fill(path: Path) -> None:
    """Leave no room on the disk of a file."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError:
            pass


def test_a_full_disk(start: Start, disk: Path) -> None:
    """With no room for logs and pid files all is done as ever; the loss of what is logged is told, and its end."""
    running = serving(start, disk)
    fill(disk / "fill")
    goes_on(running)
    wait_until(lambda: "logs is full: log lines are lost; the cluster serves on" in running.stderr, "that is said")
    (disk / "fill").unlink()
    wait_until(lambda: "logs has space again" in running.stderr, "that is said, too")
    wait_until(
        lambda: (
            {f"worker.{row['pid']}.pid" for row in running.workers()} <= {each.name for each in running.pids.iterdir()}
        ),
        "the pid files are written",
    )
    assert "Traceback" not in running.stderr
    assert running.shutdown() == 0


def test_a_read_only_disk(start: Start, disk: Path) -> None:
    """On a file system that can only be read by now all is done as ever."""
    running = serving(start, disk)
    control = running._pids_fd()
    assert mount("--bind", str(disk), str(disk))
    assert mount("-o", "remount,bind,ro", str(disk))
    assert control >= 0
    goes_on(running)
    assert "Read-only file system" in running.stderr
    assert "Traceback" not in running.stderr
    assert running.shutdown() == 0
    subprocess.run(["umount", str(disk)], check=True)


def limit_files(running: Running, size: int) -> None:
    """Bound the files that the processes of a cluster, and those that they will start, can write."""
    master = psutil.Process(running.process.pid)
    for process in (master, *master.children(recursive=True)):
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, hard))


@pytest.mark.parametrize("size", [0, 5000])
def test_a_limit_of_file_size(start: Start, tmp_path: Path, size: int) -> None:
    """With RLIMIT_FSIZE no file can be written beyond it, and SIGXFSZ is sent: nobody dies of it, and all is done as ever."""
    running = serving(start, tmp_path)
    limit_files(running, size)
    goes_on(running)
    limit_files(running, resource.RLIM_INFINITY)
    assert running.shutdown() == 0


def test_lines_lost_by_a_limit_of_file_size(start: Start, tmp_path: Path) -> None:
    """When a log has reached RLIMIT_FSIZE master.log says so once; the log is rotated, and requests are answered."""
    running = serving(start, tmp_path)
    limit_files(running, 8000)

    def lines() -> str:
        return "".join(path.read_text() for path in (tmp_path / "logs").glob("master.log*"))

    def told() -> bool:
        for _ in range(200):
            assert get(running.address).body == b"hello"
        return "access.log" in lines()

    wait_until(told, lines)
    assert "RLIMIT_FSIZE allows files of 8000 bytes, and access.log" in lines()
    wait_until(lambda: (tmp_path / "logs" / "access.log").stat().st_size < 8000, "the file is rotated")
    assert told()
    assert lines().count("RLIMIT_FSIZE") == 1
    limit_files(running, resource.RLIM_INFINITY)
    assert running.shutdown() == 0


LIMITED = "import os, resource, sys; hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]; \
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard)); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.mark.parametrize("options", [(), ("--no-cluster",)])
def test_a_start_with_a_limit_of_file_size(start: Start, options: tuple[str, ...]) -> None:
    """Where the limit leaves no room for the scoreboard the start says so, in one line."""
    site = command("run", sample("plain"), "--bind", "unix:s", "--monitor-port", "0", *options)
    running = start([sys.executable, "-c", LIMITED, *site])
    assert running.wait() == 1
    told = "no shared memory can be had for the scoreboard: File too large; RLIMIT_FSIZE bounds shared memory as well: raise it"
    assert running.stderr.splitlines()[-1] == f"cluster2: error: {told}"
