"""The worker's end of its channel to the master."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from .. import wire


class TalkChannel(asyncio.Protocol):
    """Messages to and from the master, on a Unix stream socket.

    The end of the stream means that the master is gone: nobody is orphaned, so the worker drains and leaves.
    """

    def __init__(self, receive: Callable[[wire.Talk], None], orphaned: Callable[[], None]) -> None:
        self._receive = receive
        self._orphaned = orphaned
        self._unpacker = wire.Unpacker()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(
        cls, sock: socket.socket, receive: Callable[[wire.Talk], None], orphaned: Callable[[], None]
    ) -> TalkChannel:
        """The channel over a connected socket, which it takes over."""
        _, channel = await asyncio.get_running_loop().create_unix_connection(lambda: cls(receive, orphaned), sock=sock)
        return channel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class, with the same methods

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        for message in self._unpacker.feed(data):
            self._receive(message)

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the loop."""
        self._transport = None
        self._orphaned()

    def send(self, message: wire.Talk) -> None:
        """Send a message; lost if the master is gone."""
        if self._transport is not None:
            self._transport.write(wire.pack(message))

    async def close(self) -> None:
        """Let what was written reach the kernel, then close."""
        transport, self._transport = self._transport, None
        if transport is not None:
            self._orphaned = lambda: None
            transport.close()
            while transport.get_write_buffer_size():
                await asyncio.sleep(0.001)
