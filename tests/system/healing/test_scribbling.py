"""A worker that writes nonsense over all of the scoreboard that it can reach harms no other process."""

from __future__ import annotations

import json
import mmap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.system.clients import Connection, get
from tests.system.harness import Running, free_port, wait_until
from tests.system.monitor.test_monitor import Monitor

Serve = Callable[..., Running]
APP = f"{(Path(__file__).parents[1] / 'apps' / 'scribbling_app.py')}:app"
BOTH = ["/memfd:cluster2-pages", "/memfd:cluster2-scoreboard"]


def goes_mad(monitor: Monitor) -> dict[str, Any]:
    """Have one worker go mad; check that all others are as they were; return what it tells."""
    running = monitor.running
    before = running.status()
    with Connection(running.address) as connection:
        answer = connection.get("/reach")
        liar = int(answer.headers["x-worker"])
        told: dict[str, Any] = json.loads(answer.body)
        connection.send("/scribble")
        connection.closed()  # an answer comes, or the end: by what it has written it may seem to be stuck, and is replaced
    since = time.time()
    # Each of them looks once a second.
    wait_until(lambda: json.loads(monitor.answer("/", accept="application/json")[1])["time"] > since + 1, "a look")
    after = running.status()
    others = [[each["pid"] for each in status["workers"] if each["pid"] != liar] for status in (before, after)]
    assert set(others[0]) <= set(others[1])
    for name in ("master", "keeper", "monitor"):
        assert (after[name] or {}).get("pid") == (before[name] or {}).get("pid")
    facts = json.loads(monitor.answer("/", accept="application/json")[1])
    assert facts["master"]["state"] == "serving"
    assert monitor.status("/metrics") == 200
    assert all(get(running.address).body == b"hello" for _ in range(20))
    assert "Traceback" not in running.stderr
    return told


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [(), pytest.param(("--engine", "granian"), marks=pytest.mark.soak), ("--no-preload",)],
    ids=["http", "granian", "executed"],
)
def test_a_worker_gone_mad(run: Serve, options: tuple[str, ...]) -> None:
    """It can write a page, its own; what else it has mapped stays read-only, and it has no descriptor to map more."""
    port = free_port()
    running = run(APP, *options, "--monitor-port", str(port)).ready()
    told = goes_mad(Monitor(running, port))
    assert (told["written"], told["locked"]) == (mmap.PAGESIZE, BOTH)
    assert (told["unlocked"], told["own"]) == ([], [])


def answers(path: str) -> bool:
    """Whether the app answers there."""
    try:
        return get(path).body == b"hello"
    except OSError:
        return False


@pytest.mark.slow
def test_without_a_master(run: Serve) -> None:
    """Where there is one process it can write everything; it serves on."""
    running = run(APP, "--no-cluster", bind=("unix:app.sock",), workers=None)
    address = str(running.directory / "app.sock")
    wait_until(lambda: Path(address).exists() and answers(address), lambda: running.stderr)
    assert json.loads(get(address, "/reach").body)["locked"] == []
    assert get(address, "/scribble").body == b"mad"
    assert all(get(address).body == b"hello" for _ in range(20))
    assert running.process.poll() is None
