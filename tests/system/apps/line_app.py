"""Line servers for the tests of moving TCP connections: each answers a line with its worker's pid and the line itself.

A line `sleep MS …` holds the loop for so long; `wait MS …` waits without holding it; `held …` until the test lets it go on.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import cast

import cluster2


async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads from streams."""
    while await cluster2.tcp.boundary(reader, writer):
        line = await reader.readline()
        words = line.split()
        if words[0] == b"wait":
            await asyncio.sleep(int(words[1]) / 1000)
        while words[0] == b"held" and not Path("release").exists():
            await asyncio.sleep(0.01)
        writer.write(answer(line))
        await writer.drain()


def answer(line: bytes) -> bytes:
    words = line.split()
    if words and words[0] == b"sleep":
        time.sleep(int(words[1]) / 1000)
    return b"%d %s" % (os.getpid(), line)


class Lines(asyncio.Protocol):
    """The same as a protocol."""

    def __init__(self) -> None:
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            self.transport.write(answer(line + b"\n"))

    @cluster2.tcp.boundary
    def between(self) -> bool:
        return not self.buffer
