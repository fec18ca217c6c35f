"""How far a connection of HTTP/1.1 is read ahead, and how long its app may write without a pause.

uvicorn stops reading when a request waits behind one that isn't answered, and goes on with each answer, and whenever an app asks
for a body. So a client that sends requests faster than they are answered, by one connection, filled the worker's memory: 27 bytes
of it became 1.2 KB here, 450 MB in 25 seconds. With a few of them in store there is nothing to be gained by reading on.

uvicorn's `send` suspends only while the transport's buffer is full. As long as the kernel takes what is written, uvloop empties
the buffer without a turn of the loop. It drops what is written for a client that has gone, and only a turn of the loop would tell
the app so. An app that streams and waits for nothing else would hold the loop for ever. So one of `TURN` messages waits for a
turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sized

from uvicorn.protocols.http.flow_control import FlowControl

READ_AHEAD = 16
"""Requests that may wait behind the one that is served, and more be read. What came in one read is kept, however many."""


TURN = 64
"""Messages."""


class Flow(FlowControl):
    """uvicorn's, which doesn't read on while many requests wait.

    Attributes:
        full: the transport takes nothing more.
    """

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        """Args: pipeline: the requests that wait."""
        self.full = False
        self._asked = 0
        super().__init__(transport)
        self._pipeline = pipeline

    @property
    def write_paused(self) -> bool:
        """Whether a message has to wait."""
        self._asked += 1
        return self.full or not self._asked % TURN

    @write_paused.setter
    def write_paused(self, paused: bool) -> None:
        self.full = paused

    async def drain(self) -> None:
        """Wait until the transport takes something, or for one turn of the loop."""
        if self.full:
            await super().drain()
        else:
            await asyncio.sleep(0)

    def resume_reading(self) -> None:
        """Each request that begins asks again."""
        if self.read_paused and len(self._pipeline) < READ_AHEAD:
            super().resume_reading()
