"""A raw TCP server: a coroutine with a stream reader and writer, called once for each connection.

Run it:  cluster2 run examples/echo.py:handler --workers 2
Try it:  nc 127.0.0.1 3000
"""

import asyncio


async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello\r\n")
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
