"""A client of HTTP/2 by the frame: it keeps to the protocol where a library doesn't, and breaks it where a test wants that.

After a GOAWAY it goes on with its open streams (Python's h2 can't), and it knows which of its requests were refused.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from hpack import Decoder, Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
PATIENCE = 30.0


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


@dataclass
class Answer:
    """What came of a stream. `reset` is the code of a RST_STREAM."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> str:
        return self.headers.get(":status", "")


class Http2Client:
    """One connection.

    Attributes:
        grants: it opens windows again for what it has read; else they stay as they are.
        answers_pings: it does.
        last: the number of the last stream that the server will serve, once it has said so; `code`: why.
        closed: the server has closed the connection.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, window: int = 65535) -> None:
        self.reader, self.writer = reader, writer
        self.grants = self.answers_pings = True
        self.last: int | None = None
        self.code: int | None = None
        self.closed = False
        self.streams: dict[int, Answer] = {}
        self._next = 1
        self._encoder, self._decoder = Encoder(), Decoder()
        writer.write(PREFACE + frame(SETTINGS, payload=b"\x00\x04" + window.to_bytes(4, "big")))

    def ask(
        self, path: str = "/", *, method: str = "GET", more: bool = False, headers: Iterable[tuple[str, str]] = ()
    ) -> int:
        """Send a head; the number of its stream. `more`: a body is to follow."""
        number, self._next = self._next, self._next + 2
        self.streams[number] = Answer()
        head = [(":method", method), (":scheme", "http"), (":authority", "test"), (":path", path), *headers]
        flags = END_HEADERS | (0 if more else END_STREAM)
        self.writer.write(frame(HEADERS, flags, number, self._encoder.encode(head)))
        return number

    def send(self, number: int, data: bytes, *, end: bool = False) -> None:
        self.writer.write(frame(DATA, END_STREAM if end else 0, number, data))

    def reset(self, number: int) -> None:
        """Give a stream up (CANCEL)."""
        self.writer.write(frame(RST_STREAM, stream=number, payload=(8).to_bytes(4, "big")))

    async def read(self) -> bool:
        """Take one frame in; false: there is none any more."""
        try:
            head = await asyncio.wait_for(self.reader.readexactly(9), PATIENCE)
            payload = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed = True
            return False
        kind, flags, number = head[3], head[4], int.from_bytes(head[5:], "big")
        answer = self.streams.get(number, Answer())
        if kind == HEADERS:
            answer.headers |= {str(name): str(value) for name, value in self._decoder.decode(payload)}
        elif kind == DATA:
            answer.body += payload
            if self.grants and payload:
                self.grant(len(payload), number)
        elif kind == RST_STREAM:
            answer.reset = int.from_bytes(payload, "big")
        elif kind == GOAWAY:
            self.last, self.code = int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:8], "big")
        elif kind == PING and not flags & ACK and self.answers_pings:
            self.writer.write(frame(PING, ACK, payload=payload))
        elif kind == SETTINGS and not flags & ACK:
            self.writer.write(frame(SETTINGS, ACK))
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            answer.ended = True
        return True

    def grant(self, size: int, number: int) -> None:
        """Open the window of the connection and of a stream by so many bytes."""
        for each in (0, number):
            self.writer.write(frame(WINDOW_UPDATE, stream=each, payload=size.to_bytes(4, "big")))

    def settled(self, number: int) -> bool:
        """Whether a stream has ended, or won't be served."""
        answer = self.streams[number]
        return answer.ended or answer.reset is not None or self.refused(number) or self.closed

    def refused(self, number: int) -> bool:
        """Whether the server has said that it did nothing of it."""
        return self.streams[number].reset == 7 or (self.last is not None and number > self.last)

    async def answer(self, number: int) -> Answer:
        """What comes of a stream."""
        while not self.settled(number):
            await self.read()
        return self.streams[number]

    async def get(self, path: str = "/") -> Answer:
        return await self.answer(self.ask(path))

    async def end(self) -> None:
        """Read until the server has closed."""
        while await self.read():
            pass


@asynccontextmanager
async def opened(
    address: tuple[str, int], tls: ssl.SSLContext | None = None, window: int = 65535
) -> AsyncIterator[Http2Client]:
    reader, writer = await asyncio.open_connection(
        *address, ssl=tls, server_hostname=None if tls is None else "localhost"
    )
    try:
        yield Http2Client(reader, writer, window)
    finally:
        writer.transport.abort()
