"""A connection of the engine `http` on a transport in memory: bytes in, bytes out, without a socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

from cluster2.config.settings import Settings
from cluster2.engines.base import AppContext, Interface
from cluster2.engines.http.connection import HttpConnection
from cluster2.engines.http.http_engine import HttpEngine

Message = dict[str, Any]
Receive = Callable[[], Any]
Send = Callable[[Message], Any]
TURNS = 30
"""Turns of the loop after which what hasn't happened never will."""


class MemoryTransport(asyncio.Transport):
    """Keeps what is written. Closing calls back at once, as nothing is ever left to be sent."""

    def __init__(self, extra: Message | None = None) -> None:
        super().__init__({"sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 4711)} | (extra or {}))
        self.output = bytearray()
        self.writes = 0
        self.closed = self.aborted = self.ended = False
        self.reading = True
        self.protocol: asyncio.Protocol | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended, "written after the end"
        if not self.closed:
            self.output += data
            self.writes += 1

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self._lose)

    def abort(self) -> None:
        self.aborted = True
        self.close()

    def _lose(self) -> None:
        assert self.protocol is not None
        self.protocol.connection_lost(None)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self.protocol is not None
        return self.protocol


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def serving(
    app: Any, interface: Interface = Interface.ASGI, wrap: Any = None, **options: Any
) -> AsyncIterator[HttpEngine]:
    """An engine that serves an app, in the layer that `wrap` puts around it. ASGI apps have no lifespan."""
    options = {"lifespan": "off"} | options
    engine = HttpEngine(AppContext(app, interface, Settings(**options), None, wrap or (lambda call, interface: call)))
    await engine.start()
    yield engine
    await engine.abort(1.0)
    await engine.stop()


def connect(engine: HttpEngine, extra: Message | None = None) -> tuple[HttpConnection, MemoryTransport]:
    """A new connection of the engine's."""
    connection, transport = HttpConnection(engine), MemoryTransport(extra)
    transport.protocol = connection
    connection.connection_made(transport)
    return connection, transport


async def exchange(engine: HttpEngine, pieces: Sequence[bytes], *, half_close: bool = False) -> bytes:
    """Send bytes in pieces, each when everything has happened that follows from those before; return what comes back."""
    _, transport = connect(engine)
    await feed(transport, pieces, half_close=half_close)
    return bytes(transport.output)


async def feed(transport: MemoryTransport, pieces: Sequence[bytes], *, half_close: bool = False) -> None:
    """Give the transport's protocol bytes, as long as it reads."""
    assert transport.protocol is not None
    for piece in pieces:
        if transport.closed:
            return
        for _ in range(TURNS):
            if transport.reading:
                break
            await asyncio.sleep(0)
        transport.protocol.data_received(piece)
        await settle()
    if half_close and not transport.closed and not transport.protocol.eof_received():
        transport.close()
    await settle()
