"""A seeded driver: clients that send requests in odd pieces, and compare each byte of each answer with what it must be.

Each client has a connection that it keeps for as long as the server does. A request carries a nonce; the answer repeats it
with a hash of the body (`moving_app`), so that an answer that is lost, doubled, mixed up or cut is seen at once. Meanwhile
`Roller` tells workers to leave, at random.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from dataclasses import dataclass, field, fields
from typing import Any

from tests.system.apps.moving_app import expected
from tests.system.counting import read_body, value
from tests.system.harness import Running

PATIENCE = 60.0
"""Seconds after which an answer is missing."""
SLOW = 5.0
"""Seconds after which a request is worth to be told about."""
_numbers = itertools.count()


@dataclass
class Tally:
    """What was seen.

    Attributes:
        wrong: answers that differ from what was expected, and answers that nobody asked for.
        lost: requests (or their beginning) were sent, and the connection ended without an answer.
        refused: connections that couldn't be opened.
        said_close: answers that announced the end of their connection.
        behind: requests in a pipeline behind such an answer, which HTTP leaves unanswered.
        closed: connections that were closed between two requests, without a word.
        by_worker: workers that answered.
        slowest: seconds that a request took at most, all its pieces and pauses included.
        slow: requests that took longer than SLOW.
    """

    requests: int = 0
    answers: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    said_close: int = 0
    behind: int = 0
    closed: int = 0
    by_worker: set[int] = field(default_factory=set)
    moved_from_one_to_another: int = 0
    slowest: float = 0.0
    slow: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shown = {each.name: getattr(self, each.name) for each in fields(self)}
        return ", ".join(
            f"{name} {len(value) if isinstance(value, (list, set)) else value}" for name, value in shown.items()
        )


@dataclass(frozen=True)
class Habits:
    """How the clients behave: times in seconds, shares between 0 and 1.

    Attributes:
        block: for how many milliseconds a handler holds the loop.
        blocking: share of the requests whose handler does.
        pause: between two pieces, at most.
        think: between two requests, at most; one in ten thinks `rest` seconds.
    """

    block: float = 1.0
    blocking: float = 1.0
    pause: float = 0.004
    think: float = 0.01
    rest: float = 0.3


@dataclass(frozen=True)
class Request:
    """What is sent, and what must come back.

    Attributes:
        pieces: bytes to send; None: wait for `100 Continue` first.
        answers: nonce and body of each answer, in order.
    """

    pieces: list[bytes | None]
    answers: list[tuple[str, bytes]]


class Maker:
    """Makes requests of all kinds."""

    def __init__(self, rng: random.Random, habits: Habits) -> None:
        self._rng = rng
        self._habits = habits

    def make(self) -> Request:
        """One request, or several in a pipeline."""
        rng = self._rng
        kind = rng.choices(("get", "post", "chunked", "pipeline", "expect", "crlf", "unread"), (6, 3, 2, 3, 1, 1, 1))[0]
        match kind:
            case "pipeline":
                made = [self._one(rng.choice(("get", "post", "chunked"))) for _ in range(rng.choice((2, 2, 3)))]
                return Request(self._cut(b"".join(raw for raw, _ in made)), [answer for _, answer in made])
            case "expect":
                return self._expecting()
            case "crlf":
                raw, answer = self._one("get")
                return Request(self._cut(b"\r\n" * rng.choice((1, 1, 2)) + raw), [answer])
            case _:
                raw, answer = self._one(kind)
                return Request(self._cut(raw), [answer])

    def _one(self, kind: str) -> tuple[bytes, tuple[str, bytes]]:
        rng = self._rng
        body = b"" if kind == "get" else rng.randbytes(rng.choice((0, 1, 10, 1000, 20_000, 100_000)))
        path, answer = self._path("unread" if kind == "unread" else rng.choice(("echo", "echo", "stream")), body)
        if kind == "get":
            return b"GET %s HTTP/1.1\r\nHost: t\r\n\r\n" % path, answer
        if kind == "chunked":
            head = b"POST %s HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n" % path
            cuts = self._split(body, 3) if body else []
            return head + b"".join(b"%x\r\n%s\r\n" % (len(cut), cut) for cut in cuts) + b"0\r\n\r\n", answer
        return b"POST %s HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n" % (path, len(body)) + body, answer

    def _expecting(self) -> Request:
        body = self._rng.randbytes(self._rng.choice((1, 500, 30_000)))
        path, answer = self._path("echo", body)
        head = b"POST %s HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (path, len(body))
        return Request([*self._cut(head), None, *self._cut(body)], [answer])

    def _path(self, kind: str, body: bytes) -> tuple[bytes, tuple[str, bytes]]:
        rng = self._rng
        nonce = f"{next(_numbers)}-{rng.getrandbits(32):08x}"
        size = rng.choice((1, 1, 1, 5000, 300_000))
        block = self._habits.block if rng.random() < self._habits.blocking else 0
        answer = expected(nonce, b"" if kind == "unread" else body, size)
        return f"/{kind}/{nonce}/{size}/{block}".encode(), (nonce, answer)

    def _cut(self, raw: bytes) -> list[bytes | None]:
        """In one piece, in a few, or with the head byte by byte."""
        way = self._rng.random()
        if way < 0.5:
            return [raw]
        if way < 0.9:
            return [*self._split(raw, self._rng.randint(2, 5))]
        first = self._rng.randint(1, 12)
        return [*(raw[at : at + 1] for at in range(min(first, len(raw)))), raw[first:]]

    def _split(self, raw: bytes, parts: int) -> list[bytes]:
        cuts = sorted(self._rng.randint(0, len(raw)) for _ in range(parts - 1))
        pieces = [raw[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(raw)])]
        return [piece for piece in pieces if piece] or [raw]


class Client:
    """One client: connects, asks, compares, and connects again only if the server has ended the connection."""

    def __init__(self, address: tuple[str, int], rng: random.Random, habits: Habits, tally: Tally) -> None:
        self._address = address
        self._rng = rng
        self._habits = habits
        self._tally = tally
        self._maker = Maker(rng, habits)
        self._last = 0
        self.ended = False

    async def run(self) -> None:
        """Until `ended` is set; the request under way then is finished."""
        while not self.ended:
            try:
                reader, writer = await asyncio.open_connection(*self._address, limit=1 << 20)
            except OSError as error:
                self._tally.refused.append(repr(error))
                await asyncio.sleep(0.05)
                continue
            try:
                await self._ask_on(reader, writer)
            finally:
                writer.transport.abort()

    async def _ask_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not self.ended:
            await self._think()
            if reader.at_eof():
                self._tally.closed += 1
                return
            if reader._buffer:  # type: ignore[attr-defined]
                self._tally.wrong.append(f"nobody asked for {bytes(reader._buffer[:80])!r}")  # type: ignore[attr-defined]
                return
            request = self._maker.make()
            self._tally.requests += len(request.answers)
            began = time.monotonic()
            try:
                goes_on = await asyncio.wait_for(self._exchange(reader, writer, request), PATIENCE)
                took = time.monotonic() - began
                self._tally.slowest = max(self._tally.slowest, took)
                if took > SLOW:
                    pieces = [piece and piece[:60] for piece in request.pieces]
                    self._tally.slow.append(f"{took:.1f} s, by {self._last}: {request.answers[0][0]} {pieces}")
                if not goes_on:
                    return
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                self._tally.lost.append(f"{error!r}: {request.answers[0][0]} {(request.pieces[0] or b'')[:80]!r}")
                return

    async def _think(self) -> None:
        rest = self._rng.random() < 0.1
        await asyncio.sleep(self._rng.random() * (self._habits.rest if rest else self._habits.think))

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Request) -> bool:
        """Send and receive at the same time; whether the connection goes on."""
        continued = asyncio.Event()
        sending = asyncio.ensure_future(self._send(writer, request.pieces, continued))
        try:
            for number, (nonce, body) in enumerate(request.answers, 1):
                head = await self._head(reader, continued)
                if not await self._compare(reader, head, nonce, body):
                    return False
                if b"connection: close" in head:
                    self._tally.said_close += 1
                    self._tally.behind += len(request.answers) - number
                    return False
            await sending
            return True
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, writer: asyncio.StreamWriter, pieces: list[bytes | None], continued: asyncio.Event) -> None:
        for number, piece in enumerate(pieces):
            if piece is None:
                await continued.wait()
                continue
            if number:
                await asyncio.sleep(self._rng.random() * self._habits.pause)
            writer.write(piece)
            await writer.drain()

    async def _head(self, reader: asyncio.StreamReader, continued: asyncio.Event) -> bytes:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if head.startswith(b"http/1.1 100 "):
            continued.set()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
        return head

    async def _compare(self, reader: asyncio.StreamReader, head: bytes, nonce: str, body: bytes) -> bool:
        found = await read_body(reader, head)
        if not head.startswith(b"http/1.1 200 ") or f"x-nonce: {nonce}\r\n".encode() not in head or found != body:
            self._tally.wrong.append(f"{nonce}: {head!r} {len(found)} bytes {found[:120]!r}, not {body[:120]!r}")
            return False
        self._tally.answers += 1
        worker = int(value(head, b"x-worker") or 0)
        self._tally.by_worker.add(worker)
        self._tally.moved_from_one_to_another += self._last not in (0, worker)
        self._last = worker
        return True


class Roller:
    """Tells workers to leave, one at a time, and counts moves. A worker's count is as of the last look at it."""

    def __init__(self, running: Running, rng: random.Random) -> None:
        self._running = running
        self._rng = rng
        self._moved: dict[int, int] = {}
        self.rolled = 0

    @property
    def moves(self) -> int:
        """Connections that went from a worker to the keeper."""
        return sum(self._moved.values())

    async def look(self) -> list[dict[str, Any]]:
        """Workers that serve."""
        status = await asyncio.to_thread(self._running.ask, "status", memory=False)
        for row in status["workers"]:
            self._moved[row["pid"]] = row["moved_out"]
        return [row for row in status["workers"] if row["state"] == "ready"]

    async def roll(self, workers: int) -> None:
        """Tell one to leave, if all serve that should."""
        ready = await self.look()
        if len(ready) == workers:
            os.kill(self._rng.choice(ready)["pid"], signal.SIGTERM)
            self.rolled += 1


async def drive(
    running: Running,
    *,
    seed: int,
    clients: int,
    moves: int,
    seconds: float,
    workers: int,
    habits: Habits,
    roll_every: float,
) -> tuple[Tally, Roller]:
    """Let clients ask until so many connections have moved, or so many seconds have passed."""
    rng = random.Random(seed)
    tally = Tally()
    roller = Roller(running, random.Random(seed + 1))
    address = running.address
    people = [Client(address, random.Random(rng.getrandbits(64)), habits, tally) for _ in range(clients)]
    tasks = [asyncio.ensure_future(each.run()) for each in people]
    loop = asyncio.get_running_loop()
    end, next_roll = loop.time() + seconds, loop.time() + roll_every
    while loop.time() < end and roller.moves < moves and not tally.wrong and not tally.lost:
        await asyncio.sleep(0.2)
        if loop.time() >= next_roll:
            await roller.roll(workers)
            next_roll += roll_every * (0.5 + rng.random())
        else:
            await roller.look()
    for each in people:
        each.ended = True
    await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
    await roller.look()
    return tally, roller
