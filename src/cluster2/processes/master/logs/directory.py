"""The directory of logs as its keeper sees it: files are rotated when they are large, and all together stay within a bound.

Each log that is written may be as large as `log_size`, or its share of half of `log_total` if that is less. A larger one is
rotated: renamed, and a new one made in its place (`kernel.logfiles`). When all together are larger than `log_total`, the oldest
file of that log goes which has the most: who says much loses its own past, not that of others.

Writers have some time to notice that their file was renamed. A rotated file that has grown since by more than a file may have
is written by somebody who doesn't look; it is cut to nothing, and the log says how much that was. (Not its size tells: a burst
between two looks makes a file of any size, whose writers may look in time.) A file that somebody has open is cut, too, instead
of removed: a removed one could grow where nobody sees it.

It also makes what isn't there any more: the directory, and files that whoever workers are may not make themselves.

What can't be done with one log (a directory has the name that it should be rotated to, a fifo its own) doesn't keep the others
from being kept in order. One that can't be rotated is cut to nothing when all together are too much.

A look costs 6 µs a file. It is due four times a second if something has happened there (inotify tells), else every two
seconds; and 20 times while a file grows quickly: a flood of 1 GB/s, a disk's best, can exceed the bound by 250 MB when it
begins, by 50 MB when it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

from ....config.settings import Settings
from ....errors import ConfigError
from ....linux import log_files
from ....linux.directory_claim import DirectoryClaim
from ....linux.inotify import DIRECTORY_EVENTS, Inotify
from ....linux.log_files import Found
from ....runtime import logging_setup
from .forwarder import LogForwarder

logger = logging.getLogger("cluster2.master")

LOG_POLL_INTERVAL_S, FAST_LOG_POLL_INTERVAL_S = 0.25, 0.05
"""Seconds between two looks; the second one while a file grows quickly."""
_IDLE_LOG_POLL_INTERVAL_S = 10.0
"""Seconds between two polls where nothing happens: the disk may fill up all the same. Each takes 0.7 ms of the master."""
WRITER_GONE_AFTER_S = 5.0
"""Seconds since its last change after which nobody writes to a rotated file any more, where the kernel doesn't tell."""
FULL_DISK_BLOCKS = 16
"""Blocks of a disk: with fewer it is full."""
MIN_FILE_BYTES = 1 << 12
"""Bytes that a file may have, however many share the total."""
MAX_ROTATED_FILES = 200
"""Rotated files of a log that are kept if there is a total: each rotation renames them all."""
_CUT_REPORT_INTERVAL_S = 60.0
"""Seconds between two lines about what was cut."""


class LogDirectory:
    """Keeps the directory. It is the only one who renames and removes files there.

    Attributes:
        directory: absolute.
        output: the file that this process's output goes to; "": it goes elsewhere.
    """

    def __init__(
        self,
        directory: str,
        size: int,
        total: int,
        *,
        own: str = "all",
        relayed: bool = False,
        access: bool = False,
        warn: Callable[[str], None] = logger.warning,
    ) -> None:
        """Make the directory.

        Args:
            directory: absolute.
            size: bytes above which a file is rotated; 0: never, that is somebody else's business.
            total: bytes that all may have together; 0: any number.
            own: what of this process goes there until `close`: "all" that it writes, "log": a copy of its log, "": nothing.
            relayed: whether what the others write there is shown on standard error as well.
            access: whether requests are logged.
            warn: takes what the log should say, until `start` is given something better.

        Raises:
            ConfigError: the directory can't be made, or not be written to.
        """
        self.directory = directory
        self.output = self._path(log_files.MASTER_LOG) if own == "all" else ""
        self._size, self._total, self._warn = size, total, warn
        numbers = (1, 2) if own == "all" else ()
        self._own = log_files.ReopeningFile(self._path(log_files.MASTER_LOG), *numbers) if own else None
        self._relay: LogForwarder | None = None
        self._owner: tuple[int, int] | None = None
        self._entrusted = {log_files.ACCESS_LOG} if access else set[str]()
        self._sizes: dict[str, int] = {}
        self._rotated: dict[int, int] = {}  # by inode: bytes that a file had when it was rotated, or cut, or first seen
        self._full = False
        self._file_limit_told: int | None = None
        self._cut = 0
        self._said_at = -_CUT_REPORT_INTERVAL_S
        self._failed = ""
        self._failures: list[OSError] = []
        self._timer: asyncio.TimerHandle | None = None
        self._watch: Inotify | None = None
        try:
            self._made = not os.path.isdir(directory)
            os.makedirs(directory, mode=0o755, exist_ok=True)
            self._before = [os.dup(number) for number in (1, 2)] if own == "all" else []
            if self._own is not None:
                self._own.reopen_if_moved()
            for base in self._entrusted:
                self._make(base)
            self._claim = DirectoryClaim(directory)
        except OSError as error:
            raise ConfigError(f"logs = {directory!r}: can't write there: {error.strerror}; name another, or set "
                              "log_to = stderr") from None  # fmt: skip
        if own == "log":
            logging_setup.copy_to(self._copy)
        if relayed:
            self._relay = LogForwarder(directory)

    @classmethod
    def from_settings(cls, settings: Settings, *, own: bool) -> LogDirectory | None:
        """That of a cluster; None if all goes to standard error.

        Args:
            own: whether this process is the cluster's alone.
        """
        if settings.log_to == "stderr":
            return None
        both = settings.log_to == "both"
        return cls(
            settings.logs,
            settings.log_size,
            settings.log_total,
            own=("log" if both else "all") if own else "",
            relayed=both,
            access=settings.access_log,
        )

    @property
    def keeps_files_open(self) -> bool:
        """Whether what workers write is shown on standard error as well: then each of their files is held open here."""
        return self._relay is not None

    def ensure_file(self, slot: int) -> None:
        """A worker of that slot will open its file: have it there, as its user's.

        A file that is too large is rotated first. At the next look the worker would have it open: what the worker writes before
        it notices the rotation would be cut, and in a crash loop that may be its last words.
        """
        base = log_files.worker(slot)
        self._entrusted.add(base)
        with contextlib.suppress(OSError):  # the worker says what it can't open, and `poll` what it can't rotate
            self._make(base)
            files = log_files.log_files(self.directory)
            if self._size and any(each.name == base and each.size > self._limit(files) for each in files):
                self._rotate(base, files)

    def set_owner(self, owner: tuple[int, int]) -> None:
        """Workers are this user and group, by number: they, and all who aren't the master, are to open files themselves."""
        if owner not in ((-1, -1), (os.geteuid(), os.getegid()), self._owner):
            self._owner = owner
            for each in log_files.log_files(self.directory):
                with contextlib.suppress(OSError):  # whoever can't open one says so
                    self._make(each.base)

    def note_exit(self, slot: int, pid: int, how: str, meant: bool) -> None:
        """A worker of that slot has ended: its file says so below its last words."""
        with contextlib.suppress(OSError):  # the event says it as well
            self._make(log_files.worker(slot))
            fd = log_files.open_to_write(self._path(log_files.worker(slot)), readable=True)
            try:
                level = logging.INFO if meant else logging.ERROR
                said = logging_setup.line(f"worker {pid} has ended: {how}", level, worker=pid, slot=slot)
                if self._relay is not None:
                    self._relay.leave_out(said)
                log_files.write_all(fd, said if log_files.ends_a_line(fd) else b"\n" + said)
            finally:
                os.close(fd)

    def start(self, warn: Callable[[str], None] | None = None) -> None:
        """Look now and then, on the running loop."""
        self._warn = warn or self._warn
        self._loop = asyncio.get_running_loop()
        if self._claim.shared:
            pids = ", ".join(f"process {pid}" for pid in self._claim.others) or "another cluster"
            self._warn(
                f"logs = {self.directory}: {pids} keeps its log files there too, under the same names: the clusters mix their lines "
                "and rotate each other's files; set logs to a directory of its own"
            )
        if self._relay is not None:
            self._relay.start()
        self._poll_again()

    def _poll_again(self) -> None:
        self._unwatch()
        pause = LOG_POLL_INTERVAL_S
        try:
            pause = self.poll()
        finally:
            if pause == LOG_POLL_INTERVAL_S and self._watched():
                pause = _IDLE_LOG_POLL_INTERVAL_S  # or sooner: `_stirred`
            self._timer = self._loop.call_later(pause, self._poll_again)

    def _watched(self) -> bool:
        """Have the kernel tell when something happens there. Returns whether it does."""
        try:
            if self._watch is None:
                self._watch = Inotify(self.directory, DIRECTORY_EVENTS)
            else:
                self._watch.renew()
        except OSError:  # there are no more of them, or the directory isn't there
            return False
        self._watch.clear()
        self._loop.add_reader(self._watch.fileno(), self._stirred)
        return True

    def _stirred(self) -> None:
        """Something has happened: look soon, and not for each time that it happens."""
        self._unwatch()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(LOG_POLL_INTERVAL_S, self._poll_again)

    def _unwatch(self) -> None:
        if self._watch is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._watch.fileno())

    def stop(self) -> None:
        """Look no more."""
        self._claim.release()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watch is not None:
            self._unwatch()
            self._watch.close()
            self._watch = None
        if self._relay is not None:
            self._relay.stop()
            self._relay = None

    def close(self) -> None:
        """Give this process back the output that it had. A directory that was made for nothing goes again."""
        self.stop()
        if self._own is not None and not self._before:
            logging_setup.copy_no_more(self._copy)
            self._own.close()
        self._own = None
        for number, before in enumerate(self._before, 1):
            os.dup2(before, number, inheritable=True)
            os.close(before)
        self._before = []
        files = log_files.log_files(self.directory)
        if self._made and not any(each.size for each in files):
            with contextlib.suppress(OSError):  # somebody keeps something else there
                for each in files:
                    os.unlink(self._path(each.name))
                os.rmdir(self.directory)

    def poll(self) -> float:
        """Do what is due. Returns in how many seconds to look again."""
        self._failures = []
        try:
            pause = self._poll_all()
        except OSError as error:  # a directory that was taken away: it may come back
            self._failures.append(error)
            pause = LOG_POLL_INTERVAL_S
        failed = str(self._failures[0]) if self._failures else ""
        if failed and failed != self._failed:
            self._warn(f"the logs in {self.directory} can't be kept in order: {failed}")
        self._failed = failed
        return pause

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Around what is done with one file: if it can't be, it is told, and the others have their turn."""
        try:
            yield
        except OSError as error:
            self._failures.append(error)

    def _poll_all(self) -> float:
        os.makedirs(self.directory, mode=0o755, exist_ok=True)
        if self._own is not None:
            with self._alone():
                self._own.reopen_if_moved()
        files = log_files.log_files(self.directory)
        for base in sorted(self._entrusted.difference(each.name for each in files)):
            with self._alone():
                self._make(base)
        self._notice_full()
        pause = self._keep_within(files) if self._size else LOG_POLL_INTERVAL_S
        self._notice_file_limit(files)  # after the rotation, so that master.log can take the warning
        return pause

    def _notice_full(self) -> None:
        """Who writes loses words without complaint, since it can't complain there; so this is said here, once."""
        disk = os.statvfs(self.directory)
        full = disk.f_blocks > 0 and disk.f_bavail < FULL_DISK_BLOCKS
        if full and not self._full:
            self._warn(f"the disk of {self.directory} is full: what is logged is lost; the cluster serves on")
        if self._full and not full:
            logger.info("the disk of %s has room again", self.directory)
        self._full = full

    def _notice_file_limit(self, files: list[Found]) -> None:
        """Warn, once for each value of RLIMIT_FSIZE, that a log has reached it: the process that writes can't say so there."""
        limit = log_files.file_size_limit()
        if limit is None or limit == self._file_limit_told:
            return
        for each in files:
            if each.age == 0 and each.size >= limit:
                self._file_limit_told = limit
                self._warn(
                    f"RLIMIT_FSIZE allows files of {limit} bytes, and {each.base} in {self.directory} has reached that: what is "
                    "logged beyond it is lost; the cluster serves on; raise the limit (LimitFSIZE=, ulimit -f)"
                )
                return

    def _keep_within(self, files: list[Found]) -> float:
        limit = self._limit(files)
        grows = False
        self._rotated = {each.inode: self._rotated.get(each.inode, each.size) for each in files if each.age}
        for each in reversed(files):  # the newest of a log last: to rotate it renames the others
            if each.age == 0:
                grows |= each.size - self._sizes.get(each.base, each.size) > limit / 8
                if each.size > limit:
                    with self._alone():
                        self._rotate(each.base, files)
                        grows = True
            elif each.size - self._rotated[each.inode] > limit:
                with self._alone():
                    self._empty(each)
                    self._cut += each.size
                grows = True
        if grows:
            files = log_files.log_files(self.directory)
        self._sizes = {each.base: each.size for each in files if each.age == 0}
        self._evict(files, limit)
        self._tell()
        return FAST_LOG_POLL_INTERVAL_S if grows else LOG_POLL_INTERVAL_S

    def _limit(self, files: list[Found]) -> int:
        size = self._size
        if (allowed := log_files.file_size_limit()) is not None:
            size = min(
                size, allowed // 2
            )  # a file that may grow no more loses lines: the other half is for what comes until then
        if not self._total:
            return max(MIN_FILE_BYTES, size)
        logs = sum(each.age == 0 for each in files)
        return max(MIN_FILE_BYTES, min(size, self._total // (2 * max(1, logs))))

    def _rotate(self, base: str, files: list[Found]) -> None:
        ages = {each.age for each in files if each.base == base}
        last = next(age for age in itertools.count() if age + 1 not in ages)
        # Up to a gap: where the first step fails nothing has moved, however often it is tried.
        for age in range(last, -1, -1):
            old = base if age == 0 else f"{base}.{age}"
            os.rename(self._path(old), self._path(f"{base}.{age + 1}"))
        newest = os.stat(self._path(f"{base}.1"), follow_symlinks=False)
        self._rotated[newest.st_ino] = newest.st_size
        self._make(base)
        if base == log_files.MASTER_LOG and self._own is not None:
            self._own.reopen_if_moved()

    def _evict(self, files: list[Found], limit: int) -> None:
        """Remove what is too much, the oldest of the largest log first; then cut what can't be rotated.

        And what is empty, and rotated, and left alone is removed, too.
        """
        now = time.time()
        rotated: dict[str, list[Found]] = defaultdict(list)
        for each in files:
            if each.age:
                rotated[each.base].append(each)
        excess = sum(each.size for each in files) - self._total if self._total else 0
        while excess > 0 and any(rotated.values()):
            most = max(rotated.values(), key=lambda those: sum(each.size for each in those))
            excess -= most[-1].size
            with self._alone():
                self._drop(most.pop(), now)
        for those in rotated.values():
            while self._total and len(those) > MAX_ROTATED_FILES:
                with self._alone():
                    self._drop(those.pop(), now)
        for those in rotated.values():
            for each in those:
                with self._alone():
                    if not each.size and not self._is_written(each, now):
                        os.unlink(self._path(each.name))
        for each in files:
            if excess > 0 and not each.age and each.size > limit:  # it could not be rotated
                excess -= each.size
                with self._alone():
                    self._empty(each)
                    self._cut += each.size

    def _drop(self, each: Found, now: float) -> None:
        if not self._is_written(each, now):
            os.unlink(self._path(each.name))
        elif each.size:
            self._empty(each)

    def _is_written(self, each: Found, now: float) -> bool:
        told = log_files.is_open_to_write(self._path(each.name))
        return abs(now - each.changed) < WRITER_GONE_AFTER_S if told is None else told

    def _empty(self, each: Found) -> None:
        log_files.empty(self._path(each.name))
        self._rotated[each.inode] = 0

    def _tell(self) -> None:
        now = time.monotonic()
        if self._cut and now - self._said_at >= _CUT_REPORT_INTERVAL_S:
            self._said_at = now
            self._warn(
                f"logs: {self._cut / 2**20:.0f} MiB were dropped: somebody writes more than log_size before looking "
                "whether its file was rotated"
            )
            self._cut = 0

    def _copy(self, line: bytes) -> None:
        if self._own is not None and self._own.fd >= 0:
            with contextlib.suppress(OSError):  # the disk is full; it stands on standard error
                log_files.write_all(self._own.fd, line)

    def _make(self, base: str) -> None:
        fd = log_files.open_to_write(self._path(base))
        try:
            if self._owner is not None:
                if os.fstat(fd).st_nlink != 1:  # by another name it may be somebody else's
                    raise OSError(errno.EMLINK, "it has another name as well")
                # What the master says is its own; but the monitor, who is the workers' user, shows it.
                user, group = self._owner
                os.fchown(fd, -1 if base == log_files.MASTER_LOG else user, group)
        finally:
            os.close(fd)

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)
