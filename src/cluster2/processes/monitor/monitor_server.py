"""The monitor's process: its start, its loop, its end.

The master executes it with a channel, the scoreboard, and the listening sockets of its ports. The master keeps these open, so
clients that connect while no monitor runs wait for the next one. The end of the channel means that the master has ended, or wants
the monitor to end. The monitor can't harm the cluster: it reads the scoreboard, and sends queries to the master.

It runs as the user of the workers (`user`, `group`), which may not use `master.sock`. To connect to the master it makes a pair of
sockets and sends one of them through the channel. The master accepts from it what its options allow
(`master.helpers.monitor: MonitorProcess.may`).
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
from .app import make_app
from .async_control_client import AsyncControlClient
from .data.cluster_view import ClusterView
from .data.dashboard import Dashboard
from .data.report import ClusterInfo
from .http.agent_check import AgentConnections

logger = logging.getLogger("cluster2.monitor")

_MONITOR_HEARTBEAT_INTERVAL_S = 1.0
"""Seconds between two heartbeats."""
_MONITOR_SHUTDOWN_GRACE_S = 0.5
"""Seconds that responses under way have at the end."""


def main() -> int:
    """Serve until the channel ends. Returns the exit code."""
    signals.settle("monitor")  # a terminal's ^C is for the master, which then closes the channel
    channel = Packets.attach(int(os.environ.pop(messages.CHANNEL_VARIABLE)))
    packet, descriptors = channel.receive()
    if not packet:
        return 0
    order = codec.unpack_order(packet)
    assert isinstance(order, messages.StartMonitor)
    settings = Settings.from_wire(order.settings)
    logging_setup.configure(settings, waits=False)
    _set_process_title(settings)
    try:
        privileges.drop_privileges(settings.user, settings.group)
    except ClusterError as error:  # the zygote fails for the same reason, which ends the cluster
        logger.warning("the monitor can't serve: %s", error.message)
        return error.exit_code
    board = Scoreboard.attach(descriptors[:3], MONITOR_PAGE)
    listeners = [socket.socket(fileno=each) for each in descriptors[3:]]
    asyncio.run(_run(channel, board, listeners, order, settings))
    return 0


def _set_process_title(settings: Settings) -> None:
    import setproctitle

    setproctitle.setproctitle(f"{settings.proc_name or 'cluster2'}: monitor")


async def _run(
    channel: Packets,
    board: Scoreboard,
    listeners: Sequence[socket.socket],
    order: messages.StartMonitor,
    settings: Settings,
) -> None:
    channel.set_blocking(False)  # the queue to a master that is stuck fills up

    def connect() -> socket.socket:
        """Return a connection to the master, which trusts the other end since it comes through the channel."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                channel.send(messages.CONNECTION_REQUEST, [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    client = AsyncControlClient(connect)

    async def switch_traffic(enabled: bool) -> bool:
        try:
            await client.query("enable" if enabled else "disable", {})
        except ClusterError as error:
            logger.warning("traffic can't be switched: %s", error.message)
            return False
        return True

    # The master sends nothing but the order, so the channel becomes readable when it ends.
    channel_ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(channel.fileno(), channel_ended.set)

    output = ReopeningFile(order.log, 1, 2) if order.log else None

    def heartbeat() -> None:
        board.header.monitor_beat = time.monotonic()
        if output is not None:
            with contextlib.suppress(OSError):  # the open file stays in use
                output.reopen_if_moved()

    view = ClusterView(board, order.port, switch_traffic, client.query, client.command)
    cluster = ClusterInfo.from_settings(
        settings, order.addresses, order.address, master=order.master, version=order.version
    )
    dashboard = Dashboard(view, cluster)
    following = asyncio.ensure_future(client.follow_events(dashboard.sampler.events.add))
    try:
        await serve(listeners, view, settings, channel_ended, dashboard, heartbeat)
    finally:
        following.cancel()


async def serve(
    listeners: Sequence[socket.socket],
    view: ClusterView,
    settings: Settings,
    stop: asyncio.Event,
    dashboard: Dashboard,
    heartbeat: Callable[[], None] = lambda: None,
) -> None:
    """Serve the app until `stop` is set.

    Args:
        listeners: the socket of the page and, if there is one, of the agent-check.
        dashboard: the page's data.
        heartbeat: called once a second.
    """
    # These options are the cluster's app's. They don't apply to the monitor's own app.
    own = dataclasses.replace(
        settings, lifespan="off", access_log=False, forwarded_allow_ips="", root_path="", keep_alive=True
    )
    limit = ConnectionLimit(make_app(view, settings, dashboard), own)
    engine = limit.engine
    await engine.start()
    loop = asyncio.get_running_loop()
    protocols: list[Callable[[], asyncio.BaseProtocol]] = [limit.protocol, AgentConnections(view).protocol]
    servers = [
        await loop.create_server(protocol, sock=listener)
        for protocol, listener in zip(protocols, listeners, strict=False)
    ]
    guard = StepGuard(_report)
    steps = {
        "the monitor's heartbeat": heartbeat,
        "the monitor's sample of the cluster": dashboard.on_second,
        "the monitor's tick": lambda: engine.tick(time.monotonic()),
        "the monitor's time limits": engine.on_second,
    }
    while not stop.is_set():
        for name, step in steps.items():
            with guard(name):
                step()
        try:
            await asyncio.wait_for(stop.wait(), _MONITOR_HEARTBEAT_INTERVAL_S)
        except TimeoutError:
            pass  # the next second
    for server in servers:
        server.close()
    dashboard.viewers.close()  # streams never end by themselves
    engine.drain(moving=False)
    deadline = time.monotonic() + _MONITOR_SHUTDOWN_GRACE_S
    while not engine.idle() and time.monotonic() < deadline:
        engine.close_idle(0.0)
        await asyncio.sleep(0.01)
    await engine.stop()


def _report(text: str, detail: str) -> None:
    logger.warning("%s", text)
    if detail:
        logger.error("%s", detail)
