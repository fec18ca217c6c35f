"""Processes, real ones. The test session is a subreaper, so that every orphan becomes its child."""

from __future__ import annotations

import json
import os
import select
import signal
import sys

import pytest

from cluster2.linux.processes import (
    ExitStatus,
    become_subreaper,
    children,
    descendants,
    execute,
    exit_of,
    is_subreaper,
    open_pidfd,
    reap_strays,
    send_signal,
    set_parent_death_signal,
    start_ticks,
)
from tests.linux.children import fork, wait, wait_ended

pytestmark = pytest.mark.usefixtures("nothing_is_left")


# -------------------------------------------------------------------------------------------------------------- execute


def run(program: str, *, fds: dict[int, int], environ: dict[str, str] | None = None) -> object:
    """Return what a Python program prints to descriptor 1 as JSON."""
    reader, writer = os.pipe()
    pid = execute([sys.executable, "-c", program], fds={1: writer, **fds}, environ=environ or {})
    os.close(writer)
    with open(reader) as file:
        answer = json.load(file)
    assert wait(pid) == 0
    return answer


LIST = "import os, json; print(json.dumps([f for f in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{f}')]))"


def test_a_program_gets_the_descriptors_named_and_no_others() -> None:
    """Also not those that we inherited ourselves, which aren't close-on-exec."""
    reader, writer = os.pipe()
    stray = os.dup(reader)
    os.set_inheritable(stray, True)
    assert run(LIST, fds={7: reader, 900: writer}) == ["0", "1", "2", "7", "900"]
    assert os.get_inheritable(stray)
    for fd in (reader, writer, stray):
        os.close(fd)


def test_descriptors_may_change_places() -> None:
    """Numbers that overlap with ours, or stay the same, come out right."""
    files = [os.memfd_create(name) for name in ("a", "b", "c")]
    a, b, c = files
    program = f"import os, json; print(json.dumps([os.readlink(f'/proc/self/fd/{{f}}')[7] for f in ({a}, {b}, {c})]))"
    assert run(program, fds={a: b, b: a, c: c}) == ["b", "a", "c"]
    for fd in files:
        os.close(fd)


def test_a_program_starts_with_clean_signals() -> None:
    """Signals that this process ignores, handles or blocks are default and unblocked in the program."""
    program = (
        "import json; s = dict(l.split(':\t') for l in open('/proc/self/status') if l.startswith('Sig') and 'Q' not in l);"
        "print(json.dumps([int(s[k], 16) for k in ('SigBlk', 'SigIgn')]))"
    )
    was = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    try:
        answer = run(program, fds={})
        assert isinstance(answer, list)
        blocked, ignored = answer
        assert blocked == 0
        internal = 1 << 31 | 1 << 32  # signals 32 and 33, which are glibc's own, and which it ignores in what it spawns
        pythons = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
        assert ignored & ~internal == pythons
    finally:
        signal.signal(signal.SIGHUP, was)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_a_program_gets_the_environment_named() -> None:
    """And nothing of ours."""
    program = "import os, json; print(json.dumps(os.environ.get('GREETING', '') + os.environ.get('PATH', '')))"
    assert run(program, fds={}, environ={"GREETING": "hello"}) == "hello"


def test_what_can_not_be_executed() -> None:
    """A missing program and a closed descriptor are errors of ours; no child, no descriptor is left."""
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        execute(["/no-such-program"], fds={5: 0}, environ={})
    with pytest.raises(OSError, match="Bad file descriptor"):
        execute([sys.executable], fds={5: 0, 6: 987_654}, environ={})


# -------------------------------------------------------------------------------------------------------- pidfd, strays


def test_how_a_child_ended() -> None:
    """A code or a signal, once; before the end there is none."""
    reader, writer = os.pipe()
    for body, status, text in (
        (lambda: 3, ExitStatus(code=3), "exit code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), ExitStatus(signal=9), "SIGKILL"),
        (lambda: os.kill(os.getpid(), 40), ExitStatus(signal=40), "signal 40"),
    ):
        pid = fork(lambda body=body: (os.read(reader, 1), body())[1])  # type: ignore[misc]
        pidfd = open_pidfd(pid)
        assert not os.get_inheritable(pidfd)
        assert exit_of(pidfd) is None
        os.write(writer, b"x")
        assert select.select([pidfd], [], [], 10)[0]
        found = exit_of(pidfd)
        assert found == status
        assert str(found) == text
        with pytest.raises(ChildProcessError):
            exit_of(pidfd)
        os.close(pidfd)
    os.close(reader)
    os.close(writer)


def test_a_signal_by_pidfd() -> None:
    """A signal arrives while the process runs or isn't reaped; afterwards it goes nowhere, even if the pid is used again."""
    pid = fork(signal.pause)
    pidfd = open_pidfd(pid)
    assert send_signal(pidfd, 0)
    assert send_signal(pidfd, signal.SIGTERM)
    wait_ended(pid)
    assert send_signal(pidfd, signal.SIGTERM)
    assert exit_of(pidfd) == ExitStatus(signal=signal.SIGTERM)
    assert not send_signal(pidfd, signal.SIGTERM)
    os.close(pidfd)
    with pytest.raises(ProcessLookupError):
        open_pidfd(pid)


def test_strays_are_reaped_and_known_children_left() -> None:
    """In any order of their ends, a known child keeps its exit status, and a running one isn't touched."""
    assert reap_strays([]) == []
    strays: list[int] = []
    known: list[int] = []
    for number in range(6):
        pid = fork(lambda number=number: number)  # type: ignore[misc]
        wait_ended(pid)
        (known if number % 3 == 0 else strays).append(pid)
    running = fork(signal.pause)
    assert sorted(reap_strays({*known, running})) == strays
    assert reap_strays({*known, running}) == []
    assert [wait(pid) for pid in known] == [0, 3]
    assert reap_strays([]) == []
    os.kill(running, signal.SIGKILL)
    assert wait(running) == -signal.SIGKILL


def test_an_orphan_of_somebody_else_is_a_stray() -> None:
    """A grandchild whose parent ends comes to the subreaper and is reaped."""
    reader, writer = os.pipe()

    def body() -> None:
        os.write(writer, str(fork(lambda: 5)).encode())

    child = fork(body)
    assert wait(child) == 0
    stray = int(os.read(reader, 100))
    wait_ended(stray)
    assert reap_strays([child]) == [stray]
    os.close(reader)
    os.close(writer)


def test_death_with_the_parent() -> None:
    """The signal comes when the parent ends; a wrong signal is an error."""
    with pytest.raises(OSError, match="prctl"):
        set_parent_death_signal(1000)
    reader, writer = os.pipe()

    def parent() -> None:
        def child() -> None:
            set_parent_death_signal(signal.SIGUSR1)
            os.write(writer, str(os.getpid()).encode())
            signal.pause()

        fork(child)
        select.select([reader], [], [])

    assert wait(fork(parent)) == 0
    assert wait(int(os.read(reader, 100))) == -signal.SIGUSR1
    os.close(reader)
    os.close(writer)


# -------------------------------------------------------------------------------------------------------------- descendants


def test_descendants_are_found_with_a_process_before_its_children() -> None:
    """A child's child is found through the child; after the child's end it is found as a child of the subreaper."""
    reader, writer = os.pipe()

    def child() -> None:
        os.write(writer, b"%d" % fork(signal.pause))
        signal.pause()

    parent = fork(child)
    nested = int(os.read(reader, 20))
    assert list(descendants([parent])) == [nested]
    assert list(descendants([os.getpid()])) == [parent, nested]
    assert list(descendants([nested, parent])) == []
    os.kill(parent, signal.SIGKILL)
    assert wait(parent) == -signal.SIGKILL
    assert nested in children()
    os.kill(nested, signal.SIGKILL)
    assert wait(nested) == -signal.SIGKILL
    assert list(descendants([parent])) == []
    for descriptor in (reader, writer):
        os.close(descriptor)


def test_start_ticks_tell_processes_apart() -> None:
    """A process begins no earlier than its parent; the start of one that was reaped isn't known."""
    pid = fork(signal.pause)
    own, other = start_ticks(), start_ticks(pid)
    assert own == start_ticks(os.getpid())
    assert own is not None
    assert other is not None
    assert own <= other
    os.kill(pid, signal.SIGKILL)
    wait_ended(pid)
    assert start_ticks(pid) == other, "a process that has ended and isn't reaped keeps its pid"
    wait(pid)
    assert start_ticks(pid) is None


def test_subreaper_can_be_switched_off() -> None:
    """A process that is a subreaper no longer says so, and its orphans go to the next one."""

    def child() -> int:
        become_subreaper()
        on = is_subreaper()
        become_subreaper(False)
        off = is_subreaper()
        wait(fork(lambda: fork(lambda: os._exit(0)) and 0))
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, 0)
        return 0 if on and not off else 1

    assert wait(fork(child)) == 0
    assert os.waitpid(-1, 0)[1] == 0  # the orphan was given to this process
