"""`cluster = false`: one process that loads the app and serves it, without a master.

For debuggers, and for hosts that bring their own supervisor. Events happen here as well, as far as there is something that they
could tell: it serves, it was sent a signal, it leaves, it warns. The process is its own worker, of slot 0 and generation 1.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence

from .. import events
from ..config.settings import SECRET_VARIABLES, Settings
from ..core.lifecycle import PHASES
from ..engines.base import Engine, owns_accept
from ..errors import ClusterError, by_exit_code
from ..linux import accept_queues, app_forks, processes, secret_environment
from ..linux.cells import UNKNOWN_VALUE
from ..linux.listeners import Listener, shut
from ..linux.scoreboard import Scoreboard
from ..linux.signals import ignore_until_handled
from ..linux.terminal import Terminal
from ..protocol import messages
from ..runtime.event_emitter import Emitter
from ..runtime.option_sources import Config
from .master.inbox import Fact
from .master.logs.directory import LogDirectory
from .master.messaging.hub import MessageHub
from .master.resources import make_board
from .master.workers.handle import Handle
from .master.workers.worker_channel import WorkerChannel
from .worker import worker_process
from .worker.output import WorkerOutput
from .worker.spec import AppBinding, WorkerSpec
from .zygote import image
from .zygote.started import StartedAtImport

SINGLE_SLOT, _SINGLE_GENERATION, _SINGLE_ROW = 0, 1, 0
_QUEUES_INTERVAL_S = 1.0
"""Seconds between two looks at the accept queues, for the monitor."""
SINGLE_SHUTDOWN_GRACE_S = 5.0
"""Seconds for delegated work that is under way at the end."""

logger = logging.getLogger("cluster2.worker")


def run(
    config: Config,
    listeners: Sequence[tuple[int, Listener]],
    monitor: Sequence[Listener],
    targets: Sequence[object] | None,
    on_ready: Callable[[], None],
    emit: Callable[[events.Event], None],
    settle: Callable[[], Awaitable[None]],
    switchboard: MessageHub,
    logbook: LogDirectory | None = None,
) -> int:
    """Serve until TERM or INT. Returns the exit code.

    Args:
        monitor: of the monitor's ports, which this process serves as well, on the same loop.
        on_ready: called once, when it serves.
        emit: takes what happens, on the loop that serves.
        settle: awaited after the last event.
        switchboard: has the handlers of delegated work.
        logbook: keeps the directory of logs; None: all goes to standard error.

    Raises:
        ClusterError: the app can't be loaded or started.
    """
    settings = config.settings
    terminal = Terminal()
    secret_environment.remove_and_overwrite(
        SECRET_VARIABLES
    )  # this process is the app's as well, and reads its options no more
    sources = {name: source for name, source in config.sources.items() if config.explicit(name)}
    started = StartedAtImport(list(processes.children()))
    made = image.build(settings, sources, targets or [target for target, _ in settings.targets()])
    started.record()
    board = _board()
    beside: list[asyncio.Future[None]] = []

    def ready() -> None:
        if logbook is not None:
            logbook.start()
        reopen = _nothing if logbook is None else logbook.poll
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, reopen)
        if monitor:
            shown = _monitor(monitor, listeners, settings, board, told, switchboard.emitter)
            beside.append(asyncio.ensure_future(shown))
        on_ready()

    # The process's output is in the master's file already, if it is in one.
    paper = WorkerOutput(settings, "" if logbook is None else logbook.directory, SINGLE_SLOT, output=False)
    paper.redirect(_SINGLE_GENERATION, SINGLE_SLOT)
    told = _Told(ready, emit, board, settings.lame_duck)

    async def ended(code: int) -> None:
        emit(events.Stopped(time=time.time(), code=code))
        await settle()

    def shut_doors() -> bool:
        open_doors = [
            listener
            for site, listener in listeners
            if _is_spun_on(listener, made.sites[site][1]) or not shut(listener, listener.address, told.warn)
        ]
        return not open_doors

    birth = WorkerSpec(
        order=messages.Fork(1, SINGLE_SLOT, _SINGLE_GENERATION, _SINGLE_ROW, os.getppid(), []),
        settings=settings,
        sites=[AppBinding(app, engine) for app, engine in made.sites],
        board=board,
        channel=None,
        sockets=_sockets(listeners),
        validator=made.validator,
        on_message=told.on_message,
        loopback=SingleProcessMaster(switchboard, emit),
        output=paper,
        shut_listeners=shut_doors,
        terminal=terminal,
    )
    ignore_until_handled()
    code = worker_process.serve(birth, ended)
    started.end_soon()
    if told.failures:
        raise told.failures[0]
    return code


def _is_spun_on(listener: Listener, engine: type[Engine]) -> bool:
    """Return whether a shut door would hold the engine's own accept loop.

    A Unix socket that is shut down is readable for ever, and accept(2) gives EAGAIN. tokio repeats that without end, and serves
    nothing else in that thread (granian 2.8.9): requests under way were lost. The engine stops accepting by itself.
    """
    return listener.sock.family == socket.AF_UNIX and owns_accept(engine)


def _board() -> Scoreboard:
    """Return the scoreboard, with what a master would write into it."""
    board = make_board()
    board.header.started, board.header.traffic, board.header.wanted = time.time(), 1, 1
    board.header.generation = _SINGLE_GENERATION
    row = board.row(board.claim())
    row.slot, row.generation, row.started, row.pid = SINGLE_SLOT, _SINGLE_GENERATION, time.monotonic(), os.getpid()
    return board


def _sockets(listeners: Sequence[tuple[int, Listener]]) -> list[tuple[messages.Socket, socket.socket]]:
    return [
        (messages.Socket(site, str(listener.address), listener.owned), listener.sock) for site, listener in listeners
    ]


class _Told:
    """Hears what the worker would tell a master, and makes of it what a master would.

    Attributes:
        failures: why it couldn't start, if it couldn't.
    """

    def __init__(
        self, on_ready: Callable[[], None], emit: Callable[[events.Event], None], board: Scoreboard, lame_duck: float
    ) -> None:
        self._board = board
        self._lame_duck = lame_duck
        self._on_ready = on_ready
        self._emit = emit
        self._born = time.monotonic()
        self._leaving = False
        self.failures: list[ClusterError] = []

    def on_message(self, message: messages.Talk) -> None:
        """Take a message."""
        now = time.time()
        match message:
            case messages.Started():
                self._emit(events.Forked(time=now, pid=message.pid, slot=SINGLE_SLOT, generation=_SINGLE_GENERATION))
            case messages.Ready():
                boot = time.monotonic() - self._born
                self._board.header.phase = PHASES.index("serving")
                self._emit(
                    events.Listening(
                        time=now, pid=os.getpid(), slot=SINGLE_SLOT, generation=_SINGLE_GENERATION, boot=boot
                    )
                )
                self._on_ready()
            case messages.Leaving():
                self._leave(message.signal, now)
            case messages.BootFailed():
                self.failures.append(by_exit_code(message.exit_code, message.message, detail=message.detail))
            case messages.SetTraffic():
                self._emit((events.Enabled if message.enabled else events.Disabled)(time=now))
            case messages.Note() | messages.Cut() | messages.EndFailed():
                self.warn(message.text)
            case _:
                logger.warning("without a master nobody can say %r", message)

    def warn(self, text: str) -> None:
        """Tell operators something."""
        logger.warning("%s", text)
        self._emit(events.Warned(time=time.time(), text=text))

    def _leave(self, number: str, now: float) -> None:
        if not self._leaving:  # the first signal counts: it is leaving already
            self._emit(events.Signalled(time=now, signal=number, action="shutdown"))
            self._emit(events.ShuttingDown(time=now, graceful=True, lame_duck=self._lame_duck))
        self._leaving = True
        self._board.header.leaving, self._board.header.phase = 1, PHASES.index("draining")


class SingleProcessMaster:
    """The master's end of the channel in the worker's own loop: delegation, events and status work without a master."""

    def __init__(self, switchboard: MessageHub, emit: Callable[[events.Event], None]) -> None:
        self._switchboard = switchboard
        self._emit = emit

    async def open(self) -> socket.socket:
        """The worker's end."""
        self._switchboard.start(self._emit)
        handle = Handle(incarnation=1, slot=SINGLE_SLOT, generation=_SINGLE_GENERATION, row=0, born=time.monotonic())
        ours, theirs = socket.socketpair()
        app_forks.withhold(ours, theirs)
        await asyncio.get_running_loop().create_unix_connection(
            lambda: WorkerChannel(handle, _unsupervised, self._switchboard), sock=ours
        )
        return theirs

    async def close(self) -> None:
        """Let handlers end."""
        await self._switchboard.close(SINGLE_SHUTDOWN_GRACE_S)


def _unsupervised(fact: Fact) -> None:
    """What a master would decide by; nobody decides here."""


def _nothing() -> None:
    """USR1 means nothing where there are no files; it must not end the process."""


async def _monitor(
    own: Sequence[Listener],
    listeners: Sequence[tuple[int, Listener]],
    settings: Settings,
    board: Scoreboard,
    told: _Told,
    emitter: Emitter,
) -> None:
    """Serve the monitor's ports until the worker's end cancels it."""
    from .monitor import monitor_server
    from .monitor.data.dashboard import Dashboard
    from .monitor.data.facts import Facts
    from .monitor.data.memory import MemorySampler
    from .monitor.data.report import ClusterInfo

    async def switch(enabled: bool) -> bool:
        if bool(board.header.traffic) != enabled:
            board.header.traffic = int(enabled)
            told.on_message(messages.SetTraffic(enabled))
        return True

    port = next((port for _, each in listeners if (port := getattr(each.address, "port", 0))), 0)
    # The loop closes what it serves; the listeners are their owner's to close.
    facts = Facts(board, port, switch)
    # A walk over the page tables would hold up requests: here they are on the same loop.
    scales = MemorySampler(lambda pid: processes.resident_memory())
    desk = Dashboard(
        facts,
        ClusterInfo.from_settings(settings, [str(each.address) for _, each in listeners], str(own[0].address)),
        scales,
    )
    emitter.on("*", lambda event: desk.watch.feed.add(events.plain(event)))
    looking = asyncio.get_running_loop().create_task(_look_at_queues(board, [each.sock for _, each in listeners]))
    try:
        await monitor_server.serve([each.sock.dup() for each in own], facts, settings, asyncio.Event(), desk)
    finally:
        looking.cancel()


async def _look_at_queues(board: Scoreboard, listeners: Sequence[socket.socket]) -> None:
    """Tell how many connections wait to be accepted, as a master does."""
    while True:
        waiting = accept_queues.waiting(listeners)
        board.header.waiting = UNKNOWN_VALUE if waiting is None else waiting
        await asyncio.sleep(_QUEUES_INTERVAL_S)
