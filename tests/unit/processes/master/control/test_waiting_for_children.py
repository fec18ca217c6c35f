"""A worker that has drained, and waits for processes that its app has started."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.clusters import observed

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("own_process")]

APP = """
import multiprocessing, time

def last():
    while not __import__("pathlib").Path("go").exists():
        time.sleep(0.02)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        multiprocessing.get_context("fork").Process(target=last).start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
"""


@pytest.mark.parametrize("verb", ["reload", "recycle"])
async def test_the_command_says_what_it_waits_for(tmp_path: Path, capfd: pytest.CaptureFixture[str], verb: str) -> None:
    """The progress of the command and a line of the log name the worker and its child process; the command ends when that has."""
    async with observed(tmp_path, APP, workers=1, drain_timeout=30) as cluster:
        old = (await cluster.workers())[0]
        progress: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        seen = asyncio.Event()

        def report(said: dict[str, Any]) -> None:
            progress.append(said)
            if "waiting" in said:
                loop.call_soon_threadsafe(seen.set)

        waiting = asyncio.ensure_future(asyncio.to_thread(cluster.cluster._client().call, verb, progress=report))
        await asyncio.wait_for(seen.wait(), 20)
        assert not waiting.done()
        text = progress[-1]["waiting"]
        assert re.fullmatch(rf"for child processes of worker {old} \(slot 0, generation 1\): \d+ \(a fork\)", text), (
            text
        )
        (tmp_path / "go").touch()
        assert await waiting
        line = f"worker {old} (slot 0, generation 1) has drained, and waits for its child processes: "
        assert capfd.readouterr().err.count(line) == 1
