"""Keep the directory of log files in order: rotate large files, and bound the size of all together.

**Sizes.** Each log that is written may be as large as `log_size`, or its share of half of `log_total` if that is less. A larger
one is rotated: renamed, and a new file is made in its place (`linux.log_files`). When all together are larger than `log_total`,
the oldest file of the largest log is removed: a worker that writes much loses its own past, not that of others.

**Writers that don't notice.** A writer has some time to notice that its file was renamed. A rotated file that has grown since
then by more than a file may have belongs to a writer that doesn't check; it is truncated, and the log says how much was dropped.
Its size alone proves nothing: a burst between two polls makes a file of any size, whose writer may check in time. A file that a
process has open is truncated instead of removed, since a removed file could grow unseen.

**Repair.** The directory, and files that the user of the workers may not create, are made again when they are missing.

**Failures.** A log that can't be kept in order (a directory has the name that it should be rotated to, or the log is a fifo)
doesn't affect the others. A log that can't be rotated is truncated when all together are too large.

**Cost.** A poll takes 6 µs a file. Polls are due four times a second if something has happened in the directory (inotify), 20
times while a file grows quickly, and else every ten seconds. A flood of 1 GB/s, a disk's best, can exceed the bound by 250 MB
when it begins, and by 50 MB while it goes on.
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
"""Seconds between two polls; the second one while a file grows quickly."""
_IDLE_LOG_POLL_INTERVAL_S = 10.0
"""Seconds between two polls where nothing happens: the disk may fill up all the same. Each takes 0.7 ms of the master."""
WRITER_GONE_AFTER_S = 5.0
"""Seconds without a change after which a rotated file has no writer, where the kernel doesn't say whether it has."""
_FULL_DISK_BLOCKS = 16
"""Free blocks of a disk below which it counts as full."""
MIN_FILE_BYTES = 1 << 12
"""Bytes that a file may always have, however many share the total."""
MAX_ROTATED_FILES = 200
"""Rotated files of a log that are kept if there is a total. Each rotation renames them all."""
_CUT_REPORT_INTERVAL_S = 60.0
"""Seconds between two lines about truncated files."""


class LogDirectory:
    """The directory of log files. Only this object renames and removes files there.

    Attributes:
        directory: absolute.
        output: the file that takes the output of this process; "": the output goes elsewhere.
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
            size: bytes above which a file is rotated; 0: never, another program does that.
            total: bytes that all may have together; 0: any number.
            own: the output of this process that goes there until `close`: "all", "log" (a copy of its log), or "" (nothing).
            relayed: lines that other processes write there are shown on standard error as well.
            access: requests are logged.
            warn: takes warnings until `start` is given another function.

        Raises:
            ConfigError: the directory can't be made, or can't be written to.
        """
        self.directory = directory
        self.output = self._path(log_files.MASTER_LOG) if own == "all" else ""
        self._size, self._total, self._warn = size, total, warn
        numbers = (1, 2) if own == "all" else ()
        self._own = log_files.ReopeningFile(self._path(log_files.MASTER_LOG), *numbers) if own else None
        self._relay: LogForwarder | None = None
        self._owner: tuple[int, int] | None = None
        self._worker_files = {log_files.ACCESS_LOG} if access else set[str]()
        self._sizes: dict[str, int] = {}
        self._rotated: dict[int, int] = {}  # by inode: bytes that a file had when it was rotated, or cut, or first seen
        self._full = False
        self._file_limit_told: int | None = None
        self._cut = 0
        self._cut_reported_at = -_CUT_REPORT_INTERVAL_S
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
            for base in self._worker_files:
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
        """Return the directory of a cluster; None if all output goes to standard error.

        Args:
            own: this process belongs to the cluster alone.
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
        """True if the output of workers is shown on standard error as well: then each of their files is held open here."""
        return self._relay is not None

    def ensure_file(self, slot: int) -> None:
        """Make the file that a worker of that slot will open, with its user as the owner.

        A file that is too large is rotated first. At the next poll the worker would have it open already: the lines that it
        writes before it notices the rotation would be cut, and in a crash loop these may be its last output.
        """
        base = log_files.worker(slot)
        self._worker_files.add(base)
        with contextlib.suppress(
            OSError
        ):  # the worker reports a file that it can't open, and `poll` one that it can't rotate
            self._make(base)
            files = log_files.log_files(self.directory)
            if self._size and any(each.name == base and each.size > self._limit(files) for each in files):
                self._rotate(base, files)

    def set_owner(self, owner: tuple[int, int]) -> None:
        """Give the files to the user and group of the workers, by number, so that all processes but the master can open them."""
        if owner not in ((-1, -1), (os.geteuid(), os.getegid()), self._owner):
            self._owner = owner
            for each in log_files.log_files(self.directory):
                with contextlib.suppress(OSError):  # a process that can't open its file reports it
                    self._make(each.base)

    def note_exit(self, slot: int, pid: int, how: str, meant: bool) -> None:
        """Append a line about the end of a worker to its file, below its last output."""
        with contextlib.suppress(OSError):  # the event `died` reports the end as well
            self._make(log_files.worker(slot))
            fd = log_files.open_to_write(self._path(log_files.worker(slot)), readable=True)
            try:
                level = logging.INFO if meant else logging.ERROR
                line = logging_setup.line(f"worker {pid} has ended: {how}", level, worker=pid, slot=slot)
                if self._relay is not None:
                    self._relay.leave_out(line)
                log_files.write_all(fd, line if log_files.ends_a_line(fd) else b"\n" + line)
            finally:
                os.close(fd)

    def start(self, warn: Callable[[str], None] | None = None) -> None:
        """Poll from now on, on the running loop."""
        self._warn = warn or self._warn
        self._loop = asyncio.get_running_loop()
        if self._claim.shared:
            pids = ", ".join(f"process {pid}" for pid in self._claim.others) or "another cluster"
            self._warn(
                f"logs = {self.directory}: {pids} keeps its log files there too, under the same names: the clusters mix their "
                "lines and rotate each other's files; set logs to a directory of its own"
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
                pause = _IDLE_LOG_POLL_INTERVAL_S  # or sooner: `_on_change`
            self._timer = self._loop.call_later(pause, self._poll_again)

    def _watched(self) -> bool:
        """Watch the directory with inotify. Return True if that works."""
        try:
            if self._watch is None:
                self._watch = Inotify(self.directory, DIRECTORY_EVENTS)
            else:
                self._watch.renew()
        except OSError:  # the limit of watches is reached, or the directory is missing
            return False
        self._watch.clear()
        self._loop.add_reader(self._watch.fileno(), self._on_change)
        return True

    def _on_change(self) -> None:
        """Poll soon after a change. Many changes lead to one poll."""
        self._unwatch()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(LOG_POLL_INTERVAL_S, self._poll_again)

    def _unwatch(self) -> None:
        if self._watch is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._watch.fileno())

    def stop(self) -> None:
        """Poll no more, and give up the claim to the directory."""
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
        """Give this process its former output back. Remove a directory that was made here and has stayed empty."""
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
            with contextlib.suppress(OSError):  # it has files of another program
                for each in files:
                    os.unlink(self._path(each.name))
                os.rmdir(self.directory)

    def poll(self) -> float:
        """Do what is due. Return the seconds until the next poll."""
        self._failures = []
        try:
            pause = self._poll_all()
        except OSError as error:  # the directory was removed; it may come back
            self._failures.append(error)
            pause = LOG_POLL_INTERVAL_S
        failed = str(self._failures[0]) if self._failures else ""
        if failed and failed != self._failed:
            self._warn(f"the logs in {self.directory} can't be kept in order: {failed}")
        self._failed = failed
        return pause

    @contextlib.contextmanager
    def _isolated(self) -> Iterator[None]:
        """Isolate the work on one file: its error is reported at the end of the poll, and the other files have their turn."""
        try:
            yield
        except OSError as error:
            self._failures.append(error)

    def _poll_all(self) -> float:
        os.makedirs(self.directory, mode=0o755, exist_ok=True)
        if self._own is not None:
            with self._isolated():
                self._own.reopen_if_moved()
        files = log_files.log_files(self.directory)
        for base in sorted(self._worker_files.difference(each.name for each in files)):
            with self._isolated():
                self._make(base)
        self._notice_full()
        pause = self._keep_within(files) if self._size else LOG_POLL_INTERVAL_S
        self._notice_file_limit(files)  # after the rotation, so that master.log can take the warning
        return pause

    def _notice_full(self) -> None:
        """Warn once that the disk is full: the writers can't report it there, and lose lines."""
        disk = os.statvfs(self.directory)
        full = disk.f_blocks > 0 and disk.f_bavail < _FULL_DISK_BLOCKS
        if full and not self._full:
            self._warn(f"the disk of {self.directory} is full: log lines are lost; the cluster serves on")
        if self._full and not full:
            logger.info("the disk of %s has space again", self.directory)
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
        for each in reversed(files):  # the newest file of a log last, since its rotation renames the others
            if each.age == 0:
                grows |= each.size - self._sizes.get(each.base, each.size) > limit / 8
                if each.size > limit:
                    with self._isolated():
                        self._rotate(each.base, files)
                        grows = True
            elif each.size - self._rotated[each.inode] > limit:
                with self._isolated():
                    self._empty(each)
                    self._cut += each.size
                grows = True
        if grows:
            files = log_files.log_files(self.directory)
        self._sizes = {each.base: each.size for each in files if each.age == 0}
        self._evict(files, limit)
        self._report_cut()
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
        # Only up to a gap: if the first rename fails nothing has moved, however often it is tried.
        for age in range(last, -1, -1):
            old = base if age == 0 else f"{base}.{age}"
            os.rename(self._path(old), self._path(f"{base}.{age + 1}"))
        newest = os.stat(self._path(f"{base}.1"), follow_symlinks=False)
        self._rotated[newest.st_ino] = newest.st_size
        self._make(base)
        if base == log_files.MASTER_LOG and self._own is not None:
            self._own.reopen_if_moved()

    def _evict(self, files: list[Found], limit: int) -> None:
        """Remove files beyond the total, the oldest of the largest log first; then truncate logs that can't be rotated.

        Rotated files that are empty and have no writer are removed as well.
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
            with self._isolated():
                self._drop(most.pop(), now)
        for those in rotated.values():
            while self._total and len(those) > MAX_ROTATED_FILES:
                with self._isolated():
                    self._drop(those.pop(), now)
        for those in rotated.values():
            for each in those:
                with self._isolated():
                    if not each.size and not self._is_written(each, now):
                        os.unlink(self._path(each.name))
        for each in files:
            if excess > 0 and not each.age and each.size > limit:  # it could not be rotated
                excess -= each.size
                with self._isolated():
                    self._empty(each)
                    self._cut += each.size

    def _drop(self, each: Found, now: float) -> None:
        if not self._is_written(each, now):
            os.unlink(self._path(each.name))
        elif each.size:
            self._empty(each)

    def _is_written(self, each: Found, now: float) -> bool:
        opened = log_files.is_open_to_write(self._path(each.name))
        return abs(now - each.changed) < WRITER_GONE_AFTER_S if opened is None else opened

    def _empty(self, each: Found) -> None:
        log_files.empty(self._path(each.name))
        self._rotated[each.inode] = 0

    def _report_cut(self) -> None:
        now = time.monotonic()
        if self._cut and now - self._cut_reported_at >= _CUT_REPORT_INTERVAL_S:
            self._cut_reported_at = now
            self._warn(
                f"logs: {self._cut / 2**20:.0f} MiB were dropped: a process writes more than log_size before it checks "
                "whether its file was rotated"
            )
            self._cut = 0

    def _copy(self, line: bytes) -> None:
        if self._own is not None and self._own.fd >= 0:
            with contextlib.suppress(OSError):  # the disk is full; the line is on standard error as well
                log_files.write_all(self._own.fd, line)

    def _make(self, base: str) -> None:
        fd = log_files.open_to_write(self._path(base))
        try:
            if self._owner is not None:
                if os.fstat(fd).st_nlink != 1:  # under its other name it may belong to another program
                    raise OSError(errno.EMLINK, "it has another name as well")
                # master.log stays the master's; the group lets the monitor, which runs as the workers' user, show it.
                user, group = self._owner
                os.fchown(fd, -1 if base == log_files.MASTER_LOG else user, group)
        finally:
            os.close(fd)

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)
