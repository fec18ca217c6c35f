"""The pids directory: who runs here, the lock that keeps a second master out, and the control socket.

Why the lock is on the directory itself. A lock file would have to stay behind (removing it lets two masters lock two
files of one name), and the directory has to be empty after a stop. `flock` works on any descriptor, also on a
directory's, dies with the last process that holds the descriptor, and so is never stale. Workers are children of a
zygote that was *executed*: the descriptor is close-on-exec, and nobody but the master has it (`posix_spawn` returns
some microseconds before the kernel closes it in the child, as a test showed: so the lock is given up by LOCK_UN, not
only by `close`). (Tried: NFS emulates flock by byte ranges, which need a descriptor open for writing, and gives EBADF
for a directory. That is said.)

Who asks whether a master runs takes the lock *shared* for a moment. A master that starts just then fails to get it
exclusively; it tells such a visitor from another master by asking for a shared lock itself, which a visitor doesn't
prevent.

A directory that was made for a start that failed is removed again, under the lock. A master that starts just then may have it
open: so who gets the lock looks whether the directory still has its name, and else begins anew.

Names. `master.<pid>.pid` and `worker.<pid>.pid` hold the pid once more, for scripts that `cat` them; we go by the name,
which can't be half written. All calls are relative to the descriptor of the directory, so that nobody can put another
one in its place, and only regular files (for master.sock: a socket) with exactly these names are ever removed. A
symbolic link is neither followed nor removed: files are made with O_EXCL.

The socket. A path in `sockaddr_un` has 107 bytes at most, pids directories in deep build trees are longer. `bind` to
`/proc/self/fd/N/master.sock` puts the socket into the directory behind descriptor N, however long its path is;
`connect_control` connects the same way. Its mode is set by `fchmod` *before* `bind`, which takes it over to the file:
there is no moment at which others could connect.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import time
from typing import Final

from cluster2.errors import AlreadyRunning, ConfigError, NotRunning

CONTROL: Final = "master.sock"

_PID_FILE: Final = re.compile(r"(master|worker)\.([1-9][0-9]{0,9})\.pid")
_VISITS: Final = 200  # a visitor has the lock for microseconds; so many in a row, a millisecond apart, are no visitors


class PidsDirectory:
    """The pids directory as its master sees it. `acquire` first, `release` last; all else needs the lock."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Touches nothing yet. A relative path is resolved now: a later change of directory doesn't move it."""
        self.path = os.path.abspath(path)
        self._fd = -1
        self._made = False

    def acquire(self) -> None:
        """Create the directory if need be, lock it, and clear what dead masters left.

        Raises:
            ConfigError: it can't be created, written, or locked.
            AlreadyRunning: a master runs on it.
        """
        fd = self._opened()
        try:
            self._lock(fd)
            if named := _has_name(fd, self.path):
                self._fd = fd
                self._prove_writable()
                self.clear()
        except BaseException:
            self._fd = -1
            os.close(fd)
            raise
        if not named:
            os.close(fd)
            self.acquire()

    def keep(self) -> None:
        """The cluster serves: the directory stays when it has left."""
        self._made = False

    def write_master(self, pid: int) -> None:
        """Write master.<pid>.pid.

        Raises:
            ConfigError: it can't be written, or something that isn't a pid file has its name.
        """
        self._write(f"master.{pid}.pid", pid)

    def write_worker(self, pid: int) -> None:
        """Write worker.<pid>.pid; errors as for `write_master`."""
        self._write(f"worker.{pid}.pid", pid)

    def remove_worker(self, pid: int) -> None:
        """Remove worker.<pid>.pid if it is there."""
        self._remove(f"worker.{pid}.pid")

    def bind_control(self, backlog: int) -> socket.socket:
        """The control socket: bound to master.sock with mode 0600, listening, non-blocking, close-on-exec.

        Raises:
            ConfigError: it can't be bound, or something that is no socket has its name.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(f"/proc/self/fd/{self._fd}/{CONTROL}")
            sock.listen(backlog)
        except OSError as error:
            sock.close()
            reason = "its name is taken" if error.errno == errno.EADDRINUSE else error.strerror
            raise ConfigError(f"{self.path}/{CONTROL}: the control socket can't be bound: {reason}") from error
        sock.setblocking(False)
        return sock

    def clear(self) -> None:
        """Remove all of ours: pid files and the control socket. What else is there stays."""
        for name in _ours(self._fd):
            self._remove(name)

    def release(self) -> None:
        """Clear the directory and give the lock up; a second call does nothing. Remove it if it was made for nothing."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # read-only by now: what is left, the next master removes
                self.clear()
            if self._made:
                with contextlib.suppress(OSError):  # somebody else has put something there
                    os.rmdir(self.path)
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # a program that is just being executed may share the descriptor still
            os.close(self._fd)
            self._fd = -1

    def _opened(self) -> int:
        try:
            os.makedirs(os.path.dirname(self.path), 0o755, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.path, 0o755)
                self._made = True
            return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if not os.path.islink(self.path):  # it was removed just now
                return self._opened()
            raise ConfigError(f"pids = {self.path}: it links to nothing; name another directory") from error
        except OSError as error:
            reason = os.strerror(errno.ENOTDIR) if error.errno == errno.EEXIST else error.strerror  # one above it
            if os.path.exists(self.path) and not os.path.isdir(self.path):
                reason = "it is no directory"
            raise ConfigError(f"pids = {self.path}: can't be created: {reason}; name another directory") from error

    def _lock(self, fd: int) -> None:
        for _ in range(_VISITS):
            try:
                if _try_lock(fd, fcntl.LOCK_EX):
                    return
                if not _try_lock(fd, fcntl.LOCK_SH):
                    break
                fcntl.flock(fd, fcntl.LOCK_UN)
            except OSError as error:
                raise ConfigError(
                    f"pids = {self.path}: its file system can't lock a directory ({error.strerror}); name a local one"
                ) from error
            time.sleep(0.001)
        pid = _named_master(fd)
        who = f"with pid {pid}" if pid else "that is just starting or leaving"
        raise AlreadyRunning(f"{self.path}: a master {who} runs here; stop it, or name another pids directory")

    def _prove_writable(self) -> None:
        """`access` doesn't say why (and root may do all but write to a read-only file system): so write something."""
        probe = f"master.{os.getpid()}.pid"
        try:
            self._remove(probe)
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=self._fd))
            os.unlink(probe, dir_fd=self._fd)
        except FileExistsError:
            pass  # something that isn't ours; `write_master` will name it
        except OSError as error:
            raise ConfigError(
                f"pids = {self.path}: can't be written: {error.strerror}; name another directory"
            ) from error

    def _write(self, name: str, pid: int) -> None:
        try:
            self._remove(name)  # of an earlier process with the same pid: pids start over with each container
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(name, flags, 0o644, dir_fd=self._fd), "w") as file:
                file.write(f"{pid}\n")
        except OSError as error:
            reason = "something that is no pid file has its name" if error.errno == errno.EEXIST else error.strerror
            raise ConfigError(f"{self.path}/{name}: can't be written: {reason}") from error

    def _remove(self, name: str) -> None:
        if _is_ours(self._fd, name):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._fd)


def held(path: str | os.PathLike[str]) -> bool:
    """Whether a master holds the lock of this directory; false if there is no such directory."""
    fd = _open(path)
    if fd is None:
        return False
    try:
        return not _try_lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def master_pid(path: str | os.PathLike[str]) -> int | None:
    """The pid of the master that runs on this directory; None if none does, or if it hasn't written its pid yet."""
    if not held(path):
        return None
    fd = _open(path)
    if fd is None:
        return None
    try:
        return _named_master(fd)
    finally:
        os.close(fd)


def connect_control(path: str | os.PathLike[str], timeout: float | None = None) -> socket.socket:
    """A connection to the master on this directory, however long its path is.

    Args:
        timeout: the socket's timeout in seconds, for connecting and afterwards; None: it blocks.
    Raises:
        NotRunning: there is no directory, no socket, or nobody listens on it.
        OSError: the system refuses for another reason (EACCES: the master is another user's).
    """
    fd = _open(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        if fd is None:
            raise FileNotFoundError
        sock.connect(f"/proc/self/fd/{fd}/{CONTROL}")
    except (FileNotFoundError, ConnectionRefusedError) as error:
        sock.close()
        raise NotRunning(
            f"no master is running on {os.path.abspath(path)}; start one, or name its directory with --pids"
        ) from error
    except BaseException:
        sock.close()
        raise
    finally:
        if fd is not None:
            os.close(fd)
    return sock


def _open(path: str | os.PathLike[str]) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _has_name(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _is_ours(fd: int, name: str) -> bool:
    try:
        mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return False
    return stat.S_ISSOCK(mode) if name == CONTROL else bool(_PID_FILE.fullmatch(name)) and stat.S_ISREG(mode)


def _ours(fd: int) -> list[str]:
    return [name for name in os.listdir(fd) if _is_ours(fd, name)]


def _named_master(fd: int) -> int | None:
    """The pid in the name of the master's file; of the newest, in the moment before stale ones are cleared."""
    newest: tuple[int, int] | None = None
    for name in _ours(fd):
        match = _PID_FILE.fullmatch(name)
        if match and match[1] == "master":
            with contextlib.suppress(FileNotFoundError):
                seen = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mtime_ns, int(match[2])
                newest = max(newest, seen) if newest else seen
    return newest[1] if newest else None
