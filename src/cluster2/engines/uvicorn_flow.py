"""How far a connection of HTTP/1.1 is read ahead.

uvicorn stops reading when a request waits behind one that isn't answered, and goes on with each answer, and whenever an app asks
for a body. So a client that sends requests faster than they are answered, by one connection, filled the worker's memory: 27 bytes
of it became 1.2 KB here, 450 MB in 25 seconds. With a few of them in store there is nothing to be gained by reading on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sized

from uvicorn.protocols.http.flow_control import FlowControl

READ_AHEAD = 16
"""Requests that may wait behind the one that is served, and more be read. What came in one read is kept, however many."""


class Flow(FlowControl):
    """uvicorn's, which doesn't read on while many requests wait."""

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        """Args: pipeline: the requests that wait."""
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        """Each request that begins asks again."""
        if self.read_paused and len(self._pipeline) < READ_AHEAD:
            super().resume_reading()
