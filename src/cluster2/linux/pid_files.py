"""The pids directory: the pids of a cluster, the lock that keeps a second master out, and the control socket.

**The lock** is on `master.lock`, a file with mode 0600: no other user can open it, and so none can hold its lock. (`flock` works
on every descriptor, and each user can open a directory with mode 0755.) The lock ends with the last process that has the
descriptor, so it is never stale. Only the master has it: the descriptor is close-on-exec, and all its children are executed.
`posix_spawn` returns some microseconds before the kernel closes it in the child, so the lock is released by LOCK_UN, not only by
`close`.

The file is removed under the lock. A master that had it open already gets the lock of a file without a name then. So each master
checks whether the file that it has locked, and the directory around it, still have their names, and begins anew if not.

**The name.** A directory can be removed under a running master, and its lock with it. An abstract Unix socket can't be removed:
its name is made of the user and the path, and the kernel keeps it as long as the master lives. A second master connects to it and
asks for the owner (SO_PEERCRED). Any user can take any such name. So a foreign owner, or one that can't be asked, proves nothing
and keeps no master out: then the lock alone decides.

**Restoring.** The master checks once a second whether lock, control socket and its pid file are in their places (`intact`), and
puts them there again (`restore`).

**Files.** `master.<pid>.pid` and `worker.<pid>.pid` hold the pid once more, for scripts that `cat` them. This module uses the
name, which can't be half written. All calls are relative to the descriptor of the directory, so that no other directory can be
put in its place. Only regular files (for master.sock: a socket) with exactly these names are ever removed. A symbolic link is
neither followed nor removed: files are made with O_EXCL.

**The socket.** A path in `sockaddr_un` has 107 bytes at most, and pids directories in deep build trees are longer. `bind` to
`/proc/self/fd/N/master.sock` puts the socket into the directory behind descriptor N, however long its path is, and
`connect_control` connects the same way. Its mode is set by `fchmod` *before* `bind`, which takes it over to the file: there is no
moment at which other users could connect.
"""

from __future__ import annotations

import binascii
import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import struct
import time
from typing import Final, NamedTuple

from cluster2.errors import AlreadyRunning, ConfigError, NotRunning

CONTROL_SOCKET: Final = "master.sock"

_PID_FILE: Final = re.compile(r"(master|worker)\.([1-9][0-9]{0,9})\.pid")
_LOCK: Final = "master.lock"
_RETRIES: Final = 200  # a millisecond apart: for locks and names of masters that are just leaving
_NAME_TAIL_BYTES: Final = 60


class PidsDirectory:
    """The pids directory as its master sees it. `acquire` first, `release` last; all else needs the lock."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Touches nothing yet. A relative path is resolved now: a later change of directory doesn't move it."""
        self.path = os.path.abspath(path)
        self._fd = -1
        self._lock_fd = -1
        self._name: socket.socket | None = None
        self._control: os.stat_result | None = None
        self._master_pid = 0
        self._made = False

    def acquire(self) -> None:
        """Create the directory if need be, lock it, and clear what dead masters left.

        Raises:
            ConfigError: it can't be created, written, or locked.
            AlreadyRunning: a master runs on it.
        """
        self._name = self._claim_name()
        try:
            self._take_place()
        except BaseException:
            self._give_up()
            raise

    def descriptors(self) -> list[int]:
        """Return the descriptors that mean that a master runs on it."""
        return [self._lock_fd, -1 if self._name is None else self._name.fileno()]

    def intact(self) -> bool:
        """Return whether the directory has its name, and lock, control socket and the master's pid file are in it."""
        try:
            return (
                _has_name(self._fd, self.path)
                and os.path.samestat(os.fstat(self._lock_fd), self._stat(_LOCK))
                and (self._control is None or os.path.samestat(self._control, self._stat(CONTROL_SOCKET)))
                and (not self._master_pid or stat.S_ISREG(self._stat(f"master.{self._master_pid}.pid").st_mode))
            )
        except OSError:
            return False

    def restore(self) -> None:
        """Create and lock the directory again, and write the master's pid. Pid files of workers and the socket are to follow.

        Raises:
            ConfigError: it can't be created, written, or locked.
            AlreadyRunning: another master has taken it.
        """
        made, master = self._made, self._master_pid
        self._close_lock()
        try:
            self._take_place()
        except BaseException:
            # The files there are another master's: `release` must not clear them.
            self._close()
            raise
        finally:
            self._made = made
        if master:
            self.write_master(master)

    def keep(self) -> None:
        """Keep the directory when the cluster leaves: it has served."""
        self._made = False

    def write_master(self, pid: int) -> None:
        """Write master.<pid>.pid.

        Raises:
            ConfigError: it can't be written, or something that isn't a pid file has its name.
        """
        self._master_pid = pid
        self._write(f"master.{pid}.pid", pid)

    def write_worker(self, pid: int) -> None:
        """Write worker.<pid>.pid; errors as for `write_master`."""
        self._write(f"worker.{pid}.pid", pid)

    def remove_worker(self, pid: int) -> None:
        """Remove worker.<pid>.pid if it is there."""
        self._remove(f"worker.{pid}.pid")

    def bind_control(self, backlog: int) -> socket.socket:
        """Return the control socket: bound to master.sock with mode 0600, listening, non-blocking, close-on-exec.

        Raises:
            ConfigError: it can't be bound, or something that is no socket has its name.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Before `bind`, which takes the mode over to the file: other users can connect at no moment.
            os.fchmod(sock.fileno(), 0o600)
            # The path behind /proc/self/fd is short, whatever the length of the directory's path.
            sock.bind(f"/proc/self/fd/{self._fd}/{CONTROL_SOCKET}")
            sock.listen(backlog)
            self._control = self._stat(CONTROL_SOCKET)
        except OSError as error:
            sock.close()
            reason = "its name is taken" if error.errno == errno.EADDRINUSE else error.strerror
            raise ConfigError(f"{self.path}/{CONTROL_SOCKET}: the control socket can't be bound: {reason}") from error
        sock.setblocking(False)
        return sock

    def clear(self) -> None:
        """Remove the cluster's pid files and its control socket. Other files stay."""
        for name in _ours(self._fd):
            self._remove(name)

    def release(self) -> None:
        """Clear the directory and give the lock up; a second call does nothing. Remove it if it was made for nothing."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # read-only by now: what is left, the next master removes
                self.clear()
            with contextlib.suppress(OSError):  # removed, or replaced by something of another user
                if os.path.samestat(os.fstat(self._lock_fd), self._stat(_LOCK)):
                    os.unlink(_LOCK, dir_fd=self._fd)
            if self._made:
                with contextlib.suppress(OSError):  # it isn't empty: another program has put a file there
                    os.rmdir(self.path)
        self._give_up()

    def _close(self) -> None:
        self._close_lock()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _give_up(self) -> None:
        self._close()
        if self._name is not None:
            # A program that is just being executed may share the descriptor still: then connects are refused from now on.
            self._name.shutdown(socket.SHUT_RDWR)
            self._name.close()
            self._name = None

    def _close_lock(self) -> None:
        if self._lock_fd >= 0:
            with contextlib.suppress(OSError):  # the file system has no locks
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _stat(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self._fd, follow_symlinks=False)

    def _claim_name(self) -> socket.socket | None:
        """Take the name of this directory. None: another user has it, or the system refuses; then the lock decides.

        Raises:
            AlreadyRunning: a master of ours has it.
        """
        path = os.fsencode(os.path.realpath(self.path))
        # An abstract name has 107 bytes at most: the checksum stands for the part of the path that doesn't fit.
        name = b"\0cluster2:%d:%08x:%s" % (os.geteuid(), binascii.crc32(path), path[-_NAME_TAIL_BYTES:])
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            for _ in range(_RETRIES):
                try:
                    sock.bind(name)
                    sock.listen(1)
                    return sock
                except OSError as error:
                    owner = _owner(name) if error.errno == errno.EADDRINUSE else None
                if owner is None:
                    break
                if not owner.leaves:
                    raise AlreadyRunning(self._refusal(owner.pid))
                time.sleep(0.001)
        except BaseException:
            sock.close()
            raise
        sock.close()
        return None

    def _take_place(self) -> None:
        """Create, lock and clear the directory, until what was locked has its name."""
        while True:
            fd = self._opened()
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = fd
            self._lock_fd = self._open_lock()
            if self._lock_fd >= 0:
                self._lock()
                # A master that leaves removes both under the lock. If that was in between, the locked file has no name any more.
                if _has_name(fd, self.path) and self._has_lock():
                    break
                self._close_lock()
        self._prove_writable()
        self.clear()

    def _has_lock(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._lock_fd), self._stat(_LOCK))
        except FileNotFoundError:
            return False

    def _open_lock(self) -> int:
        """Return a descriptor of the lock file; -1: the directory was removed just now."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(_LOCK, flags, 0o600, dir_fd=self._fd)
        except FileNotFoundError:
            return -1
        except OSError as error:
            raise ConfigError(self._unusable(error)) from error
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
            return fd
        os.close(fd)
        raise ConfigError(
            f"{self.path}/{_LOCK}: it is user {found.st_uid}'s, or no file; remove it, or name another directory"
        )

    def _unusable(self, error: OSError) -> str:
        if os.path.lexists(f"{self.path}/{_LOCK}") and error.errno != errno.EROFS:
            return f"{self.path}/{_LOCK}: can't be opened: {error.strerror}; remove it, or name another directory"
        return f"pids = {self.path}: can't be written: {error.strerror}; name another directory"

    def _opened(self) -> int:
        try:
            os.makedirs(os.path.dirname(self.path), 0o755, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.path, 0o755)
                self._made = True
            return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if not os.path.islink(self.path):  # another master removed it just now
                return self._opened()
            raise ConfigError(f"pids = {self.path}: it links to nothing; name another directory") from error
        except OSError as error:
            reason = (
                os.strerror(errno.ENOTDIR) if error.errno == errno.EEXIST else error.strerror
            )  # a directory above it is a file
            if os.path.exists(self.path) and not os.path.isdir(self.path):
                reason = "it is no directory"
            raise ConfigError(f"pids = {self.path}: can't be created: {reason}; name another directory") from error

    def _lock(self) -> None:
        try:
            if _try_lock(self._lock_fd):
                return
        except OSError as error:
            raise ConfigError(
                f"pids = {self.path}: its file system can't lock a file ({error.strerror}); name a local one"
            ) from error
        raise AlreadyRunning(self._refusal(_named_master(self._fd)))

    def _refusal(self, pid: int | None) -> str:
        master = f"with pid {pid}" if pid else "that is just starting or leaving"
        return f"{self.path}: a master {master} runs here; stop it, or name another pids directory"

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


class _Owner(NamedTuple):
    """The master that has a name. The pid is 0 if it is not to be seen from here."""

    pid: int
    leaves: bool


def _owner(name: bytes) -> _Owner | None:
    """Ask for the master that has a name. None: it is another user's, or does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        result = probe.connect_ex(name)
        if result == errno.ECONNREFUSED:
            return _Owner(0, leaves=True)
        if result != 0:
            return None
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return _Owner(pid, leaves=False) if uid == os.geteuid() else None


def connect_control(path: str | os.PathLike[str], timeout: float | None = None) -> socket.socket:
    """Connect to the master on this directory, however long its path is.

    Args:
        timeout: the socket's timeout in seconds, for connecting and afterwards; None: it blocks.
    Raises:
        NotRunning: there is no directory, no socket, or no process listens on it.
        OSError: the system refuses for another reason (EACCES: the master is another user's).
    """
    fd = _open(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        if fd is None:
            raise FileNotFoundError
        sock.connect(f"/proc/self/fd/{fd}/{CONTROL_SOCKET}")
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


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    return stat.S_ISSOCK(mode) if name == CONTROL_SOCKET else bool(_PID_FILE.fullmatch(name)) and stat.S_ISREG(mode)


def _ours(fd: int) -> list[str]:
    return [name for name in os.listdir(fd) if _is_ours(fd, name)]


def _named_master(fd: int) -> int | None:
    """Return the pid in the name of the master's file; of the newest, in the moment before stale ones are cleared."""
    newest: tuple[int, int] | None = None
    for name in _ours(fd):
        match = _PID_FILE.fullmatch(name)
        if match and match[1] == "master":
            with contextlib.suppress(FileNotFoundError):
                seen = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mtime_ns, int(match[2])
                newest = max(newest, seen) if newest else seen
    return newest[1] if newest else None
