"""The monitor's port and the directory of pid files: defaults that give way, and the log lines that say where they are.

A value that the user has set is used, or the start fails. A default that isn't available is replaced, and the log says by what:

- A second service on the machine needs no option for a monitor page that it may not use: the next free port is taken.
- A service that is tried out in a directory without write permission runs: its pid files are in a temporary directory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence

from ..config.settings import Settings
from ..config.value_types import TcpAddress
from ..errors import AddressInUse
from ..linux.listeners import Listener, open_all
from ..linux.pid_files import PidsDirectory
from ..runtime.option_sources import Config
from .master.logs.directory import LogDirectory

logger = logging.getLogger("cluster2.master")

_MAX_MONITOR_PORTS = 100
"""Ports that are tried for a monitor whose port isn't set, before the start fails."""


def announce(
    settings: Settings, monitor: Sequence[Listener], logbook: LogDirectory | None, pids: PidsDirectory | None
) -> None:
    """Log where the monitor's page, the log files and the pid files are."""
    if monitor:
        address = monitor[0].address
        moved = getattr(address, "port", settings.monitor_port) != settings.monitor_port
        why = f" (monitor_port isn't set, and {settings.monitor_port} is taken)" if moved else ""
        logger.info("the monitor's page is http://%s%s%s", address, settings.monitor_path, why)
    kept = [("logs", logbook and logbook.directory), ("pids", pids and pids.path)]
    if parts := [f"{name} in {directory}" for name, directory in kept if directory]:
        logger.info("%s", ", ".join(parts))


@contextlib.contextmanager
def with_writable_pids(config: Config) -> Iterator[Config]:
    """Yield a configuration whose directory of pid files is writable.

    If `pids` isn't set and `./pids` isn't writable, that is a temporary directory, which is removed at the end. If there can be
    no temporary directory either, the start will fail with the error of `./pids`.
    """
    directory = config.settings.pids
    if config.explicit("pids") or not config.settings.cluster or _writable(directory):
        yield config
        return
    import tempfile  # seldom needed, and the master keeps what it has imported

    try:
        made = tempfile.mkdtemp(prefix="cluster2-")
    except OSError:
        yield config
        return
    try:
        warning = (
            f"{directory} can't be written, so pids are in {made}: give --pids {made} to other commands, or set pids"
        )
        settings = dataclasses.replace(config.settings, pids=made)
        yield dataclasses.replace(config, settings=settings, warnings=(*config.warnings, warning))
    finally:
        with contextlib.suppress(OSError):  # not empty: another program has put a file there
            os.rmdir(made)


def _writable(directory: str) -> bool:
    """Return whether files can be created in a directory, which need not exist yet."""
    while not os.path.lexists(directory):
        directory = os.path.dirname(directory)
    return os.access(directory, os.W_OK | os.X_OK)


def monitor_ports(config: Config) -> list[int]:
    """Return the ports that the monitor may use: the one that is set, or else the default and those that follow it."""
    settings = config.settings
    if config.explicit("monitor_port"):
        return [settings.monitor_port]
    others = {getattr(address, "port", 0) for address in settings.addresses()} | {settings.ecv_agent_port}
    return [
        port for port in range(settings.monitor_port, settings.monitor_port + _MAX_MONITOR_PORTS) if port not in others
    ]


def first_free(settings: Settings, ports: Sequence[int]) -> Listener:
    """Open the first of these ports on which no other process listens.

    Raises:
        ClusterError: none is free; the error is that of the last one.
    """
    for port in ports[:-1]:
        with contextlib.suppress(AddressInUse):
            return open_all([TcpAddress(settings.monitor_host, port)], backlog=settings.backlog)[0]
    return open_all([TcpAddress(settings.monitor_host, ports[-1])], backlog=settings.backlog)[0]
