"""A raw TCP server: an asyncio.Protocol, made once for each connection.

Run it:  cluster2 run examples/echo_protocol.py:Echo --workers 2
Try it:  nc 127.0.0.1 3000
"""

import asyncio
from typing import cast


class Echo(asyncio.Protocol):
    """A protocol that greets, then sends back what it receives."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the greeting."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(b"hello\r\n")

    def data_received(self, data: bytes) -> None:
        """Send the data back."""
        self.transport.write(data)
