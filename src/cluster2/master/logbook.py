"""The directory of logs as its keeper sees it: files are rotated when they are large, and all together stay within a bound.

Each log that is written may be as large as `log_size`, or its share of half of `log_total` if that is less. A larger one is
rotated: renamed, and a new one made in its place (`kernel.logfiles`). When all together are larger than `log_total`, the oldest
file of that log goes which has the most: who says much loses its own past, not that of others.

Writers have some time to notice that their file was renamed. A rotated file that grows beyond twice what a file may have is
written by somebody who doesn't look; it is cut to nothing, and the log says how much that was. A file that was written to lately
is cut, too, instead of removed: a removed one could grow where nobody sees it.

A look costs some 100 µs with 30 files. It is due once a second, and 20 times a second while a file grows quickly: what 1 GB/s, a
disk's best, can exceed the bound by is 50 MB.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable

from ..errors import ConfigError
from ..kernel import logfiles, privileges
from ..kernel.logfiles import Found
from ..settings import Settings

logger = logging.getLogger("cluster2.master")

PAUSE, SHORT_PAUSE = 1.0, 0.05
"""Seconds between two looks; the second one while a file grows quickly."""
RECENT = 5.0
"""Seconds since its last change after which nobody writes to a rotated file any more."""
LEAST = 1 << 12
"""Bytes that a file may have, however many share the total."""
SAID_EVERY = 60.0
"""Seconds between two lines about what was cut."""


class Logbook:
    """Keeps the directory. It is the only one who renames and removes files there."""

    def __init__(
        self,
        directory: str,
        size: int,
        total: int,
        *,
        owner: tuple[int, int] = (-1, -1),
        own: bool = True,
        access: bool = False,
        warn: Callable[[str], None] = logger.warning,
    ) -> None:
        """Make the directory.

        Args:
            directory: absolute.
            size: bytes above which a file is rotated; 0: never, that is somebody else's business.
            total: bytes that all may have together; 0: any number.
            owner: user and group who workers are: they open their files themselves. -1: who we are.
            own: whether this process's output goes there as well, until `close`.
            access: whether requests are logged.
            warn: takes what the log should say.

        Raises:
            ConfigError: the directory can't be made, or not be written to.
        """
        self.directory = directory
        self._size, self._total, self._owner, self._warn = size, total, owner, warn
        self._own = logfiles.Follower(self._path(logfiles.MASTER), 1, 2) if own else None
        self._sizes: dict[str, int] = {}
        self._cut = 0
        self._said_at = -SAID_EVERY
        self._failed = ""
        self._timer: asyncio.TimerHandle | None = None
        try:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            self._before = [os.dup(number) for number in (1, 2)] if own else []
            if self._own is not None:
                self._make(logfiles.MASTER)
                self._own.look()
            if access or owner != (-1, -1):  # others may not make files here
                self._make(logfiles.ACCESS)
        except OSError as error:
            raise ConfigError(f"logs = {directory!r}: can't write there: {error.strerror}; name another, or set "
                              "log_to = stderr") from None  # fmt: skip

    @classmethod
    def of(cls, settings: Settings, *, own: bool) -> Logbook | None:
        """That of a cluster; None if all goes to standard error."""
        if settings.log_to != "files":
            return None
        return cls(
            settings.logs,
            settings.log_size,
            settings.log_total,
            owner=_owner(settings),
            own=own,
            access=settings.access_log,
        )

    def entrust(self, slot: int) -> None:
        """A worker of that slot will open its file: have it there, as its user's."""
        with contextlib.suppress(OSError):  # the worker says what it can't open
            self._make(logfiles.worker(slot))

    def start(self) -> None:
        """Look now and then, on the running loop."""
        self._timer = asyncio.get_running_loop().call_later(self.look(), self.start)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Give this process back the output that it had."""
        self.stop()
        self._own = None
        for number, before in enumerate(self._before, 1):
            os.dup2(before, number, inheritable=True)
            os.close(before)
        self._before = []

    def look(self) -> float:
        """Do what is due. Returns in how many seconds to look again."""
        try:
            pause = self._look()
            self._failed = ""
        except OSError as error:  # a full disk, a directory that was taken away: it may come back
            pause = PAUSE
            if str(error) != self._failed:
                self._failed = str(error)
                self._warn(f"the logs in {self.directory} can't be kept in order: {error}")
        return pause

    def reopen(self) -> None:
        """Somebody else has rotated: open our own file again. Workers look once a second anyway."""
        self.look()

    def _look(self) -> float:
        if self._own is not None:
            self._own.look()
        if not self._size:
            return PAUSE
        files = logfiles.found(self.directory)
        limit = self._limit(files)
        grows = False
        for each in files:
            if each.age == 0:
                grows |= each.size - self._sizes.get(each.base, each.size) > limit / 8
                if each.size > limit:
                    self._rotate(each.base, files)
                    grows = True
            elif each.size > 2 * limit:
                self._empty(each)
                grows = True
        files = logfiles.found(self.directory)
        self._sizes = {each.base: each.size for each in files if each.age == 0}
        self._evict(files)
        self._tell()
        return SHORT_PAUSE if grows else PAUSE

    def _limit(self, files: list[Found]) -> int:
        if not self._total:
            return self._size
        logs = sum(each.age == 0 for each in files)
        return max(LEAST, min(self._size, self._total // (2 * max(1, logs))))

    def _rotate(self, base: str, files: list[Found]) -> None:
        for age in sorted((each.age for each in files if each.base == base), reverse=True):
            old = base if age == 0 else f"{base}.{age}"
            os.rename(self._path(old), self._path(f"{base}.{age + 1}"))
        self._make(base)
        if base == logfiles.MASTER and self._own is not None:
            self._own.look()

    def _evict(self, files: list[Found]) -> None:
        """Remove what is too much, the oldest of the largest log first; and what is empty, and rotated, and left alone."""
        now = time.time()
        rotated: dict[str, list[Found]] = defaultdict(list)
        for each in files:
            if each.age:
                rotated[each.base].append(each)
        excess = sum(each.size for each in files) - self._total if self._total else 0
        while excess > 0 and any(rotated.values()):
            most = max(rotated.values(), key=lambda those: sum(each.size for each in those))
            victim = most.pop()
            excess -= victim.size
            if now - victim.changed < RECENT:
                os.truncate(self._path(victim.name), 0)
            else:
                os.unlink(self._path(victim.name))
        for those in rotated.values():
            for each in those:
                if not each.size and now - each.changed >= RECENT:
                    os.unlink(self._path(each.name))

    def _empty(self, each: Found) -> None:
        os.truncate(self._path(each.name), 0)
        self._cut += each.size

    def _tell(self) -> None:
        now = time.monotonic()
        if self._cut and now - self._said_at >= SAID_EVERY:
            self._said_at = now
            self._warn(
                f"logs: {self._cut / 2**20:.0f} MiB were dropped: somebody writes more than log_size before looking "
                "whether its file was rotated"
            )
            self._cut = 0

    def _make(self, base: str) -> None:
        fd = logfiles.open_to_write(self._path(base))
        try:
            # What the master says is its own; but the monitor, who is the workers' user, shows it.
            user, group = self._owner
            os.fchown(fd, -1 if base == logfiles.MASTER else user, group)
        finally:
            os.close(fd)

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)


def _owner(settings: Settings) -> tuple[int, int]:
    """User and group that workers will be; -1: as we are. What there is not is refused where it is used."""
    if os.geteuid() == 0 and (settings.user, settings.group) != (None, None):
        with contextlib.suppress(ConfigError):
            return privileges.ids(settings.user, settings.group)
    return -1, -1
