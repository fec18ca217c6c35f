"""The resources of the master. They are made before it starts, and closed after it has ended."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ...config.settings import Settings
from ...errors import ClusterError
from ...linux.listeners import Listener
from ...linux.parent_death_timer import Lifeline
from ...linux.pid_files import PidsDirectory
from ...linux.scoreboard import Scoreboard
from ...linux.sd_notify import ServiceNotifier
from ...linux.terminal import Terminal
from .logs.directory import LogDirectory


class Options(NamedTuple):
    """The options of a generation.

    Attributes:
        sources: the source of each option that was set explicitly.
        warnings: warnings about the options, a line each.
    """

    settings: Settings
    sources: Mapping[str, str]
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class MasterResources:
    """The resources of the master.

    Attributes:
        reread: reads the options again, for a reload; raises ClusterError if one is bad.
        listeners: the listeners of the apps, each with the index of its app.
        monitor: the listeners of the monitor: that of its page, and that of HAProxy's agent-check if there is one. Empty: no
            monitor.
        argv: the program that loads the app (`generations.worker_factory`).
        lifeline: ends stuck workers after the end of the master.
        notifier: sends notifications to the service manager.
        log_directory: the directory of log files; None: all output goes to standard error.
        scripted: the program is a script that has options of its own, and is executed again for each generation.
        terminal: the terminal that the cluster was started from; None: it isn't checked, since signals aren't the master's.
        owns_process: the process belongs to the master, with its signals and stray children. False inside another program.
    """

    options: Options
    reread: Callable[[], Options]
    listeners: Sequence[tuple[int, Listener]]
    monitor: Sequence[Listener]
    board: Scoreboard
    pids: PidsDirectory
    argv: Sequence[str]
    owns_process: bool
    lifeline: Lifeline = field(default_factory=Lifeline)
    notifier: ServiceNotifier = field(default_factory=lambda: ServiceNotifier(None))
    log_directory: LogDirectory | None = None
    terminal: Terminal | None = None
    scripted: bool = False


def make_board() -> Scoreboard:
    """Make the scoreboard.

    Raises:
        ClusterError: the system has no memory for it.
    """
    try:
        return Scoreboard.create()
    except OSError as error:
        hint = "; RLIMIT_FSIZE bounds shared memory as well: raise it" if error.errno == errno.EFBIG else ""
        raise ClusterError(f"no shared memory can be had for the scoreboard: {error.strerror}{hint}") from error
