"""Processes: executing, waiting, adopting orphans, parent-death signals, and resource limits.

**Executing.** `os.posix_spawn` is used, not `subprocess`: it needs no second thread, no pipe, and no Popen object that wants to
reap. glibc implements it with CLONE_VFORK, so its cost doesn't grow with the master (0.3 ms here). Python ignores SIGPIPE and
SIGXFSZ, a shell may have ignored SIGINT and SIGHUP, and both a mask and ignored signals survive an exec. A child that inherited
them would not be ended by signals that should end it. So dispositions and mask are reset. All descriptors that Python opens are
close-on-exec, but those that *this process* inherited aren't: they are closed in the child, one by one.

**Waiting.** A pid may belong to another process by the time that it is used, a pidfd can't. `waitid` and `pidfd_send_signal` take
it, and it is readable in the event loop when the process has ended.

**Strays.** A subreaper (and PID 1) inherits the orphans of its descendants and has to reap them. `waitpid(-1)` would also reap
children whose exit status other code waits for by pidfd. So `reap_strays` checks first (WNOWAIT). The kernel shows the same child
until it is reaped. If that is a known one, the strays behind it are found in `/proc/self/task/*/children`.

**Death with the parent.** `PR_SET_PDEATHSIG` is sent when the *thread* that is the parent ends. A fork clears it, and a change of
user does. So set it in the child's main thread, after adoption and after `drop_privileges`, and check afterwards that the parent
is still the same.

ctypes (for prctl) is loaded on first use: a process that needs none of it saves 0.3 MiB.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import math
import os
import resource
import signal
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_GET_PDEATHSIG: Final = 2
_PR_SET_DUMPABLE: Final = 4
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37


@dataclass(frozen=True)
class ExitStatus:
    """The end of a process: exactly one of both is set.

    Attributes:
        code: its exit code, 0 to 255.
        signal: the number of the signal that killed it.
    """

    code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is None:
            return f"exit code {self.code}"
        try:
            return signal.Signals(self.signal).name
        except ValueError:  # a real-time signal between the two that have names
            return f"signal {self.signal}"


def become_subreaper(now: bool = True) -> None:
    """Adopt the orphans among this process's descendants from now on, or no longer. Kept over exec, not inherited by children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(now))


def is_subreaper() -> bool:
    """Return whether this process adopts the orphans among its descendants."""
    return _prctl_int(_PR_GET_CHILD_SUBREAPER) != 0


def set_parent_death_signal(sig: int) -> None:
    """Have the kernel send `sig` to this process when its parent ends; 0: none. Nothing comes if the parent has ended already."""
    _prctl(_PR_SET_PDEATHSIG, sig)


def parent_death_signal() -> int:
    """Return the signal that `set_parent_death_signal` has set; 0: none."""
    return _prctl_int(_PR_GET_PDEATHSIG)


def show_to_own_user() -> None:
    """Undo what the kernel did when this process changed its user: it hid the process, as if it had secrets of the former user.

    Else it would leave no core dump, and other processes of that user couldn't read its memory usage.
    """
    _prctl(_PR_SET_DUMPABLE, 1)


def execute(argv: Sequence[str], *, fds: Mapping[int, int], environ: Mapping[str, str]) -> int:
    """Start a program with default signal dispositions, an empty signal mask, and no descriptors but those named.

    Args:
        argv: the program's path (PATH is not searched) and its arguments.
        fds: the child's number → this process's descriptor. 0, 1 and 2 are passed as they are unless named.
        environ: the whole environment of the child.
    Returns:
        The pid of the child, which the caller has to reap.
    Raises:
        OSError: the program can't be executed, a descriptor isn't open, or there can be no further process.
    """
    # Numbers may overlap ({3: 4, 4: 3}): so all sources are first copied to numbers above all targets.
    floor = max([2, *fds]) + 1
    with contextlib.ExitStack() as stack:
        actions: list[tuple[int, int] | tuple[int, int, int]] = []
        for target, source in fds.items():
            copy = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, floor)
            stack.callback(os.close, copy)
            actions.append((os.POSIX_SPAWN_DUP2, copy, target))
        actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable() if fd not in fds]
        return os.posix_spawn(
            argv[0], [*argv], environ, file_actions=actions, setsigmask=[], setsigdef=signal.valid_signals()
        )


def open_pidfd(pid: int) -> int:
    """Return a close-on-exec descriptor for a process; it is readable when the process has ended.

    Raises:
        ProcessLookupError: there is no such process.
    """
    return os.pidfd_open(pid)


def exit_of(pidfd: int) -> ExitStatus | None:
    """Reap a child if it has ended, without waiting; None: it runs.

    Raises:
        ChildProcessError: it is no child of this process, or was reaped before.
    """
    found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    if found is None:
        return None
    return ExitStatus(code=found.si_status) if found.si_code == os.CLD_EXITED else ExitStatus(signal=found.si_status)


def is_running_child(pid: int) -> bool:
    """Return whether a process is a child of this one and hasn't ended."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def send_signal(pidfd: int, sig: int) -> bool:
    """Send a signal to the process behind a pidfd; false: it has been reaped already."""
    try:
        signal.pidfd_send_signal(pidfd, sig)
    except ProcessLookupError:
        return False
    return True


def kill_child(pid: int) -> bool:
    """Kill a child without a pidfd; false: it is no child, or was reaped. Until it is reaped no other process gets its pid."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        os.kill(pid, signal.SIGKILL)
    except (ChildProcessError, ProcessLookupError):
        return False
    return True


def reap_strays(known: Container[int]) -> list[int]:
    """Reap all children that have ended and whose pid isn't in `known`, without waiting.

    Returns:
        The pids that were reaped. A known child that has ended is left for `exit_of`.
    """
    reaped: list[int] = []
    while (pid := _ended(os.P_ALL, 0, os.WNOWAIT)) is not None and pid not in known:
        _ended(os.P_PID, pid)
        reaped.append(pid)
    if pid is not None:
        reaped += [child for child in children() if child not in known and _ended(os.P_PID, child) is not None]
    return reaped


def _ended(kind: int, which: int, how: int = 0) -> int | None:
    """Return the pid of a child that has ended, if there is one. The child is reaped, unless `how` is WNOWAIT."""
    try:
        found = os.waitid(kind, which, os.WEXITED | os.WNOHANG | how)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid


def children(pid: int | None = None) -> Iterator[int]:
    """Yield the pids of a process's children, also of those that have ended and aren't reaped.

    Args:
        pid: None: this process.
    """
    # Kernels without CONFIG_PROC_CHILDREN have no such file: then none are found; strays wait until the known ones are reaped.
    for path in glob.glob(f"/proc/{'self' if pid is None else pid}/task/*/children"):
        with contextlib.suppress(OSError), open(path) as file:
            yield from map(int, file.read().split())


def descendants(roots: Iterable[int]) -> Iterator[int]:
    """Yield the pids of the children of these processes, of their children, and so on; a process before its children."""
    seen = set(roots)
    pending = deque(seen)
    while pending:
        for pid in children(pending.popleft()):
            if pid not in seen:  # a pid may have been given to another process meanwhile: this always ends
                seen.add(pid)
                pending.append(pid)
                yield pid


def start_ticks(pid: int | None = None) -> int | None:
    """Return when a process began, in clock ticks (1/100 s) since boot; None: there is no such process.

    Together with the pid it names one process: the kernel gives a pid again only after 32,768 others, or more.

    Args:
        pid: None: this process.
    """
    try:
        with open(f"/proc/{'self' if pid is None else pid}/stat", encoding="ascii", errors="replace") as file:
            # Field 22 of proc_pid_stat(5). Field 2, the name in parentheses, may contain spaces and parentheses.
            return int(file.read().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _inheritable() -> list[int]:
    """Return this process's descriptors above 2 that a program would inherit."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        with contextlib.suppress(OSError):  # the one that listed the directory is closed by now
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
    return found


def usable_cpus(proc: str = "/proc/self") -> int:
    """Return how many CPUs this process may use, at least 1: its affinity, and the quotas of its control groups rounded up.

    A container with a quota of 2 CPUs on a machine of 64 sees all 64 in `os.cpu_count()`. The quota of each group, from that of
    this process up to the root of what is mounted, counts, in version 1 (`cpu.cfs_quota_us`) and 2 (`cpu.max`).

    Args:
        proc: the directory with `cgroup` and `mountinfo`.
    """
    quotas = [quota for group in _cpu_groups(proc) if (quota := _quota(group)) is not None]
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, quotas)]))


def _cpu_groups(proc: str) -> Iterator[str]:
    """Yield the directories of this process's CPU control group and of those around it."""
    try:
        with open(f"{proc}/cgroup") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
        with open(f"{proc}/mountinfo") as file:
            mounts = [line.split() for line in file]
    except OSError:
        return
    paths = {"cgroup" if names else "cgroup2": path for _, names, path in lines if {"", "cpu"} & {*names.split(",")}}
    for mount in mounts:
        root, directory, kind, options = mount[3], mount[4], mount[mount.index("-") + 1], mount[-1].split(",")
        if kind not in paths or (kind == "cgroup" and "cpu" not in options):
            continue
        inner = os.path.relpath(paths[kind], root)
        if not inner.startswith(".."):  # else the path isn't of this mount, and only the mount's root is visible
            group = os.path.normpath(os.path.join(directory, inner))
            while group != directory:
                yield group
                group = os.path.dirname(group)
        yield directory


def _quota(group: str) -> float | None:
    try:
        with open(f"{group}/cpu.max") as file:
            quota, period = file.read().split()
    except OSError:
        try:
            with open(f"{group}/cpu.cfs_quota_us") as file, open(f"{group}/cpu.cfs_period_us") as other:
                quota, period = file.read().strip(), other.read().strip()
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def raise_file_limit() -> int:
    """Raise the soft limit of open descriptors to the hard one (RLIMIT_NOFILE), and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def file_limit() -> int:
    """Return how many descriptors this process may have (RLIMIT_NOFILE)."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def max_backlog() -> int:
    """Return the length that the kernel allows an accept queue (net.core.somaxconn)."""
    try:
        with open("/proc/sys/net/core/somaxconn") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 4096  # the default since Linux 5.4


def open_descriptors() -> int:
    """Return how many descriptors this process has open; 5 µs. If none is left to count them by, the limit.

    Since Linux 6.2 the size of the directory in /proc is that number; before, it is 0, and the directory has to be listed.
    """
    try:
        return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        return file_limit()


_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_memory() -> int:
    """Return the resident memory of this process in bytes, shared pages included. Costs 10 µs, however large it is."""
    with open("/proc/self/statm", "rb", buffering=0) as statm:
        return int(statm.read(200).split()[1]) * _PAGE


def memory(pid: int) -> int:
    """Return the memory of a process in bytes: its proportional set size (a page that n processes share counts 1/n for each).

    Reading it costs the kernel a walk over the page tables: 1 ms per 100 MiB. The resident set size is the fallback where that
    isn't allowed or not there (another user's process, kernels before 4.14). A process that has ended and isn't reaped has 0.

    Raises:
        ProcessLookupError: there is no such process.
        OSError: it can't be read now (EMFILE).
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # the next file shows whether the process is gone
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(errno.ESRCH, f"no process {pid}") from error


def _prctl(option: int, value: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    # prctl is variadic: without a type ctypes would pass ints, and the upper halves of the registers would be undefined.
    if libc.prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")


def _prctl_int(option: int) -> int:
    """Return what the kernel stores for one of the options that read."""
    import ctypes

    found = ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.byref(found), *map(ctypes.c_ulong, (0, 0, 0))) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
    return found.value
