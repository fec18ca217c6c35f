"""A cluster in development: it is started, reloads after edits, and is started again after a failed start.

The cluster is an ordinary `cluster2 run` in a process of its own, on the same terminal: its master, its reload and its errors
are those of production. This process watches the files and asks the master to reload. While the new code cannot be loaded,
the master keeps the old code, and the traceback is shown. A first start that fails leaves nothing to keep: the session
waits for the next edit and starts again.

Ctrl-C reaches both processes, since they share the terminal: the master shuts down, and this process leaves with its exit code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from watchfiles import watch

from ..config.settings import Settings
from ..errors import ClusterError, NotRunning
from ..linux.processes import set_parent_death_signal
from ..runtime.control_client import ControlClient
from ..runtime.development import SOURCES_VARIABLE
from .debugger import HOOK
from .watching import SourceFilter, edited_since, roots

_POLL_INTERVAL_MS = 100
"""Milliseconds after which the session sees that the cluster has ended."""
_QUIET_MS = 10
"""Milliseconds without a further change after which a change counts: an editor or a checkout writes several files."""
_MAX_QUIET_MS = 300
"""Milliseconds after which a change counts though others follow."""
_EXIT_CODES_OF_A_FAILED_APP = frozenset({3, 5})
"""The app could not be loaded, or the options are wrong: the next edit may mend it."""


class DevelopmentSession:
    """A cluster that is reloaded after edits.

    Args:
        settings: the options, as the cluster will have them.
        arguments: of `cluster2 run`.
        folders: to watch besides the packages of the app.
        filter: decides which changes count.
        files: to watch besides: those that options come from.
        say: shows a line to the developer.
    """

    def __init__(
        self,
        settings: Settings,
        arguments: Sequence[str],
        folders: Sequence[str],
        filter: SourceFilter,
        files: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._command = [sys.executable, "-P", "-m", "cluster2", "run", *arguments]
        self._folders = list(folders)
        self._filter = filter
        self._files = files
        self._say = say
        self._child: subprocess.Popen[bytes] | None = None
        self._leaving = 0
        """The number of the signal that ends the session; 0: none so far."""
        self._loaded_at = 0.0
        self._replaced: set[str] = set()

    def run(self) -> int:
        """Serve until the developer ends it. Returns the cluster's exit code."""
        with tempfile.TemporaryDirectory(prefix="cluster2-dev-") as directory, self._signals():
            sources = Path(directory, "sources")
            self._start(sources)
            try:
                return self._follow(sources)
            finally:
                self._end()

    def _follow(self, sources: Path) -> int:
        watched: tuple[str, ...] = ()
        while True:
            found = roots([*self._folders, *_read(sources)], self._files)
            added = [each for each in found if each not in watched]
            if set(added) - self._replaced:
                self._say(f"watching {', '.join(found)}")
            watched = found
            for changes in self._changes(found, added):
                code = self._child.poll() if self._child is not None else None
                if code is not None and (self._leaving or code not in _EXIT_CODES_OF_A_FAILED_APP):
                    return code if code >= 0 else 128 - code
                if self._child is None and self._leaving:
                    return 128 + self._leaving
                if code is not None and self._child is not None:
                    self._child = None
                    self._say("the start has failed; after the next edit the app is loaded again")
                if changes:
                    self._load(changes, sources)
                # A file that an editor has replaced by another of its name must be watched anew: inotify follows the old one.
                self._replaced = set(watched) & set(changes)
                if self._replaced or roots([*self._folders, *_read(sources)], self._files) != watched:
                    watched = tuple(each for each in watched if each not in self._replaced)
                    break  # or the app imports from other folders now

    def _changes(self, watched: Sequence[str], added: Sequence[str]) -> Iterator[list[str]]:
        """Yield the paths that have changed, and an empty list at each interval.

        Args:
            added: roots that were not watched so far: what was edited there since the app was loaded counts as changed.
        """
        late: list[str] | None = None
        for found in watch(
            *watched,
            watch_filter=self._filter,
            debounce=_MAX_QUIET_MS,
            step=_QUIET_MS,
            rust_timeout=_POLL_INTERVAL_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
        ):
            if late is None:  # now that the kernel watches: what is edited from here on is reported
                late = edited_since(self._loaded_at, added, self._filter)
                yield sorted({path for _, path in found} | set(late))
            else:
                yield sorted({path for _, path in found})

    def _load(self, changes: list[str], sources: Path) -> None:
        """Load the app again, and show how that went."""
        shown = ", ".join(os.path.relpath(path) for path in changes[:3]) + (" …" if len(changes) > 3 else "")
        if self._child is None:
            self._say(f"{shown} changed: starting")
            self._start(sources)
            return
        began = time.monotonic()
        self._loaded_at = time.time()
        client, before = ControlClient(Path(self._settings.pids)), 0
        try:
            before = client.call("status")["generation"]
            client.call("reload")
        except NotRunning:
            return  # it has only just been started, or ends
        except ClusterError as error:
            if self._leaving or self._child.poll() is not None:
                return  # the cluster ends, and the reload with it
            if self._settings.log_to == "files":  # otherwise the master has just shown it on the same terminal
                self._say(f"{error.message}\n{error.detail}".rstrip())
            if self._serves_another_than(before, client):  # an old worker did not leave as asked
                self._say(f"{shown} changed: reloaded, but {error.message}")
            else:
                self._say(f"{shown} changed: it cannot be loaded; the old code serves until the next edit")
        else:
            self._say(f"{shown} changed: reloaded in {time.monotonic() - began:.2f} s")

    def _serves_another_than(self, generation: int, client: ControlClient) -> bool:
        """Return whether a reload that has failed took effect all the same."""
        try:
            return bool(client.call("status")["generation"] != generation)
        except ClusterError:
            return False

    def _start(self, sources: Path) -> None:
        self._loaded_at = time.time()
        self._child = subprocess.Popen(
            self._command,
            env={"PYTHONBREAKPOINT": HOOK} | os.environ | {SOURCES_VARIABLE: str(sources)},
            # A session that is killed must not leave its cluster behind.
            preexec_fn=partial(set_parent_death_signal, signal.SIGTERM),
        )
        if self._leaving:  # the signal came while the cluster was being started
            self._child.terminate()

    def _end(self) -> None:
        """End the cluster if something has gone wrong here: it must not stay without the developer's knowing."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            self._child.wait()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Have signals end the cluster, and this process with it."""

        def interrupted(number: int, frame: FrameType | None) -> None:
            self._leaving = number
            if self._child is None:
                return  # `_follow` sees it; watchfiles would swallow an exception that is raised here
            # A Ctrl-C or Ctrl-\ of the terminal reaches the cluster by itself; a second one there means "at once".
            of_terminal = number in (signal.SIGINT, signal.SIGQUIT) and sys.stdin is not None and sys.stdin.isatty()
            if not of_terminal:
                self._child.send_signal(signal.SIGQUIT if number == signal.SIGQUIT else signal.SIGTERM)

        numbers = [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # it is ignored under nohup
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, interrupted) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _read(sources: Path) -> list[str]:
    try:
        return sources.read_text().splitlines()
    except OSError:
        return []
