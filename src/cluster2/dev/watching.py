"""The files that development mode watches.

watchfiles (inotify) reports changes below folders. Counted are Python sources, what `--reload-include` names, and the files that
options come from. Never counted are the directories of logs and pid files, which change with each request and each reload,
virtual environments, caches and the folders of version control (watchfiles' own list).
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from watchfiles import Change, DefaultFilter


class SourceFilter(DefaultFilter):
    """Decides whether a changed file makes the app load again.

    Args:
        include: patterns of file names or paths, as of `fnmatch`.
        exclude: patterns, or paths of folders, that are never counted.
        never: folders that are never counted: logs, pids.
        always: files that are always counted: options, environment.
    """

    def __init__(
        self, include: Sequence[str], exclude: Sequence[str], never: Iterable[str] = (), always: Iterable[str] = ()
    ) -> None:
        # With a separator at the end, since watchfiles compares beginnings: logs must not take logs.py or logs_app/ along.
        super().__init__(ignore_paths=[os.path.join(os.path.realpath(each), "") for each in never])
        self._include = ("*.py", *include)
        self._exclude = tuple(exclude)
        self._always = frozenset(os.path.realpath(each) for each in always)

    def __call__(self, change: Change, path: str) -> bool:
        """Return whether a change counts."""
        if os.path.realpath(path) in self._always:
            return True
        if not super().__call__(change, path) or _matches(path, self._exclude):
            return False
        return _matches(path, self._include)


def _matches(path: str, patterns: Iterable[str]) -> bool:
    name = os.path.basename(path)
    for pattern in patterns:
        if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(path, pattern):
            return True
        folder = os.path.realpath(pattern)
        if os.path.isdir(folder) and os.path.realpath(path).startswith(folder + os.sep):
            return True
    return False


def roots(folders: Iterable[str], files: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the folders and files to watch: those that exist, without what lies below another one."""
    kept: list[str] = []
    for folder in sorted({os.path.realpath(each) for each in folders if os.path.isdir(each)}):
        if not any(folder == other or folder.startswith(other.rstrip(os.sep) + os.sep) for other in kept):
            kept.append(folder)
    for file in sorted({os.path.realpath(each) for each in files if Path(each).is_file()}):
        if not any(file.startswith(folder.rstrip(os.sep) + os.sep) for folder in kept):
            kept.append(file)
    return tuple(kept)


def edited_since(when: float, watched: Iterable[str], counts: SourceFilter) -> list[str]:
    """Return the files that were edited after a moment, in seconds since the epoch, and that count."""
    found = []
    for root in watched:
        paths = (
            [root]
            if os.path.isfile(root)
            else (os.path.join(at, name) for at, _, names in os.walk(root) for name in names)
        )
        for path in paths:
            try:
                edited = os.stat(path).st_mtime > when and counts(Change.modified, path)
            except OSError:
                continue  # it has gone meanwhile
            if edited:
                found.append(path)
    return found
