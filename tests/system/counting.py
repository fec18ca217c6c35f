"""A counting client: a load of requests of all kinds that tells apart everything that may go wrong.

Each client has a connection and asks one thing after the other (`rolling_app`). It notices

- *failed*: a request was sent, and no whole, right answer came;
- *refused*: a connection couldn't be opened;
- *said*: an answer announced the end of its connection, though nobody had asked for that;
- *silent*: the server ended a kept-alive connection between two requests, without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
import ssl
import threading
from dataclasses import dataclass, field
from typing import Self

from tests.system.apps.rolling_app import expected

KINDS = ("small", "small", "big", "stream", "slow", "upload")
APART = ("small", "big", "stream", "slow", "upload", "trickle")
"""Each once, for `Matrix`; a trickle is an upload that comes slowly."""
SENT = {"upload": 100_000, "trickle": 4_000}
"""Bytes of what is sent with a request."""
TRICKLE = 0.01
"""Seconds between the four parts of a trickle."""
PATIENCE = 30.0
"""Seconds after which an answer is missing."""
_numbers = itertools.count()


@dataclass(frozen=True)
class Failure:
    """A request without a right answer: which, from which port, and why."""

    number: str
    kind: str
    port: int
    why: str


@dataclass
class Seen:
    """What all clients have seen so far."""

    answered: int = 0
    failed: list[Failure] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    said: int = 0
    silent: int = 0
    opened: int = 0
    workers: set[int] = field(default_factory=set)

    @property
    def closed(self) -> int:
        """Kept-alive connections that the server ended."""
        return self.said + self.silent

    def __str__(self) -> str:
        counts = f"{self.answered} answered by {len(self.workers)} workers over {self.opened} connections"
        ends = f"{self.said} said to be closed, {self.silent} closed silently"
        return f"{counts}, {ends}, {len(self.failed)} failed {self.failed[:4]}, {len(self.refused)} refused"


class _Clients:
    """Clients, from `with` on until its end; a request under way then is finished.

    Args:
        think: each waits for a random time of 0 to so many seconds before each request.
    """

    def __init__(self, address: tuple[str, int], think: float, tls: ssl.SSLContext | None) -> None:
        self._address = address
        self._think = think
        self._tls = tls
        self._ended = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()

    async def _run(self) -> None:
        raise NotImplementedError

    async def _client(self, seen: Seen, kinds: tuple[str, ...], rng: random.Random, *, closing: bool) -> None:
        while not self._ended:
            try:
                reader, writer = await asyncio.open_connection(
                    *self._address, ssl=self._tls, server_hostname="localhost" if self._tls else None
                )
            except OSError as error:
                seen.refused.append(repr(error))
                await asyncio.sleep(0.01)
                continue
            seen.opened += 1
            try:
                await self._ask(seen, kinds, reader, writer, rng, closing)
            finally:
                writer.transport.abort()

    async def _ask(
        self,
        seen: Seen,
        kinds: tuple[str, ...],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        rng: random.Random,
        closing: bool,
    ) -> None:
        port = writer.get_extra_info("sockname")[1]
        while not self._ended:
            await asyncio.sleep(rng.random() * self._think)
            if reader.at_eof():
                seen.silent += 1
                return
            kind, number = rng.choice(kinds), str(next(_numbers))
            try:
                head, right = await asyncio.wait_for(_exchange(reader, writer, kind, number, closing), PATIENCE)
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                seen.failed.append(Failure(number, kind, port, repr(error)))
                return
            if not right:
                seen.failed.append(Failure(number, kind, port, f"wrong answer: {head!r}"))
                return
            seen.answered += 1
            seen.workers.add(int(value(head, b"x-worker") or 0))
            if closing:
                return
            if (value(head, b"connection") or b"").lower() == b"close":
                seen.said += 1
                return


class Mix(_Clients):
    """So many clients, each of which asks for things of all kinds, with one account for all.

    Args:
        closing: how many of them use a connection for each request.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        clients: int = 12,
        closing: int = 4,
        kinds: tuple[str, ...] = KINDS,
        think: float = 0.02,
        tls: ssl.SSLContext | None = None,
        seed: int = 1,
    ) -> None:
        super().__init__(address, think, tls)
        self.seen = Seen()
        self._clients = clients
        self._closing = closing
        self._kinds = kinds
        self._seed = seed

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._clients):
                rng = random.Random(self._seed * 1000 + number)
                group.create_task(self._client(self.seen, self._kinds, rng, closing=number < self._closing))


class Matrix(_Clients):
    """Some clients for each kind of request, with kept-alive connections and with one a request; each of these has an account.

    Attributes:
        cells: by kind, and whether each request has a connection of its own.
        each: clients of a cell.
    """

    def __init__(self, address: tuple[str, int], *, each: int = 2, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(address, 0.05, tls)
        self.each = each
        self.cells = {(kind, closing): Seen() for kind in APART for closing in (False, True)}

    @property
    def workers(self) -> set[int]:
        """All that have answered."""
        return set[int]().union(*(seen.workers for seen in self.cells.values()))

    def __str__(self) -> str:
        return "; ".join(f"{kind}{' closing' * closing}: {seen}" for (kind, closing), seen in self.cells.items())

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number, ((kind, closing), seen) in enumerate(self.cells.items()):
                for client in range(self.each):
                    rng = random.Random(number * 1000 + client)
                    group.create_task(self._client(seen, (kind,), rng, closing=closing))


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str, number: str, closing: bool
) -> tuple[bytes, bool]:
    """The head of the answer, and whether it is right."""
    sent = random.Random(number).randbytes(SENT.get(kind, 0))
    head = f"{'POST' if sent else 'GET'} /{kind}/{number} HTTP/1.1\r\nHost: test\r\n"
    head += f"Content-Length: {len(sent)}\r\n" if sent else ""
    head += "Connection: close\r\n" if closing else ""
    part = len(sent) // 4 if kind == "trickle" else len(sent)
    writer.write(head.encode() + b"\r\n" + sent[:part])
    for at in range(part, len(sent), part or 1):
        await asyncio.sleep(TRICKLE)
        writer.write(sent[at : at + part])
    with contextlib.suppress(ConnectionResetError):  # the answer may be here, and the connection closed behind it
        await writer.drain()
    found = await reader.readuntil(b"\r\n\r\n")
    body = await read_body(reader, found)
    return found, found.startswith(b"HTTP/1.1 200 ") and body == expected(kind, number, sent)


async def read_body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """The body that a head announces."""
    if (length := value(head, b"content-length")) is not None:
        return await reader.readexactly(int(length))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body


def value(head: bytes, name: bytes) -> bytes | None:
    """That of a field, its name in small letters."""
    found = re.search(rb"(?i)\r\n%s: ([^\r]*)" % name, head)
    return found[1] if found else None
