"""The same idea with an asyncio.Protocol: it answers each line in capitals, and says when it is between two lines.

Run it:  cluster2 run examples/lines_protocol.py:Lines --workers 2
Try it:  nc 127.0.0.1 3000
"""

import asyncio
from typing import cast

import cluster2


class Lines(asyncio.Protocol):
    """Collects bytes until a line is whole."""

    def __init__(self) -> None:
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Nothing is said: the connection may be an old one, from another worker."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer the lines that are whole."""
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            self.transport.write(line.upper() + b"\n")

    @cluster2.tcp.boundary
    def between_lines(self) -> bool:
        """Asked now and then: nothing of a line has come."""
        return not self.buffer
