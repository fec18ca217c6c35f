"""A cluster inside of the test's own event loop whose workers do what they are told over HTTP (`talking_app`)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.unit.clusters import Observed, observed
from tests.unit.waiting import PATIENCE

APP = Path(__file__).with_name("talking_app.py").read_text()


class Talking:
    """A cluster whose workers do what they are told over HTTP."""

    def __init__(self, observed: Observed) -> None:
        self.observed = observed
        self.cluster = observed.cluster

    async def ask(self, what: str, **given: Any) -> dict[str, Any]:
        """Have some worker call it; what came of it."""
        host, _, port = self.observed.running.addresses[0].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps(given).encode()
        try:
            head = f"POST /{what} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            whole = await asyncio.wait_for(reader.read(), PATIENCE)
        except ConnectionResetError:
            return {}
        finally:
            writer.close()
        answer: dict[str, Any] = json.loads(whole.partition(b"\r\n\r\n")[2] or b"{}")
        return answer

    async def result(self, what: str, **given: Any) -> Any:
        answer = await self.ask(what, **given)
        assert "error" not in answer, answer
        return answer["result"]

    async def call_servers(self) -> set[int]:
        return set((await self.observed.whole(wanted=self.workers)).values())

    @property
    def workers(self) -> int:
        return self.cluster.config.settings.workers


@asynccontextmanager
async def talking(directory: Path, **options: Any) -> AsyncIterator[Talking]:
    async with observed(directory, APP, **options) as found:
        yield Talking(found)
