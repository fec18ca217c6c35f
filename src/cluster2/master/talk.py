"""The master's end of its channel to a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from .. import wire
from .facts import Fact, FromWorker, Garbage, Silent
from .handle import Handle


class TalkToWorker(asyncio.Protocol):
    """Turns what a worker says into facts."""

    def __init__(self, worker: Handle, put: Callable[[Fact], None]) -> None:
        self._worker = worker
        self._put = put
        self._unpacker = wire.Unpacker()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class, with the same methods

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        try:
            messages = self._unpacker.feed(data)
        except wire.Garbled as error:
            self._transport.abort()
            self._put(Garbage(self._worker, str(error)))
            return
        for message in messages:
            self._put(FromWorker(self._worker, message))

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the loop."""
        self._put(Silent(self._worker))
