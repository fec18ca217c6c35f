"""A monitor in this process over a scoreboard that a test fills: any number of workers, any settings."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cluster2.config.settings import Settings
from cluster2.core.lifecycle import PHASES, WorkerState
from cluster2.linux.scoreboard import Row, Scoreboard
from cluster2.processes.monitor.data.cluster_view import ClusterView
from cluster2.processes.monitor.data.dashboard import Dashboard
from cluster2.processes.monitor.data.report import ClusterInfo
from cluster2.processes.monitor.monitor_server import serve

NOBODY = 5_000_000
"""A pid that no process has: the kernel's highest is below it."""


@contextmanager
def monitor(workers: int, settings: Settings, subject: ClusterInfo) -> Iterator[str]:
    """Serve the page of a cluster whose workers' figures change each second. Yields its address."""
    board = Scoreboard.create()
    board.header.started, board.header.traffic = time.time() - 3600, 1
    board.header.wanted, board.header.generation = workers, 3
    board.header.phase = PHASES.index("serving")
    rows = [_worker(board, slot) for slot in range(workers)]
    turns = itertools.count(1)

    async def switch(enabled: bool) -> bool:
        return True

    async def ask(verb: str, params: Mapping[str, Any]) -> dict[str, Any]:
        return {"names": []}

    def beat() -> None:
        turn = next(turns)
        for row in rows:
            _work(row, turn)

    facts = ClusterView(board, 3000, switch, ask)
    with socket.create_server(("127.0.0.1", 0)) as listener, _served(listener, facts, settings, subject, beat):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    board.close()


@contextmanager
def _served(
    listener: socket.socket, facts: ClusterView, settings: Settings, subject: ClusterInfo, beat: Callable[[], None]
) -> Iterator[None]:
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    started = threading.Event()

    async def run() -> None:
        left = asyncio.Event()
        loops.append((asyncio.get_running_loop(), left))
        started.set()
        await serve([listener], facts, settings, left, Dashboard(facts, subject), beat)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    started.wait()
    try:
        yield
    finally:
        loop, left = loops[0]
        loop.call_soon_threadsafe(left.set)
        thread.join()


def _worker(board: Scoreboard, slot: int) -> Row:
    row = board.row(board.claim())
    row.slot, row.generation, row.pid, row.state = slot, 3, NOBODY + slot, WorkerState.READY
    row.started = time.monotonic() - 600 - slot
    return row


def _work(row: Row, turn: int) -> None:
    slot = row.slot
    row.heartbeat = time.monotonic() + 5
    row.requests += 40 + (slot * turn) % 90
    row.connections, row.in_flight = 3 + (slot + turn) % 9, (slot + turn) % 4
    row.cpu += ((slot * 7 + turn) % 100) / 100
    row.mode, row.longest_step = (slot + turn) % 3, 0.0001 * ((slot + turn) % 13)
    row.moved_in, row.moved_out, row.errors = turn, turn + slot, int(slot == 2) * turn
    row.latencies[1 + (slot + turn) % 4] += 20
