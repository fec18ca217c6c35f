"""`cluster = false`: one process that loads the app and serves it, without a master.

It is for debuggers, and for hosts that bring their own supervisor. The process is its own worker, with slot 0 and generation 1.
It emits the events that make sense without a master: it serves, it has received a signal, it shuts down, it warns.
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
from .master.logs.directory import LogDirectory
from .master.messaging.hub import MessageHub
from .master.resources import make_board
from .master.state.handle import WorkerHandle
from .master.state.inbox import InboxMessage
from .master.workers.worker_channel import WorkerChannel
from .worker import worker_process
from .worker.output import WorkerOutput
from .worker.spec import AppBinding, WorkerSpec
from .zygote import image
from .zygote.started import StartedAtImport

_SLOT, _GENERATION, _ROW = 0, 1, 0
_QUEUES_INTERVAL_S = 1.0
"""Seconds between two measurements of the accept queues, for the monitor."""
_SHUTDOWN_GRACE_S = 5.0
"""Seconds for delegated calls that are under way at the end."""

logger = logging.getLogger("cluster2.worker")


def run(
    config: Config,
    listeners: Sequence[tuple[int, Listener]],
    monitor: Sequence[Listener],
    targets: Sequence[object] | None,
    on_ready: Callable[[], None],
    emit: Callable[[events.Event], None],
    settle: Callable[[], Awaitable[None]],
    hub: MessageHub,
    log_directory: LogDirectory | None = None,
) -> int:
    """Serve until TERM or INT. Return the exit code.

    Args:
        listeners: the app's, each with the index of its app.
        monitor: the listeners of the monitor, which this process serves on the same loop.
        on_ready: called once, when the process serves.
        emit: receives the events, on the loop that serves.
        settle: awaited after the last event.
        hub: has the handlers of delegated calls.
        log_directory: None: all output goes to standard error.

    Raises:
        ClusterError: the app can't be loaded or started.
    """
    settings = config.settings
    terminal = Terminal()
    # The app runs in this process, which has read its options by now.
    secret_environment.remove_and_overwrite(SECRET_VARIABLES)
    made, started = _build_image(config, targets)
    board = _make_board()
    monitor_tasks: list[asyncio.Future[None]] = []  # the loop itself keeps no reference to its tasks

    def ready() -> None:
        _reopen_logs_on_signal(log_directory)
        if monitor:
            task = _serve_monitor(monitor, listeners, settings, board, handler, hub.emitter)
            monitor_tasks.append(asyncio.ensure_future(task))
        on_ready()

    async def ended(code: int) -> None:
        emit(events.Stopped(time=time.time(), code=code))
        await settle()

    # `output=False`: the output of this process is in the master's log file already, if there are log files.
    output = WorkerOutput(settings, "" if log_directory is None else log_directory.directory, _SLOT, output=False)
    output.redirect(_GENERATION, _SLOT)
    handler = _MessageHandler(ready, emit, board, settings.lame_duck)
    spec = _worker_spec(settings, made, listeners, board, handler)
    spec.loopback = _SingleProcessMaster(hub, emit)
    spec.output, spec.terminal = output, terminal
    ignore_until_handled()
    code = worker_process.serve(spec, ended)
    started.end_soon()
    if handler.failures:
        raise handler.failures[0]
    return code


def _build_image(config: Config, targets: Sequence[object] | None) -> tuple[image.Image, StartedAtImport]:
    """Load the app, and record the processes that its import has started."""
    settings = config.settings
    sources = {name: source for name, source in config.sources.items() if config.explicit(name)}
    with StartedAtImport() as started:
        made = image.build(settings, sources, targets or [target for target, _ in settings.targets()])
    return made, started


def _worker_spec(
    settings: Settings,
    made: image.Image,
    listeners: Sequence[tuple[int, Listener]],
    board: Scoreboard,
    handler: _MessageHandler,
) -> WorkerSpec:
    """Return the specification of this process as a worker, without the parts of the process itself."""

    def shut_listeners() -> bool:
        still_open = [
            listener
            for app, listener in listeners
            if _spins_when_shut(listener, made.apps[app][1]) or not shut(listener, listener.address, handler.warn)
        ]
        return not still_open

    sockets = [
        (messages.Socket(app, str(listener.address), listener.owned), listener.sock) for app, listener in listeners
    ]
    return WorkerSpec(
        order=messages.Fork(1, _SLOT, _GENERATION, _ROW, os.getppid(), []),
        settings=settings,
        bindings=[AppBinding(app, engine) for app, engine in made.apps],
        board=board,
        channel=None,
        sockets=sockets,
        validator=made.validator,
        on_message=handler.on_message,
        shut_listeners=shut_listeners,
    )


def _spins_when_shut(listener: Listener, engine: type[Engine]) -> bool:
    """Return whether the engine's own accept loop would spin on a listener that is shut.

    A Unix socket that is shut down is readable for ever, and accept(2) gives EAGAIN. tokio repeats that without end, and serves
    nothing else in that thread (granian 2.8.9): requests under way were lost. The engine stops accepting by itself.
    """
    return listener.sock.family == socket.AF_UNIX and owns_accept(engine)


def _make_board() -> Scoreboard:
    """Return a scoreboard with the values that a master would write into it."""
    board = make_board()
    board.header.started, board.header.traffic, board.header.wanted = time.time(), 1, 1
    board.header.generation = _GENERATION
    row = board.row(board.claim())
    row.slot, row.generation, row.started, row.pid = _SLOT, _GENERATION, time.monotonic(), os.getpid()
    return board


def _reopen_logs_on_signal(log_directory: LogDirectory | None) -> None:
    """Reopen the log files on USR1. Where there are none the signal has no effect; its default would end the process."""
    if log_directory is not None:
        log_directory.start()
    reopen = _nothing if log_directory is None else log_directory.poll
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, reopen)


def _nothing() -> None:
    pass


class _MessageHandler:
    """Handles the messages that the worker would send to a master, as a master would.

    Attributes:
        failures: the reason why the worker couldn't start, if it couldn't.
    """

    def __init__(
        self, on_ready: Callable[[], None], emit: Callable[[events.Event], None], board: Scoreboard, lame_duck: float
    ) -> None:
        self._board = board
        self._lame_duck = lame_duck
        self._on_ready = on_ready
        self._emit = emit
        self._started_at = time.monotonic()
        self._ending = False
        self.failures: list[ClusterError] = []

    def on_message(self, message: messages.ChannelMessage) -> None:
        """Turn a message into an event, and update the scoreboard's header."""
        now = time.time()
        match message:
            case messages.Started():
                self._emit(events.Forked(time=now, pid=message.pid, slot=_SLOT, generation=_GENERATION))
            case messages.Ready():
                boot = time.monotonic() - self._started_at
                self._board.header.phase = PHASES.index("serving")
                self._emit(events.Listening(time=now, pid=os.getpid(), slot=_SLOT, generation=_GENERATION, boot=boot))
                self._on_ready()
            case messages.SelfDraining():
                self._leave(message.signal, now)
            case messages.BootFailed():
                self.failures.append(by_exit_code(message.exit_code, message.message, detail=message.detail))
            case messages.SetTraffic():
                self._emit((events.Enabled if message.enabled else events.Disabled)(time=now))
            case messages.Note() | messages.Cut() | messages.EndFailed():
                self.warn(message.text)
            case _:
                logger.warning("without a master this message has no effect: %r", message)

    def warn(self, text: str) -> None:
        """Log a warning and emit it as an event."""
        logger.warning("%s", text)
        self._emit(events.Warned(time=time.time(), text=text))

    def _leave(self, number: str, now: float) -> None:
        if not self._ending:  # a second signal changes nothing for operators
            self._emit(events.Signalled(time=now, signal=number, action="shutdown"))
            self._emit(events.ShuttingDown(time=now, graceful=True, lame_duck=self._lame_duck))
        self._ending = True
        self._board.header.leaving, self._board.header.phase = 1, PHASES.index("draining")


class _SingleProcessMaster:
    """The master's end of the channel in the worker's own loop: delegation, events and status work without a master."""

    def __init__(self, hub: MessageHub, emit: Callable[[events.Event], None]) -> None:
        self._hub = hub
        self._emit = emit

    async def open(self) -> socket.socket:
        """Open the channel and return the worker's end."""
        self._hub.start(self._emit)
        handle = WorkerHandle(incarnation=1, slot=_SLOT, generation=_GENERATION, row=_ROW, born=time.monotonic())
        ours, theirs = socket.socketpair()
        app_forks.withhold(ours, theirs)
        await asyncio.get_running_loop().create_unix_connection(
            lambda: WorkerChannel(handle, _ignore, self._hub), sock=ours
        )
        return theirs

    async def close(self) -> None:
        """Wait until the handlers have ended."""
        await self._hub.close(_SHUTDOWN_GRACE_S)


def _ignore(message: InboxMessage) -> None:
    """Ignore an inbox message: no master supervises this worker."""


async def _serve_monitor(
    own: Sequence[Listener],
    listeners: Sequence[tuple[int, Listener]],
    settings: Settings,
    board: Scoreboard,
    handler: _MessageHandler,
    emitter: Emitter,
) -> None:
    """Serve the monitor's ports until the worker's end cancels it."""
    from .monitor import monitor_server
    from .monitor.data.cluster_view import ClusterView
    from .monitor.data.dashboard import Dashboard
    from .monitor.data.memory import MemorySampler
    from .monitor.data.report import ClusterInfo

    async def switch(enabled: bool) -> bool:
        if bool(board.header.traffic) != enabled:
            board.header.traffic = int(enabled)
            handler.on_message(messages.SetTraffic(enabled))
        return True

    port = next((port for _, each in listeners if (port := getattr(each.address, "port", 0))), 0)
    view = ClusterView(board, port, switch)
    # Only the resident size: a walk over the page tables takes 1 ms per 100 MiB, and would hold up requests on this loop.
    memory_sampler = MemorySampler(lambda pid: processes.resident_memory())
    dashboard = Dashboard(
        view,
        ClusterInfo.from_settings(settings, [str(each.address) for _, each in listeners], str(own[0].address)),
        memory_sampler,
    )
    emitter.on("*", lambda event: dashboard.sampler.events.add(events.plain(event)))
    measuring = asyncio.get_running_loop().create_task(
        _measure_accept_queues(board, [each.sock for _, each in listeners])
    )
    try:
        # Duplicates: the loop closes the sockets that it serves, but the listeners' owner closes the listeners.
        await monitor_server.serve([each.sock.dup() for each in own], view, settings, asyncio.Event(), dashboard)
    finally:
        measuring.cancel()


async def _measure_accept_queues(board: Scoreboard, listeners: Sequence[socket.socket]) -> None:
    """Publish how many connections wait to be accepted, as a master does."""
    while True:
        waiting = accept_queues.waiting(listeners)
        board.header.waiting = UNKNOWN_VALUE if waiting is None else waiting
        await asyncio.sleep(_QUEUES_INTERVAL_S)
