"""HAProxy's agent-check: the line for each state of the cluster, and its connections."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from cluster2.config.settings import Settings, validate
from cluster2.core.lifecycle import WorkerState
from cluster2.errors import ConfigError
from cluster2.linux.scoreboard import Scoreboard
from cluster2.processes.monitor.data.cluster_view import ClusterView
from cluster2.processes.monitor.http import agent_check
from cluster2.processes.monitor.http.agent_check import AgentConnections, line, ready_percent


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = Scoreboard.create()
    board.header.traffic, board.header.wanted, board.header.beat = 1, 4, time.monotonic()
    for _ in range(3):
        board.row(board.claim()).state = WorkerState.READY
    yield board
    board.close()


def facts(board: Scoreboard) -> ClusterView:
    async def switch(enabled: bool) -> bool:
        return False

    return ClusterView(board, 3000, switch)


def test_the_line(board: Scoreboard) -> None:
    """The line has the share of ready workers; it is drain when disabled, maint at a shutdown, down when no worker serves."""
    assert line(facts(board)) == b"up ready 75%\n"
    board.header.traffic = 0
    assert line(facts(board)) == b"drain\n"
    board.header.leaving = 1
    assert line(facts(board)) == b"maint\n"
    board.header.traffic, board.header.leaving = 1, 0
    for index in range(3):
        board.row(index).state = WorkerState.DRAINING
    assert line(facts(board)) == b"down\n"


def test_a_master_that_is_stuck(board: Scoreboard) -> None:
    """A cluster whose master is stuck is down, since its workers aren't supervised."""
    board.header.beat = time.monotonic() - 60
    assert line(facts(board)) == b"down\n"


@pytest.mark.parametrize(
    ("ready", "wanted", "percent"), [(4, 4, 100), (5, 4, 100), (1, 512, 1), (2, 3, 67), (0, 4, 0), (1, 0, 100)]
)
def test_share(ready: int, wanted: int, percent: int) -> None:
    """The share is in percent, rounded up, 100 at most."""
    assert ready_percent(ready, wanted) == percent


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"monitor_port": 0}, "ecv.agent_port = 3002 is answered by the monitor: that needs monitor_port"),
        ({"monitor_port": 3002}, "ecv.agent_port = 3002 is the monitor's port too"),
        ({"port": 3002}, "ecv.agent_port = 3002 is the app's port too"),
    ],
)
def test_ports_that_can_not_be(options: dict[str, int], says: str) -> None:
    """The agent's port must differ from all others, and needs a monitor."""
    with pytest.raises(ConfigError, match=says):
        validate(Settings(ecv_agent_port=3002, **options))


async def _leaves(made: asyncio.Protocol) -> list[dict[str, object]]:
    """Return the loop's complaints about a client that closes before it is served: the kernel responds to data with a reset."""
    loop, complaints = asyncio.get_running_loop(), list[dict[str, object]]()
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.connect(listener.getsockname())
        client.close()
        taken, _ = listener.accept()
        taken.setblocking(False)
        transport, _ = await loop.connect_accepted_socket(lambda: made, taken)
        while not transport.is_closing():
            await asyncio.sleep(0)
    return complaints


def test_a_client_that_has_left(board: Scoreboard) -> None:
    """A client that closes its connection before it gets its line causes no traceback."""
    assert asyncio.run(_leaves(AgentConnections(facts(board)).protocol())) == []


async def _connect_many(agents: AgentConnections, count: int) -> tuple[int, list[bytes]]:
    """Return how many connections there are after `count` clients have connected and stayed, and the lines of the last two."""
    loop = asyncio.get_running_loop()
    clients = []
    with socket.create_server(("127.0.0.1", 0), backlog=count) as listener:
        for _ in range(count):
            clients.append(socket.create_connection(listener.getsockname()))
            taken, _ = listener.accept()
            taken.setblocking(False)
            await loop.connect_accepted_socket(agents.protocol, taken)
    told = [client.recv(100) for client in clients[-2:]]
    there = len(agents.connections)
    for client in clients:
        client.close()
    while agents.connections:
        await asyncio.sleep(0.01)
    return there, told


def test_many_that_stay(board: Scoreboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of connections is limited, and the last ones get their lines."""
    monkeypatch.setattr(agent_check, "MAX_AGENT_CONNECTIONS", 8)
    assert asyncio.run(_connect_many(AgentConnections(facts(board)), 40)) == (8, [b"up ready 75%\n"] * 2)
