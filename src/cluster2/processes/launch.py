"""From a configuration to a running cluster, and back to nothing.

Everything that a cluster leaves in the system (the lock, pid files, listeners, socket files) is taken here, in one place, and
given back in the reverse order, whatever happens in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence

import uvloop

from .. import events
from ..config.settings import OPTIONS, SECRET_VARIABLES, Settings, validate, without_master
from ..config.value_types import Address, FdAddress
from ..core.wording import counted
from ..errors import ClusterError, ConfigError
from ..linux import app_forks, processes, secret_environment, signals
from ..linux.listeners import Listener, SocketFile, open_all, systemd_fds
from ..linux.parent_death_timer import Lifeline
from ..linux.pid_files import PidsDirectory
from ..linux.privileges import ids
from ..linux.sd_notify import ServiceNotifier
from ..linux.terminal import Terminal
from ..runtime import logging_setup
from ..runtime.event_emitter import Emitter
from ..runtime.option_sources import Config, check_files, restart_warning
from . import places
from .master.control.commands import SIGNAL_COMMANDS
from .master.generations.worker_factory import default_argv
from .master.logs.directory import LogDirectory
from .master.master import Master
from .master.messaging.hub import MessageHub
from .master.resources import MasterResources, Options, make_board
from .master.systemd import SystemdNotifier

logger = logging.getLogger("cluster2.master")

LOGS = ("log_to", "logs", "log_size", "log_total")
"""Options by which somebody asks for log files."""


def run(
    config: Config,
    *,
    switchboard: MessageHub | None = None,
    argv: Sequence[str] | None = None,
    targets: Sequence[object] | None = None,
    on_ready: Callable[[], None] | None = None,
) -> int:
    """Serve in the foreground until told to end. Returns the exit code.

    Args:
        argv: the program that loads the apps; None: ours, for apps that are named by text.
        targets: the apps as objects, for the case that there is no master.
        on_ready: called once, when all workers serve.

    Raises:
        ClusterError: what a user can do wrong; nothing is left behind.
    """
    switchboard = switchboard or MessageHub()
    with contextlib.ExitStack() as stack:
        config, logbook = _logbook(config)
        if logbook is not None:
            stack.callback(logbook.close)
        prepare(config)
        secret_environment.conceal(SECRET_VARIABLES)  # a reload reads them again, from Python's copy
        return _serve(config, switchboard, argv, targets, on_ready or _nothing, logbook)


def _logbook(config: Config) -> tuple[Config, LogDirectory | None]:
    """The directory of logs. One that nobody asked for and that can't be made is done without, with a warning."""
    try:
        return config, LogDirectory.from_settings(config.settings, own=True)
    except ConfigError as error:
        if any(map(config.explicit, LOGS)):
            raise
        return dataclasses.replace(config, warnings=(*config.warnings, f"no log files: {error.message}")), None


def _serve(
    config: Config,
    switchboard: MessageHub,
    argv: Sequence[str] | None,
    targets: Sequence[object] | None,
    on_ready: Callable[[], None],
    logbook: LogDirectory | None,
) -> int:
    if not config.settings.cluster:
        from . import single_process  # the engines and what they bring would cost the master 2 MiB

        app_forks.install()
        herald = SystemdNotifier(ServiceNotifier.from_environment(os.environ), os.environ)

        with open_listeners(config) as listeners, open_monitor_listeners(config) as monitor:

            def ready() -> None:
                logger.info("serving on %s in one process", _where(listeners))
                places.announce(config.settings, monitor, logbook, None)
                herald.serves(1)
                herald.live()
                on_ready()

            tell, settle = _teller(switchboard.emitter, herald), switchboard.emitter.settle
            return single_process.run(config, listeners, monitor, targets, ready, tell, settle, switchboard, logbook)
    app_forks.install()
    terminal = Terminal()
    signals.settle_master()
    with acquire_resources(config, argv or default_argv(), logbook, scripted=targets is not None) as owned:
        owned.terminal = terminal
        return uvloop.run(supervise(owned, switchboard, on_ready))


def prepare(config: Config) -> None:
    """What a process does before it becomes a master."""
    logging_setup.configure(config.settings, waits=not config.settings.cluster)  # a master waits for nobody
    for warning in config.warnings:
        logger.warning("%s", warning)
    processes.raise_file_limit()


async def supervise(
    owned: MasterResources,
    switchboard: MessageHub,
    on_ready: Callable[[], None],
    *,
    started: Callable[[Master], None] | None = None,
) -> int:
    """Be the master until it has ended. Returns the exit code; raises as `run` does."""
    herald = SystemdNotifier(owned.notifier, os.environ)
    emit = _teller(switchboard.emitter, herald)

    def ready() -> None:
        logger.info("serving on %s with %s", _where(owned.listeners), counted(owned.options[0].workers, "worker"))
        places.announce(owned.options[0], owned.monitor, owned.logbook, owned.pids)
        herald.serves(owned.options[0].workers)
        owned.pids.keep()
        on_ready()

    master = Master(owned, emit=emit, on_ready=ready, switchboard=switchboard)
    if started is not None:
        started(master)
    code = 1
    try:
        code = await master.run()
        return code
    finally:
        emit(events.Stopped(time=time.time(), code=code))
        await switchboard.emitter.settle()
        owned.pids.release()
        await master.close()
        if owned.owns_process:
            signals.ignore_from_now(asyncio.get_running_loop(), SIGNAL_COMMANDS)


def _where(listeners: Sequence[tuple[int, Listener]]) -> str:
    """Return the addresses of listeners, as a user writes them; with the port that the kernel has picked."""
    return ", ".join(str(listener.address) for _, listener in listeners)


@contextlib.contextmanager
def acquire_resources(
    config: Config,
    argv: Sequence[str],
    logbook: LogDirectory | None = None,
    *,
    owns_process: bool = True,
    scripted: bool = False,
) -> Iterator[MasterResources]:
    """Everything that a master owns."""
    settings = config.settings
    pids = PidsDirectory(settings.pids)
    pids.acquire()
    with contextlib.ExitStack() as stack:
        stack.callback(pids.release)
        notifier = ServiceNotifier.from_environment(os.environ if owns_process else {})
        pids.write_master(os.getpid())
        stack.callback(notifier.close)
        listeners = stack.enter_context(open_listeners(config))
        monitor = stack.enter_context(open_monitor_listeners(config))
        processes.become_subreaper()
        board = make_board()
        stack.callback(board.close)
        lifeline = Lifeline()
        stack.callback(lifeline.close)

        def own() -> list[int]:
            sockets = [*(listener for _, listener in listeners), *monitor]
            fixed = [*pids.descriptors(), *lifeline.descriptors(), *board.descriptors]
            return fixed + [listener.sock.fileno() for listener in sockets]

        stack.enter_context(app_forks.withholding(own))
        if logbook is not None:
            stack.callback(logbook.stop)
        yield MasterResources(
            options=Options(settings, explicit_sources(config)),
            reread=lambda: reread(config),
            listeners=listeners,
            monitor=monitor,
            board=board,
            pids=pids,
            argv=argv,
            owns_process=owns_process,
            lifeline=lifeline,
            notifier=notifier,
            logbook=logbook,
            scripted=scripted,
        )


@contextlib.contextmanager
def open_listeners(config: Config) -> Iterator[list[tuple[int, Listener]]]:
    """The listeners of each app, by its index."""
    places = _places(config)
    flat = [address for addresses in places for address in addresses]
    listeners = open_all(flat, backlog=config.settings.backlog, files=_socket_files(config.settings))
    sites = [site for site, addresses in enumerate(places) for _ in addresses]
    try:
        yield list(zip(sites, listeners, strict=True))
    finally:
        for listener in listeners:
            listener.close()


def _socket_files(settings: Settings) -> SocketFile:
    """Return how socket files are made: workers' files are made likewise."""
    owner = None if settings.user is None and settings.group is None else ids(settings.user, settings.group)
    return SocketFile(0o666 & ~(settings.umask or 0), owner)


@contextlib.contextmanager
def open_monitor_listeners(config: Config) -> Iterator[list[Listener]]:
    """The listeners of the monitor: of its page, and of HAProxy's agent-check if there shall be one. None without a monitor."""
    settings = config.settings
    wanted = (("monitor_port", places.monitor_ports(config)), ("ecv.agent_port", [settings.ecv_agent_port]))
    listeners: list[Listener] = []
    with contextlib.ExitStack() as stack:
        for name, ports in wanted:
            if not ports[0]:
                continue
            try:
                listeners.append(places.first_free(settings, ports))
            except ClusterError as error:
                raise type(error)(f"{error.message} ({name}, {config.sources[name]}; 0: none)") from error
            stack.callback(listeners[-1].close)
        yield listeners


def reread(config: Config) -> Options:
    """Read the options of a running cluster again, for its next generation.

    Options that only a restart can change keep the values that the cluster was started with. A new value of such an option is
    checked all the same, since the next start would fail on it.

    Raises:
        ConfigError: an option is bad, by itself or beside the values that are kept.
    """
    again = config.again()
    kept = changed_restart_options(config, again)
    fields = {option.field for option in OPTIONS.values() if option.restart}
    settings = dataclasses.replace(again.settings, **{field: getattr(config.settings, field) for field in fields})
    if kept:
        validate(settings, again.sources)
        check_files(settings, again.sources)
    named = [target for target, _ in settings.targets()]
    # A script gives its app as an object, which isn't in the options.
    if None in named and None not in (target for target, _ in config.settings.targets()):
        raise ConfigError("app isn't set any more, and `apps` takes effect only by a restart")
    restart = [restart_warning(name, again.sources[name]) for name in kept]
    # There is a master, and will be: `cluster` takes a restart.
    fresh = set(again.warnings) - {*config.warnings, without_master(again.settings, explicit_sources(again))}
    return Options(settings, explicit_sources(again), (*restart, *fresh))


def changed_restart_options(before: Config, after: Config) -> list[str]:
    """Return the options that differ although a reload can't change them."""
    return [
        name
        for name, option in OPTIONS.items()
        if option.restart
        and getattr(before.settings, option.field) != getattr(after.settings, option.field)
        # A default below a symbolic link may mean another directory by now; it was not asked for.
        and (before.explicit(name) or after.explicit(name))
    ]


def explicit_sources(config: Config) -> dict[str, str]:
    """The source of each option that was set on purpose."""
    return {name: source for name, source in config.sources.items() if config.explicit(name)}


def _places(config: Config) -> list[Sequence[Address]]:
    """The addresses of each app. Sockets that systemd hands over count where no address was asked for."""
    handed = systemd_fds(os.environ, os.getpid())
    asked = any(config.explicit(name) for name in ("bind", "host", "port", "apps"))
    if handed and not asked:
        return [[FdAddress(number) for number in handed]]
    return [addresses for _, addresses in config.settings.targets()]


def _teller(emitter: Emitter, herald: SystemdNotifier) -> Callable[[events.Event], None]:
    """Takes each event that happens: to the log, then to those who listen."""

    def tell(event: events.Event) -> None:
        _log(event)
        herald.notify(event)
        emitter.emit(event)

    return tell


def _log(event: events.Event) -> None:
    """One line for each event that a reader of the log wants to see. Warnings are logged where they arise."""
    match event:
        case events.Listening():
            logger.info(
                "worker %d serves (slot %d, generation %d, ready after %.0f ms)",
                event.pid, event.slot, event.generation, event.boot * 1000,
            )  # fmt: skip
        case events.Died():
            how = event.signal or ("how isn't known," if event.code is None else f"exit code {event.code}")
            fine = (event.code == 0 and event.phase in ("serving", "drain")) or event.reason == "stop"
            level = logging.INFO if fine else logging.WARNING
            doing = events.during(event.phase)
            logger.log(level, "worker %d is gone (slot %d, %s, %s %s)", event.pid, event.slot, event.reason, how, doing)
        case events.Signalled():
            logger.info("%s: %s", event.signal, event.action)
        case events.ShuttingDown():
            first = f", serving on for {event.lame_duck:g} s first" if event.lame_duck else ""
            logger.info("shutting down %s%s", "gracefully" if event.graceful else "at once", first)
        case events.Enabled() | events.Disabled():
            logger.info("traffic %s", event.name)
        case events.Recovered():
            logger.info("recovered: %s ready", counted(event.ready, "worker"))
        case _:
            pass


def _nothing() -> None:
    pass
