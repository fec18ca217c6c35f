"""What the master owns and where it is: made before it starts, closed after it has ended."""

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
        sources: the source of each option that was set on purpose.
        warnings: what operators should know about them, a line each.
    """

    settings: Settings
    sources: Mapping[str, str]
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class MasterResources:
    """What the master owns.

    Attributes:
        reread: reads the options again, for a reload; raises ClusterError if something is wrong with them.
        listeners: each with the index of the app that it belongs to.
        monitor: of the monitor: its page's, and the one of HAProxy's agent-check, if there is one; none: there is no monitor.
        argv: the program that loads the app (`nursery`).
        lifeline: ends workers that are stuck when the master has ended.
        notifier: tells the service manager.
        logbook: keeps the directory of logs; None: all goes to standard error.
        scripted: the program is a script that has options of its own, and is executed again for each generation.
        terminal: that it was started from; None: it isn't asked about, as signals aren't the master's.
        owns_process: whether signals and stray children are the master's; false inside somebody else's program.
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
    logbook: LogDirectory | None = None
    terminal: Terminal | None = None
    scripted: bool = False


def make_board() -> Scoreboard:
    """Return a new scoreboard.

    Raises:
        ClusterError: the system doesn't give the memory.
    """
    try:
        return Scoreboard.create()
    except OSError as error:
        hint = "; RLIMIT_FSIZE bounds shared memory as well: raise it" if error.errno == errno.EFBIG else ""
        raise ClusterError(f"no shared memory can be had for the scoreboard: {error.strerror}{hint}") from error
