"""A line protocol whose connections outlive workers: `set KEY VALUE`, `get KEY`, `pid`.

Run it:  cluster2 run examples/lines.py:handler --workers 2
Try it:  nc 127.0.0.1 3000, then `cluster2 reload`: the connection stays, another worker answers

Between two lines a connection belongs to no worker. So the app keeps the data of a client where all workers find it: here in
files.
"""

import asyncio
import os
from pathlib import Path

import cluster2

STORE = Path("lines.d")


async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await cluster2.tcp.boundary(reader, writer):
        line = await reader.readline()
        writer.write(answer(line.decode(errors="replace").split()) + b"\n")
        await writer.drain()


def answer(words: list[str]) -> bytes:
    match words:
        case ["set", key, value] if key.isidentifier():
            STORE.mkdir(exist_ok=True)
            (STORE / key).write_text(value)
            return b"ok"
        case ["get", key] if key.isidentifier() and (STORE / key).exists():
            return (STORE / key).read_bytes()
        case ["pid"]:
            return str(os.getpid()).encode()
    return b"?"
