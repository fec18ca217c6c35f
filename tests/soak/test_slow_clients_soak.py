"""slowhttptest (slow heads, slow bodies, slow readers) with 500 connections: other clients don't notice."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import subprocess
import time
from typing import Any

import pytest

from tests.system.conftest import Serve, run, start  # noqa: F401
from tests.system.harness import Running, sample, wait_until

CONNECTIONS = 500
SECONDS = 8.0
"""Of each measurement."""
ROUNDS = 3
"""Undisturbed and attacked in turn, since the machine's other load changes."""
MODES = {
    "heads": ["-H", "-i", "1", "-x", "24"],
    "bodies": ["-B", "-i", "60", "-s", "100000", "-x", "10"],
    "readers": ["-X", "-w", "1", "-y", "32", "-n", "60", "-z", "1", "-k", "3"],
}
PATHS = {"heads": "/", "bodies": "/body", "readers": "/large"}
TIMEOUT = "20s"
"""Bodies and readers pause for longer than that; heads have to come whole."""


async def latencies(address: tuple[str, int], seconds: float) -> list[float]:
    """Of ordinary clients: six kept-alive connections, and two that open one for each request."""
    found: list[float] = []
    deadline = time.monotonic() + seconds

    async def client(kept: bool) -> None:
        reader, writer = await asyncio.open_connection(*address)
        while time.monotonic() < deadline:
            began = time.monotonic()
            if not kept:
                writer.close()
                reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            assert head.startswith(b"HTTP/1.1 200"), head
            assert b"connection: close" not in head.lower(), "what can move isn't ended for balance"
            assert await reader.readexactly(5) == b"hello"
            found.append(time.monotonic() - began)
            await asyncio.sleep(0.01)
        writer.close()

    await asyncio.gather(*(client(number < 6) for number in range(8)))
    return found


def p99(found: list[float]) -> float:
    return statistics.quantiles(found, n=100)[98]


def open_now(running: Running) -> int:
    """Connections at the workers and at the keeper."""
    found: dict[str, Any] = running.status()
    resting: int = found["keeper"]["resting"]
    return resting + sum(row["connections"] for row in found["workers"])


def measured(running: Running) -> float:
    return p99(asyncio.run(latencies(running.address, SECONDS)))


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", MODES)
def test_slow_clients(run: Serve, mode: str) -> None:  # noqa: F811
    """The 99th percentile of ordinary clients stays within twice that of the undisturbed runs; the slow ones are cut off."""
    program = shutil.which("slowhttptest")
    if program is None:
        pytest.skip("slowhttptest isn't installed")
    running = run(sample("slow_targets"), "--timeout", TIMEOUT).ready()
    quiet, attacked = [], []
    for _ in range(ROUNDS):
        quiet.append(measured(running))
        argv = [program, "-c", str(CONNECTIONS), "-r", "250", "-l", "90", "-p", "10"]
        argv += [*MODES[mode], "-u", running.url(PATHS[mode])]
        attack = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: open_now(running) > CONNECTIONS / 2, lambda: f"they attack: {running.status()}")
            attacked.append(measured(running))
            wait_until(lambda: open_now(running) < 10, lambda: f"they are cut off: {running.status()}", timeout=60)
        finally:
            attack.terminate()
            attack.wait(30)
    gone = sum(row["timed_out"] for row in running.workers())
    print(f"\n{mode}: p99 ms undisturbed {[f'{1000 * each:.1f}' for each in quiet]}, attacked "
          f"{[f'{1000 * each:.1f}' for each in attacked]}, {gone} timed out")  # fmt: skip
    assert statistics.median(attacked) <= 2 * statistics.median(quiet)
    assert gone > 0.8 * CONNECTIONS * ROUNDS, "the server has cut them off"
    assert "clients stalled in the middle" in running.stderr
    assert running.shutdown() == 0
