"""A scoreboard with the values of a cluster, and a dashboard that shows it: for tests of the monitor."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import httpx

from cluster2.config.settings import Settings
from cluster2.core.lifecycle import PHASES, WorkerState
from cluster2.linux.scoreboard import Scoreboard
from cluster2.processes.monitor.app import make_app
from cluster2.processes.monitor.data.cluster_view import ClusterView
from cluster2.processes.monitor.data.dashboard import Dashboard
from cluster2.processes.monitor.data.memory import MemorySampler
from cluster2.processes.monitor.data.report import ClusterInfo

TOKEN = "a-secret-token"
BEARS = {"authorization": f"Bearer {TOKEN}"}
AS_JSON = {"accept": "application/json"}


def a_board() -> Iterator[Scoreboard]:
    """Yield a scoreboard with two wanted workers and none yet."""
    board = Scoreboard.create()
    header = board.header
    header.started, header.beat = time.time(), time.monotonic()
    header.traffic, header.wanted, header.generation, header.phase = 1, 2, 1, PHASES.index("serving")
    yield board
    board.close()


def worker(board: Scoreboard, slot: int, pid: int = 0, **values: Any) -> int:
    """Add a worker that serves, by default with this process's pid. Returns the index of its row."""
    index = board.claim()
    row = board.row(index)
    row.slot, row.generation, row.state = slot, 1, WorkerState.READY
    row.started, row.heartbeat = time.monotonic(), time.monotonic() + 2
    for name, value in values.items():
        setattr(row, name, value)
    row.pid = pid or os.getpid()
    return index


def dashboard_of(board: Scoreboard, **more: Any) -> Dashboard:
    async def switch(enabled: bool) -> bool:
        return True

    # With a clock that stands still all processes are measured in each turn, however busy this machine is.
    return Dashboard(ClusterView(board, 3000, switch), ClusterInfo(**more), MemorySampler(clock=lambda: 0.0))


def client(dashboard: Dashboard, settings: Settings | None = None) -> httpx.AsyncClient:
    app = make_app(dashboard.view, settings or Settings(), dashboard)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


async def facts(dashboard: Dashboard) -> Any:
    async with client(dashboard) as asking:
        answer = await asking.get("/", headers=AS_JSON)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-cache")
    return answer.json()
