"""Start a cluster from its configuration, and clean up after it.

This module acquires everything that a cluster leaves in the system: the lock, pid files, listeners, socket files. It releases
them in the reverse order, whatever happens in between.
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

LOG_OPTIONS = ("log_to", "logs", "log_size", "log_total")
"""Options of which each, when it is set, asks for log files."""


def run(
    config: Config,
    *,
    hub: MessageHub | None = None,
    argv: Sequence[str] | None = None,
    targets: Sequence[object] | None = None,
    on_ready: Callable[[], None] | None = None,
) -> int:
    """Serve in the foreground until a signal or a command ends the cluster. Return the exit code.

    Args:
        hub: has the app's handlers of events and delegated calls.
        argv: the program that loads the apps; None: cluster2's own, for apps that are named by text.
        targets: the apps as objects; used without a master only.
        on_ready: called once, when all workers serve.

    Raises:
        ClusterError: an option or the system prevents the start. Nothing is left behind in the system.
    """
    hub = hub or MessageHub()
    with contextlib.ExitStack() as stack:
        config, log_directory = _open_log_directory(config)
        if log_directory is not None:
            stack.callback(log_directory.close)
        prepare(config)
        secret_environment.conceal(SECRET_VARIABLES)  # a reload reads them again, from Python's copy
        return _serve(config, hub, argv, targets, on_ready or _nothing, log_directory)


def _open_log_directory(config: Config) -> tuple[Config, LogDirectory | None]:
    """Open the directory of log files. A default that can't be created is replaced by a warning and no log files."""
    try:
        return config, LogDirectory.from_settings(config.settings, own=True)
    except ConfigError as error:
        if any(map(config.explicit, LOG_OPTIONS)):
            raise
        return dataclasses.replace(config, warnings=(*config.warnings, f"no log files: {error.message}")), None


def _serve(
    config: Config,
    hub: MessageHub,
    argv: Sequence[str] | None,
    targets: Sequence[object] | None,
    on_ready: Callable[[], None],
    log_directory: LogDirectory | None,
) -> int:
    app_forks.install()
    if not config.settings.cluster:
        return _serve_alone(config, hub, targets, on_ready, log_directory)
    terminal = Terminal()
    signals.settle_master()
    with acquire_resources(config, argv or default_argv(), log_directory, scripted=targets is not None) as owned:
        owned.terminal = terminal
        return uvloop.run(supervise(owned, hub, on_ready))


def _serve_alone(
    config: Config,
    hub: MessageHub,
    targets: Sequence[object] | None,
    on_ready: Callable[[], None],
    log_directory: LogDirectory | None,
) -> int:
    """Serve in this process, without a master (`cluster = false`)."""
    from . import single_process  # here, since the engines and their imports would cost the master 2 MiB

    notifier = SystemdNotifier(ServiceNotifier.from_environment(os.environ), os.environ)
    emit = _event_sink(hub.emitter, notifier)
    with _open_listeners(config) as listeners, _open_monitor_listeners(config) as monitor:

        def ready() -> None:
            logger.info("serving on %s in one process", _join_addresses(listeners))
            places.announce(config.settings, monitor, log_directory, None)
            notifier.serves(1)
            notifier.live()
            on_ready()

        return single_process.run(
            config, listeners, monitor, targets, ready, emit, hub.emitter.settle, hub, log_directory
        )


def prepare(config: Config) -> None:
    """Set up logging and limits, before the process becomes a master."""
    # A master must not block on its log: a line that standard error does not take at once is dropped.
    logging_setup.configure(config.settings, waits=not config.settings.cluster)
    for warning in config.warnings:
        logger.warning("%s", warning)
    processes.raise_file_limit()


async def supervise(
    owned: MasterResources,
    hub: MessageHub,
    on_ready: Callable[[], None],
    *,
    started: Callable[[Master], None] | None = None,
) -> int:
    """Run the master until it has ended. Return the exit code.

    Args:
        on_ready: called once, when all workers serve.
        started: called with the master before it runs.

    Raises:
        ClusterError: as `run`.
    """
    notifier = SystemdNotifier(owned.notifier, os.environ)
    emit = _event_sink(hub.emitter, notifier)

    def ready() -> None:
        workers = owned.options[0].workers
        logger.info("serving on %s with %s", _join_addresses(owned.listeners), counted(workers, "worker"))
        places.announce(owned.options[0], owned.monitor, owned.log_directory, owned.pids)
        notifier.serves(workers)
        owned.pids.keep()
        on_ready()

    master = Master(owned, emit=emit, on_ready=ready, hub=hub)
    if started is not None:
        started(master)
    code = 1
    try:
        code = await master.run()
        return code
    finally:
        emit(events.Stopped(time=time.time(), code=code))
        await hub.emitter.settle()
        owned.pids.release()
        await master.close()
        if owned.owns_process:
            # The exit code is decided: a signal that came now would replace it.
            signals.ignore_from_now(asyncio.get_running_loop(), SIGNAL_COMMANDS)


def _join_addresses(listeners: Sequence[tuple[int, Listener]]) -> str:
    """Return the addresses of listeners, as a user writes them, with the port that the kernel has picked."""
    return ", ".join(str(listener.address) for _, listener in listeners)


@contextlib.contextmanager
def acquire_resources(
    config: Config,
    argv: Sequence[str],
    log_directory: LogDirectory | None = None,
    *,
    owns_process: bool = True,
    scripted: bool = False,
) -> Iterator[MasterResources]:
    """Acquire all resources of a master; release them at the end, in the reverse order.

    Args:
        argv: the program that loads the apps.
        owns_process: False: the cluster runs in a process of the user's, which keeps its signals and its service manager.
        scripted: the apps are objects of the user's script.
    """
    settings = config.settings
    pids = PidsDirectory(settings.pids)
    pids.acquire()
    with contextlib.ExitStack() as stack:
        stack.callback(pids.release)
        notifier = ServiceNotifier.from_environment(os.environ if owns_process else {})
        pids.write_master(os.getpid())
        stack.callback(notifier.close)
        listeners = stack.enter_context(_open_listeners(config))
        monitor = stack.enter_context(_open_monitor_listeners(config))
        processes.become_subreaper()
        board = make_board()
        stack.callback(board.close)
        lifeline = Lifeline()
        stack.callback(lifeline.close)

        def own_descriptors() -> list[int]:
            sockets = [*(listener for _, listener in listeners), *monitor]
            fixed = [*pids.descriptors(), *lifeline.descriptors(), *board.descriptors]
            return fixed + [listener.sock.fileno() for listener in sockets]

        # Processes that the app forks in this process must not keep the ports open.
        stack.enter_context(app_forks.withholding(own_descriptors))
        if log_directory is not None:
            stack.callback(log_directory.stop)
        yield MasterResources(
            options=Options(settings, _explicit_sources(config)),
            reread=lambda: reread(config),
            listeners=listeners,
            monitor=monitor,
            board=board,
            pids=pids,
            argv=argv,
            owns_process=owns_process,
            lifeline=lifeline,
            notifier=notifier,
            log_directory=log_directory,
            scripted=scripted,
        )


@contextlib.contextmanager
def _open_listeners(config: Config) -> Iterator[list[tuple[int, Listener]]]:
    """Open the listeners of all apps; yield each with the index of its app."""
    by_app = _app_addresses(config)
    flat = [address for addresses in by_app for address in addresses]
    listeners = open_all(flat, backlog=config.settings.backlog, files=_socket_files(config.settings))
    apps = [app for app, addresses in enumerate(by_app) for _ in addresses]
    try:
        yield list(zip(apps, listeners, strict=True))
    finally:
        for listener in listeners:
            listener.close()


def _socket_files(settings: Settings) -> SocketFile:
    """Return the mode and owner of socket files, as a worker would create them."""
    owner = None if settings.user is None and settings.group is None else ids(settings.user, settings.group)
    return SocketFile(0o666 & ~(settings.umask or 0), owner)


@contextlib.contextmanager
def _open_monitor_listeners(config: Config) -> Iterator[list[Listener]]:
    """Open the monitor's listeners: for its page, and for HAProxy's agent-check if that is configured."""
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
    still validated, since the next start would fail on it.

    Raises:
        ConfigError: an option is invalid, by itself or together with the values that are kept.
    """
    again = config.again()
    kept = _changed_restart_options(config, again)
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
    # Not the warning about options that need a master: there is one, and `cluster` changes only by a restart.
    fresh = set(again.warnings) - {*config.warnings, without_master(again.settings, _explicit_sources(again))}
    return Options(settings, _explicit_sources(again), (*restart, *fresh))


def _changed_restart_options(before: Config, after: Config) -> list[str]:
    """Return the options that differ although a reload can't change them."""
    return [
        name
        for name, option in OPTIONS.items()
        if option.restart
        and getattr(before.settings, option.field) != getattr(after.settings, option.field)
        # A default is no request: below a symbolic link it may mean another directory by now.
        and (before.explicit(name) or after.explicit(name))
    ]


def _explicit_sources(config: Config) -> dict[str, str]:
    """Return the source of each option that was set explicitly."""
    return {name: source for name, source in config.sources.items() if config.explicit(name)}


def _app_addresses(config: Config) -> list[Sequence[Address]]:
    """Return the addresses of each app. Sockets that systemd hands over are used if no option sets an address."""
    handed = systemd_fds(os.environ, os.getpid())
    asked = any(config.explicit(name) for name in ("bind", "host", "port", "apps"))
    if handed and not asked:
        return [[FdAddress(number) for number in handed]]
    return [addresses for _, addresses in config.settings.targets()]


def _event_sink(emitter: Emitter, notifier: SystemdNotifier) -> Callable[[events.Event], None]:
    """Return a function that passes each event to the log, to the service manager, and to subscribers."""

    def emit(event: events.Event) -> None:
        _log(event)
        notifier.notify(event)
        emitter.emit(event)

    return emit


def _log(event: events.Event) -> None:
    """Log the events that matter to a reader of the log, a line each. Warnings are logged where they arise."""
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
