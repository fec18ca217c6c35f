"""A line protocol as an asyncio.Protocol: it answers each line in capitals, and marks when it is between two lines.

Run it:  cluster2 run examples/lines_protocol.py:Lines --workers 2
Try it:  nc 127.0.0.1 3000
"""

import asyncio
from typing import cast

import cluster2


class Lines(asyncio.Protocol):
    """A protocol that collects bytes until a line is complete."""

    def __init__(self) -> None:
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport. Send no greeting: the connection may come from another worker, which has sent one."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer the complete lines."""
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            self.transport.write(line.upper() + b"\n")

    @cluster2.tcp.boundary
    def between_lines(self) -> bool:
        """Return whether no part of a line has arrived. cluster2 asks this now and then."""
        return not self.buffer
