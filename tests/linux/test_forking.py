"""Forking orphans. The test session is a subreaper, so that every orphan becomes its child."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import multiprocessing
import os
import resource
import select
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster2.linux import forking
from cluster2.linux.forking import fork_orphan
from cluster2.linux.processes import become_subreaper, raise_file_limit, set_parent_death_signal
from tests.linux.children import fork, told, wait
from tests.linux.leaks import descriptors

pytestmark = pytest.mark.usefixtures("nothing_is_left")

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change users and control groups")


def orphan(body: Callable[[], int]) -> int:
    """Return the pid of an orphan that runs `body`, forked from here."""
    pid = fork_orphan()
    if pid is None:
        code = 99
        try:
            code = body()
        finally:
            os._exit(code)
    return pid


def test_an_orphan_is_the_subreapers_child() -> None:
    """The worker begins after its adoption: its parent is the subreaper, from the first check on."""
    us = os.getpid()
    for _ in range(20):
        assert wait(orphan(lambda: int(os.getppid() != us))) == 0


def test_an_orphan_passes_over_its_zygote() -> None:
    """Forked by a child of ours, it becomes ours; the zygote has no child left, and may die."""
    us = os.getpid()
    reader, writer = os.pipe()

    def zygote() -> int:
        pid = orphan(lambda: 7 if os.getppid() == us else 1)
        os.write(writer, str(pid).encode())
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
            return 1
        return 0

    assert wait(fork(zygote)) == 0
    pid = int(os.read(reader, 100))
    assert wait(pid) == 7
    os.close(reader)
    os.close(writer)


def test_an_orphan_has_no_descriptor_more(tmp_path: Path) -> None:
    """Neither it nor its caller keeps an end of the pipe between them."""
    gc.collect()  # earlier tests' sockets are to be closed now, not in the middle of this one
    before = descriptors()

    def body() -> int:
        (tmp_path / "more").write_text("\n".join(descriptors() - before))
        return 0

    assert wait(orphan(body)) == 0
    more = [line.split()[1] for line in (tmp_path / "more").read_text().splitlines()]
    # A library that other tests have imported may open a pipe of its own in each child: both ends of it (libuv does).
    assert not [each for each in more if each.startswith("pipe:") and more.count(each) == 1]
    assert not {each for each in descriptors() - before if "pipe:" in each}


def test_the_parent_death_signal_of_an_orphan() -> None:
    """Set at once after the fork, it isn't triggered by the intermediate process's end."""
    reader, writer = os.pipe()

    def body() -> int:
        set_parent_death_signal(signal.SIGKILL)
        os.close(writer)
        return os.read(reader, 1)[0] if select.select([reader], [], [], 10)[0] else 1

    pids = [orphan(body) for _ in range(10)]
    os.write(writer, bytes(10))
    assert [wait(pid) for pid in pids] == [0] * 10
    os.close(reader)
    os.close(writer)


def test_an_orphan_from_a_process_with_many_files() -> None:
    """Descriptor numbers above 1023 are no obstacle."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("the limit of open files is low here")

    def body() -> int:
        raise_file_limit()
        for _ in range(1500):
            os.dup(0)
        return wait(orphan(lambda: 7))

    # The body's orphan is the session's child, unless the body is a subreaper itself.
    def subreaper() -> int:
        become_subreaper()
        return body()

    assert wait(fork(subreaper)) == 7


@pytest.mark.parametrize("fails", ["first", "second"])
@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOMEM])
def test_no_room_for_a_process(monkeypatch: pytest.MonkeyPatch, fails: str, code: int) -> None:
    """Whichever of the two forks fails, the caller gets the error, and no child and no descriptor is left."""
    real = forking._libc_fork
    us = os.getpid()

    def failing() -> int:
        if (os.getpid() == us) == (fails == "first"):
            ctypes.set_errno(code)
            return -1
        return int(real())

    monkeypatch.setattr(forking, "_libc_fork", failing)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        fork_orphan()
    assert caught.value.errno == code


@root
def test_no_room_for_a_second_process() -> None:
    """With the kernel's own limit, a user that may have one more process can't fork twice."""

    def body() -> list[int | None]:
        os.setresuid(61_234, 61_234, 61_234)  # no other process has this one
        resource.setrlimit(resource.RLIMIT_NPROC, (2, 2))
        before = os.listdir("/proc/self/fd")
        try:
            if fork_orphan() is None:
                os._exit(0)
        except OSError as error:
            return [error.errno, int(os.listdir("/proc/self/fd") == before)]
        return [None]

    assert told(body) == [errno.EAGAIN, 1]


def test_a_killed_intermediate(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the intermediate dies before it reports, that is an error, not a hang."""
    real = forking._libc_fork
    us = os.getpid()

    def dying() -> int:
        if os.getpid() != us:
            os.kill(os.getpid(), signal.SIGKILL)
        return int(real())

    monkeypatch.setattr(forking, "_libc_fork", dying)
    with pytest.raises(ChildProcessError):
        fork_orphan()


def test_handlers_run_once(tmp_path: Path) -> None:
    """Each at-fork handler runs once, in the zygote or in the worker, so a lock between processes is released again."""
    note = tmp_path / "note"

    def zygote() -> int:
        lock = multiprocessing.get_context("fork").Semaphore()

        def before() -> None:
            lock.acquire()
            os.write(log, f"before {os.getpid()}\n".encode())

        def after() -> None:
            lock.release()
            os.write(log, f"after {os.getpid()}\n".encode())

        os.register_at_fork(
            before=before, after_in_parent=after, after_in_child=lambda: os.write(log, f"in {os.getpid()}\n".encode())
        )

        def is_free() -> bool:
            taken = lock.acquire(timeout=20)
            if taken:
                lock.release()
            return taken

        pid = orphan(lambda: int(not is_free()))
        if not is_free():
            return 1
        note.with_name("worker").write_text(str(pid))
        return 0

    log = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    pid = fork(zygote)
    assert wait(pid) == 0
    worker = int(note.with_name("worker").read_text())
    assert wait(worker) == 0
    assert sorted(note.read_text().splitlines()) == sorted([f"before {pid}", f"after {pid}", f"in {worker}"])
    os.close(log)
