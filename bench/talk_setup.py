"""The master's side of the app whose workers make calls."""

from __future__ import annotations

import asyncio
from typing import Any

from bench.driving import VALUE

_runs = 0


def setup(cluster: Any) -> None:
    """Register the handlers, by `cluster2 run --setup bench.talk_setup:setup`."""

    @cluster.on_delegate("get", limit=100_000)
    async def get(key: Any) -> str:
        return VALUE

    @cluster.on_delegate("slow-get")
    async def slow_get(key: Any) -> int:
        global _runs
        _runs += 1
        await asyncio.sleep(1.0)
        return _runs
