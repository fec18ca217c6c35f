"""The monitor's process.

It is executed by the master, with a channel, the scoreboard and the listening socket of its port, which the master keeps
open: so the port answers again as soon as another monitor has been started, and connections wait meanwhile. The channel's end
means that the master is gone, or wants us gone. Nothing here can hurt the cluster: it reads the scoreboard, and asks the
master.

It is the user that workers are (`user`, `group`), who may not use `master.sock`, and needn't: to ask, it makes a pair of
sockets and sends one of them through the channel. The master hears of it what its options allow (`master.monitoring:
Monitoring.may`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence

from ...config.settings import Settings
from ...errors import ClusterError
from ...linux import privileges, signals
from ...linux.descriptor_passing import Packets
from ...linux.log_files import ReopeningFile
from ...linux.scoreboard import MONITOR_PAGE, Scoreboard
from ...protocol import codec, messages
from ...runtime import logging_setup
from ...runtime.step_guard import StepGuard
from .access.connection_limit import ConnectionLimit
from .app import make
from .data.dashboard import Dashboard
from .data.facts import Facts
from .data.report import ClusterInfo
from .http.agent_check import AgentConnections
from .master_client import MasterLine

logger = logging.getLogger("cluster2.monitor")

MONITOR_HEARTBEAT_INTERVAL_S = 1.0
"""Seconds between two signs of life."""
MONITOR_SHUTDOWN_GRACE_S = 0.5
"""Seconds for responses under way at the end."""


def main() -> int:
    """Serve until the channel ends. Returns the exit code."""
    signals.settle("monitor")  # a terminal's ^C is the master's business, and it ends us by closing the channel
    channel = Packets.attach(int(os.environ.pop(messages.CHANNEL_VARIABLE)))
    packet, descriptors = channel.receive()
    if not packet:
        return 0
    order = codec.unpack_order(packet)
    assert isinstance(order, messages.StartMonitor)
    settings = Settings.from_wire(order.settings)
    logging_setup.configure(settings, waits=False)
    _title(settings)
    try:
        privileges.drop_privileges(settings.user, settings.group)
    except ClusterError as error:  # the zygote, which says the same, ends the cluster
        logger.warning("the monitor can't serve: %s", error.message)
        return error.exit_code
    board = Scoreboard.attach(descriptors[:3], MONITOR_PAGE)
    listeners = [socket.socket(fileno=each) for each in descriptors[3:]]
    asyncio.run(_observe(channel, board, listeners, order, settings))
    return 0


def _title(settings: Settings) -> None:
    import setproctitle

    setproctitle.setproctitle(f"{settings.proc_name or 'cluster2'}: monitor")


async def _observe(
    channel: Packets,
    board: Scoreboard,
    listeners: Sequence[socket.socket],
    order: messages.StartMonitor,
    settings: Settings,
) -> None:
    channel.set_blocking(False)  # a master that is stuck lets its queue fill up

    def connect() -> socket.socket:
        """A connection to the master: that it is ours it sees by the way on which it gets the other end."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                channel.send(messages.CONNECTION_REQUEST, [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    line = MasterLine(connect)

    async def switch(enabled: bool) -> bool:
        try:
            await line.query("enable" if enabled else "disable", {})
        except ClusterError as error:
            logger.warning("traffic can't be switched: %s", error.message)
            return False
        return True

    left = asyncio.Event()
    asyncio.get_running_loop().add_reader(channel.fileno(), left.set)

    output = ReopeningFile(order.log, 1, 2) if order.log else None

    def beat() -> None:
        board.header.monitor_beat = time.monotonic()
        if output is not None:
            with contextlib.suppress(OSError):  # what is open stays in use
                output.reopen_if_moved()

    facts = Facts(board, order.port, switch, line.query, line.order)
    desk = Dashboard(
        facts,
        ClusterInfo.from_settings(settings, order.addresses, order.address, master=order.master, version=order.version),
    )
    hearing = asyncio.ensure_future(line.follow(desk.watch.feed.add))
    try:
        await serve(listeners, facts, settings, left, desk, beat)
    finally:
        hearing.cancel()


async def serve(
    listeners: Sequence[socket.socket],
    facts: Facts,
    settings: Settings,
    left: asyncio.Event,
    desk: Dashboard,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Answer until `left` is set. `beat` is called once a second.

    Args:
        listeners: of the page and, if there is one, of the agent-check.
        desk: shows the cluster.
    """
    # The app's options say nothing about this app.
    own = dataclasses.replace(
        settings, lifespan="off", access_log=False, forwarded_allow_ips="", root_path="", keep_alive=True
    )
    crowd = ConnectionLimit(make(facts, settings, desk), own)
    engine = crowd.engine
    await engine.start()
    loop = asyncio.get_running_loop()
    protocols: list[Callable[[], asyncio.BaseProtocol]] = [crowd.protocol, AgentConnections(facts).protocol]
    servers = [
        await loop.create_server(make_one, sock=listener)
        for make_one, listener in zip(protocols, listeners, strict=False)
    ]
    guard = StepGuard(_report)
    steps = {
        "the monitor's sign of life": beat,
        "the monitor's look at the cluster": desk.on_second,
        "the monitor's tick": lambda: engine.tick(time.monotonic()),
        "the monitor's time limits": engine.on_second,
    }
    while not left.is_set():
        for name, step in steps.items():
            with guard(name):
                step()
        try:
            await asyncio.wait_for(left.wait(), MONITOR_HEARTBEAT_INTERVAL_S)
        except TimeoutError:
            pass  # another second
    for server in servers:
        server.close()
    desk.viewers.close()
    engine.drain(moving=False)
    deadline = time.monotonic() + MONITOR_SHUTDOWN_GRACE_S
    while not engine.idle() and time.monotonic() < deadline:
        engine.close_idle(0.0)
        await asyncio.sleep(0.01)
    await engine.stop()


def _report(text: str, detail: str) -> None:
    logger.warning("%s", text)
    if detail:
        logger.error("%s", detail)
