"""A closed loop over websockets: each client sends a small text, waits for its echo, and sends the next.

A bare protocol makes the frame once and compares bytes. The client must cost little, since it shares the cores with the
server.
"""

from __future__ import annotations

import asyncio
import base64
import os
import time
from typing import cast

import uvloop

from bench.client import Target
from bench.wrk import Report

TEXT = b"x" * 32
_MASK = b"\x01\x02\x03\x04"
_SENT = (
    bytes([0x81, 0x80 | len(TEXT)]) + _MASK + bytes(byte ^ _MASK[place % 4] for place, byte in enumerate(TEXT))
)  # RFC 6455, 5.2: a client masks its frames
_ECHO = bytes([0x81, len(TEXT)]) + TEXT


class _Client(asyncio.Protocol):
    def __init__(self, target: Target) -> None:
        self.target = target
        self.echoes = self.errors = 0
        self._opened = False
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's transport is no subclass of it
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET {self.target.path} HTTP/1.1\r\nHost: {self.target.host}:{self.target.port}\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._opened:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self.errors += 1
                self.transport.close()
                return
            self._opened, self._data = True, rest
            self.transport.write(_SENT)
        if len(self._data) >= len(_ECHO):
            if self._data == _ECHO:
                self.echoes += 1
            else:
                self.errors += 1
            self._data = b""
            self.transport.write(_SENT)


def load(target: Target, connections: int, seconds: float) -> Report:
    """Load a server with echoes, each of which counts as a request."""

    async def run() -> Report:
        loop = asyncio.get_running_loop()
        clients = [_Client(target) for _ in range(connections)]
        for client in clients:
            await loop.create_connection(lambda client=client: client, target.host, target.port)  # type: ignore[misc]
        began = time.monotonic()
        before = sum(client.echoes for client in clients)
        await asyncio.sleep(seconds)
        echoes, took = sum(client.echoes for client in clients) - before, time.monotonic() - began
        for client in clients:
            client.transport.abort()
        return Report(echoes, took, sum(client.errors for client in clients))

    return uvloop.run(run())
