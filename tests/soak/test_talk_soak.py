"""A million messages, each way, with nothing lost and nothing doubled."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.conftest import own_process  # noqa: F401
from tests.unit.talking import talking

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("own_process"), pytest.mark.soak]
MILLION = 1_000_000
WORKERS = 4


async def wait(done: Any, total: int, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while done() < total:
        assert time.monotonic() < deadline, f"{done()} of {total}"
        await asyncio.sleep(0.1)


async def test_a_million_pieces_of_work(tmp_path: Path) -> None:
    """Each of a million calls that nobody waits for is done once; each of as many that somebody waits for is answered."""
    async with talking(tmp_path, workers=WORKERS, drain_timeout=60) as site:
        seen: dict[int, int] = {}

        @site.cluster.on_delegate("count", limit=1000)
        async def count(message: Any, request: Any) -> Any:
            seen[message] = seen.get(message, 0) + 1
            return message

        each = MILLION // 10
        for _ in range(10):
            await site.result("nowait-steady", name="count", times=each)
        await wait(lambda: sum(seen.values()), MILLION)
        assert seen == dict.fromkeys(range(each), 10)
        seen.clear()
        asked = [site.result("many-steady", name="count", times=each // 10) for _ in range(100)]
        answered = 0
        for start in range(0, 100, WORKERS):
            answered += sum(await asyncio.gather(*asked[start : start + WORKERS]))
        assert answered == MILLION


async def test_a_million_events(tmp_path: Path) -> None:
    """Each of a million events arrives once, those of a worker in order."""
    async with talking(tmp_path, workers=WORKERS) as site:
        counts: dict[int, int] = {}
        wrong: list[tuple[int, int, int]] = []

        def tick(event: Any) -> None:
            expected = counts.get(event.pid, 0)
            if event.data != expected % 1000:
                wrong.append((event.pid, event.data, expected))
            counts[event.pid] = expected + 1

        site.cluster.on("tick", tick)
        site.observed.cluster.off("*", site.observed.events.append)  # it would keep them all
        for _ in range(MILLION // 10_000):
            asked = [site.result("burst", event="tick", times=1000) for _ in range(10)]
            await asyncio.gather(*asked)
        await wait(lambda: sum(counts.values()), MILLION)
        assert sum(counts.values()) == MILLION
        assert not wrong, wrong[:5]
