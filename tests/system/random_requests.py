"""Clients that send random requests in random segments, while the cluster hands their connections off at random.

`Requests` makes requests of all kinds (`checksum_app` answers them); a `Client` sends them over its connection, alone or in
pipelines, and compares each byte of each response. At times it ends its side behind a request, breaks off within one, or resets
the connection. `Disturber` recycles workers, reloads and scales meanwhile.

What is sent depends on the seed only. A client keeps the history of its connection, which is told with what has gone wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import deque
from dataclasses import dataclass, field

from tests.system.apps.checksum_app import expected
from tests.system.counting import read_body, value
from tests.system.harness import Running

PATIENCE = 60.0
"""Seconds after which a response is missing."""
MEGABYTES = 3 << 20
"""Bytes of the largest bodies."""
_GONE = (OSError, asyncio.IncompleteReadError)


@dataclass
class Tally:
    """What all clients have seen.

    Attributes:
        wrong: what shouldn't have been, each with the history of its connection.
        ends: how connections have ended, and how often.
        workers: that have answered.
    """

    requests: int = 0
    responses: int = 0
    moved: int = 0
    wrong: list[str] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)
    workers: set[str] = field(default_factory=set)
    kinds: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return (
            f"{self.responses} responses to {self.requests} requests by {len(self.workers)} workers, "
            f"{self.moved} from another than the one before; ends: {self.ends}"
        )


@dataclass(frozen=True)
class Asked:
    """A request, and what must come back.

    Attributes:
        raw: its bytes.
        head: bytes of its head.
        body: of the response.
        waits: the client sends the body when it is told to continue.
        expects: `100 Continue` may come before the response.
        ends: the response ends the connection.
        may_end: it may do so, if it comes without `100 Continue`, or without a length (HTTP/1.0).
    """

    number: str
    kind: str
    method: str
    raw: bytes
    head: int
    body: bytes
    waits: bool = False
    expects: bool = False
    ends: bool = False
    may_end: bool = False


class Requests:
    """Makes random requests."""

    def __init__(self, rng: random.Random, name: int, *, websockets: bool) -> None:
        """Begin with the first.

        Args:
            name: of the client; ids of its requests begin with it.
            websockets: the app's server would take an upgrade to `websocket`.
        """
        self._rng = rng
        self._name = name
        self._count = 0
        self._words = ["h2c", "TLS/1.0", "foo/2", "h2c, foo"] + ([] if websockets else ["websocket"])

    def pipeline(self) -> list[Asked]:
        """One request, or several that are sent at once; only the last may end the connection."""
        rng = self._rng
        count = rng.choices((1, 2, 3, 8, 40), (60, 20, 10, 3, 1))[0]
        return [self._make(last=number == count - 1, small=count > 3) for number in range(count)]

    def _make(self, *, last: bool, small: bool) -> Asked:
        rng = self._rng
        self._count += 1
        number = f"{self._name}-{self._count}"
        method = rng.choices(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"), (10, 10, 3, 1, 3, 1))[0]
        kind = rng.choices(("echo", "stream", "unread", "duplex", "empty"), (6, 4, 1, 2, 1))[0]
        version = "1.0" if rng.random() < 0.1 else "1.1"
        body = self._body(small) if method in ("POST", "PUT", "DELETE") or rng.random() < 0.03 else None
        ends = last and rng.random() < 0.1
        unread = kind == "unread" or (kind == "duplex" and method == "HEAD")  # answered before its body is read
        if unread and body and len(body) > 100_000 and not ends:
            kind = "echo"  # a long body that nobody reads ends its connection, when is a matter of time
        kept = version == "1.1" or not last or rng.random() < 0.6
        unknown = False
        if version == "1.0" and kind in ("stream", "duplex") and method != "HEAD":
            if not last:
                kind = "echo"
            else:
                unknown = True
        lines = [f"Host: {rng.choice(('t', 'example.org:80', '[::1]:8080'))}"]
        ends = ends or not kept
        if version == "1.0":
            lines += [] if ends else ["Connection: keep-alive"]
        elif ends:
            lines.append("Connection: close")
        lines += [f"X-Filler-{each}: {'f' * rng.randint(0, 60)}" for each in range(rng.choice((0, 0, 1, 5, 40)))]
        mark = f"{rng.getrandbits(32):08x}"
        lines.append(f"X-Mark: {mark}")
        if version == "1.1" and not ends and rng.random() < 0.15:
            lines += [
                f"Upgrade: {rng.choice(self._words)}",
                "Connection: Upgrade, HTTP2-Settings",
                "HTTP2-Settings: AAMA",
            ]
        expects = version == "1.1" and last and bool(body) and rng.random() < 0.2
        chunked = version == "1.1" and body is not None and rng.random() < 0.4
        if expects:
            lines.append("Expect: 100-continue")
        if chunked:
            lines.append("Transfer-Encoding: chunked")
        elif body is not None:
            lines.append(f"Content-Length: {len(body)}")
        rng.shuffle(lines)
        sleep = rng.choices((0, rng.randint(1, 30), 300), (80, 19, 1))[0] if not small else 0
        block = rng.choice((0, 0, 0, 1, 2))
        size = rng.choices((1, 5000, 300_000, MEGABYTES), (60, 20, 9, 0 if small else 1))[0]
        target = f"/{kind}/{number}/{size}/{sleep}/{block}"
        if rng.random() < 0.03:
            target = f"http://example.org{target}"
        head = "\r\n" * rng.choices((0, 1, 2), (40, 1, 1))[0] + f"{method} {target} HTTP/{version}\r\n"
        raw = "".join([head, *(f"{line}\r\n" for line in lines), "\r\n"]).encode()
        whole = expected(kind, number, method, mark, body or b"", size)
        asked = raw + (self._chunks(body or b"") if chunked else body or b"")
        waits = expects and rng.random() < 0.7
        return Asked(number, kind, method, asked, len(raw), whole, waits, expects, ends, expects or unknown)

    def _body(self, small: bool) -> bytes:
        rng = self._rng
        sizes, weights = (0, 1, 10, 1000, 20_000, 100_000, 500_000, MEGABYTES), (1, 2, 4, 8, 6, 3, 1, 0.3)
        return rng.randbytes(rng.choices(sizes[:5] if small else sizes, weights[:5] if small else weights)[0])

    def _chunks(self, body: bytes) -> bytes:
        rng = self._rng
        parts = cut(rng, body, rng.choice((1, 2, 3, 50))) if body else []
        extension = rng.choice((b"", b"", b"", b";a=b"))
        trailer = rng.choice((b"", b"", b"", b"X-Trailer: 1\r\n", b"X-Mark: trailer\r\nHost: other\r\n"))
        return b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts) + b"0\r\n%b\r\n" % trailer


def cut(rng: random.Random, data: bytes, parts: int) -> list[bytes]:
    """Cut data into so many parts, none of them empty."""
    cuts = sorted(rng.sample(range(1, len(data)), min(parts - 1, len(data) - 1)))
    return [data[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(data)])]


class Client:
    """One client after the other of its connections: connects, asks, compares. It connects again when one has ended."""

    def __init__(self, address: tuple[str, int], name: int, seed: int, tally: Tally, *, websockets: bool) -> None:
        self._address = address
        self._name = name
        self._rng = random.Random(f"{seed} {name}")
        self._tally = tally
        self._requests = Requests(self._rng, name, websockets=websockets)
        self._history: deque[str] = deque(maxlen=80)
        self._worker = ""
        self.ended = False

    async def run(self) -> None:
        """Until `ended` is set, or something is wrong."""
        while not self.ended:
            self._history.clear()
            self._note("connects")
            try:
                reader, writer = await asyncio.open_connection(*self._address)
            except OSError as error:
                self._wrong(f"the connection was refused: {error!r}")
                return
            self._note(f"from {writer.get_extra_info('sockname')}")
            try:
                end = await self._converse(reader, writer)
            except TimeoutError:
                self._wrong(f"no response within {PATIENCE:g} s")
            except (*_GONE, asyncio.LimitOverrunError, ValueError) as error:
                self._wrong(f"lost: {error!r}")
            else:
                self._tally.ends[end] = self._tally.ends.get(end, 0) + 1
            finally:
                writer.transport.abort()
            if self._tally.wrong:
                return

    def _note(self, what: str) -> None:
        self._history.append(f"{time.time():.3f} {what}")

    def _wrong(self, what: str) -> None:
        self._tally.wrong.append(f"{what}: {self.told()}")

    def told(self) -> str:
        """The history of the connection."""
        return "\n    ".join([f"client {self._name}", *self._history])

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """One pipeline after the other. Returns how the connection has ended."""
        rng = self._rng
        while not self.ended:
            await asyncio.sleep(rng.choices((0, rng.random() * 0.02, rng.random() * 0.4), (6, 6, 1))[0])
            asked = self._requests.pipeline()
            way = rng.choices(("on", "half-close", "breaks off", "resets"), (86, 8, 3, 3))[0]
            sending = asyncio.ensure_future(self._send(writer, asked, way, continued := asyncio.Event()))
            self._tally.requests += len(asked)
            try:
                if end := await asyncio.wait_for(
                    self._receive(reader, writer, asked, way, continued, sending), PATIENCE
                ):
                    return end
                await sending
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        return "finished"

    async def _receive(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        asked: list[Asked],
        way: str,
        continued: asyncio.Event,
        sending: asyncio.Future[int],
    ) -> str:
        """Compare the responses. Returns how they have ended the connection; "": it goes on."""
        if way == "resets":
            for each in asked[: self._rng.randint(0, len(asked) - 1)]:
                await self._response(reader, each, continued)
            await asyncio.sleep(self._rng.random() * 0.01)
            return "reset"
        last = asked[-1]
        if way == "breaks off":
            for each in asked[:-1]:
                await self._response(reader, each, continued)
            await self._rest(reader, last, await sending)
            return "broken off"
        for each in asked:
            head = await self._response(reader, each, continued)
        closes = b"connection: close" in head
        if way == "on" and closes != last.ends and not last.may_end:
            raise ValueError(f"Connection: close was {'' if closes else 'not '}said: {head!r}")
        if not closes and way == "on":
            return ""
        if rest := await reader.read():
            raise ValueError(f"{rest[:200]!r} came behind the last response")
        self._note("the end has come")
        return "half-closed" if way == "half-close" else "by the server"

    async def _rest(self, reader: asyncio.StreamReader, last: Asked, sent: int) -> None:
        """What comes in answer to so many bytes of a request, and the end: a response, or an error; nothing to empty lines."""
        try:
            data = await reader.read()
        except ConnectionResetError:
            if last.kind != "duplex" or b" HTTP/1.0\r\n" not in last.raw:
                raise
            return  # of a body without a length, only a reset tells that it isn't whole
        while data.startswith(b"HTTP/1.1 100 "):
            data = data.partition(b"\r\n\r\n")[2]
        self._note(f"{len(data)} bytes until the end: {data[:60]!r}")
        right = (b"400", b"200", b"204") if last.kind in ("unread", "duplex") else (b"400",)
        if not last.raw[:sent].strip(b"\r\n") or (last.kind == "duplex" and not data):
            right = (b"",)
        if data[9:12] not in right:
            raise ValueError(f"{data[:200]!r} in answer to a part of {last.raw[:60]!r}")

    async def _response(self, reader: asyncio.StreamReader, asked: Asked, continued: asyncio.Event) -> bytes:
        """The next response must be the one to this. Returns its head, in small letters."""
        rng = self._rng
        if rng.random() < 0.03:
            await asyncio.sleep(rng.random() * 0.2)  # a slow reader
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 100 "):
            self._note("is told to continue")
            if not asked.expects:
                raise ValueError(f"100 Continue for {asked.number}")
            continued.set()
            head = await reader.readuntil(b"\r\n\r\n")
        head = head.lower()
        status = b"204" if asked.kind == "empty" else b"200"
        if head[:13] != b"http/1.1 %b " % status or value(head, b"x-id") != asked.number.encode():
            raise ValueError(f"{head!r} isn't the head of the response to {asked.number}")
        if (before := value(head, b"x-before")) != b"none":
            raise ValueError(f"the request has begun in the context of {before!r}")
        bodiless = asked.method == "HEAD" or asked.kind == "empty"
        if bodiless:
            body = asked.body if asked.method != "HEAD" else b""
        elif b"\r\ncontent-length: " in head or b"\r\ntransfer-encoding: chunked" in head:
            body = await read_body(reader, head)
        else:
            body = await reader.read()
        if body != (b"" if bodiless else asked.body):
            raise ValueError(f"{len(body)} bytes {body[-120:]!r} aren't {len(asked.body)} bytes {asked.body[-120:]!r}")
        self._tally.responses += 1
        worker = (value(head, b"x-worker") or b"").decode()
        self._note(f"response to {asked.number} by {worker}: {len(body)} bytes")
        self._tally.moved += self._worker not in ("", worker)
        self._tally.workers.add(worker)
        self._tally.kinds.add(f"{asked.kind} {asked.method}")
        self._worker = worker
        return head

    async def _send(self, writer: asyncio.StreamWriter, asked: list[Asked], way: str, continued: asyncio.Event) -> int:
        """Send requests in segments, all or not. Returns how many bytes of the last one were sent."""
        rng = self._rng
        data = b"".join(each.raw for each in asked)
        last = asked[-1]
        size = len(data)
        if way in ("breaks off", "resets") and len(last.raw) > 1:
            size -= (
                rng.randint(1, len(last.raw) - 1) if rng.random() < 0.5 else min(len(last.raw) - 1, rng.randint(1, 20))
            )
        for each in asked:
            self._note(f"asks {each.raw[:80]!r}, {len(each.raw)} bytes{', and waits' if each.waits else ''}")
        waits = last.waits and way in ("on", "half-close")
        hold = len(data) - len(last.raw) + last.head if waits else size
        self._note(f"{way}; sends {size} of {len(data)} bytes")
        for part in (data[: min(hold, size)], data[hold:size]):
            for number, segment in enumerate(self._segments(part) if part else ()):
                if number:
                    await asyncio.sleep(rng.choices((0, rng.random() * 0.005, rng.random() * 0.1), (5, 4, 0.3))[0])
                with contextlib.suppress(OSError):  # what counts is what comes back
                    writer.write(segment)
                    await writer.drain()
            if waits:
                await continued.wait()
        if way in ("half-close", "breaks off"):
            self._note("ends its side")
            with contextlib.suppress(OSError):
                writer.write_eof()
        return size - (len(data) - len(last.raw))

    def _segments(self, data: bytes) -> list[bytes]:
        """In one, in a few, or with the beginning byte by byte."""
        rng = self._rng
        draw = rng.random()
        if draw < 0.5:
            return [data]
        if draw < 0.9:
            return cut(rng, data, rng.randint(2, 6))
        first = rng.randint(1, 30)
        return [
            segment
            for segment in (*(data[at : at + 1] for at in range(min(first, len(data)))), data[first:])
            if segment
        ]


class Disturber:
    """Tells the cluster at random to do what moves connections."""

    def __init__(self, running: Running, seed: int) -> None:
        self._running = running
        self._rng = random.Random(f"{seed} disturber")
        self.done: dict[str, int] = {}

    async def disturb(self) -> None:
        """Do something, and wait until it is done."""
        verb = self._rng.choices(("recycle", "reload", "scale"), (5, 2, 3))[0]
        if verb == "recycle":
            await self._ask(verb, worker=0)
        elif verb == "reload":
            await self._ask(verb)
        else:
            await self._ask(verb, workers=self._rng.choice((3, 1)))
            await self._ask(verb, workers=2)

    async def _ask(self, verb: str, **params: int) -> None:
        try:
            await asyncio.to_thread(self._running.ask, verb, **params)
        except OSError as error:
            status = await asyncio.to_thread(self._running.status)
            raise AssertionError(f"{verb} {params}: {error!r}; {status}") from error
        self.done[verb] = self.done.get(verb, 0) + 1


async def drive(
    running: Running, *, seed: int, clients: int, seconds: float, websockets: bool
) -> tuple[Tally, Disturber]:
    """Let clients ask for so many seconds, or until something is wrong."""
    tally = Tally()
    disturber = Disturber(running, seed)
    address = running.address
    people = [Client(address, name, seed, tally, websockets=websockets) for name in range(clients)]
    tasks = [asyncio.ensure_future(each.run()) for each in people]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not tally.wrong:
        await asyncio.sleep(0.3)
        try:
            await disturber.disturb()
        except AssertionError as error:
            tally.wrong += [str(error), *(each.told() for each in people)]
    for each in people:
        each.ended = True
    await asyncio.wait_for(asyncio.gather(*tasks), 2 * PATIENCE)
    return tally, disturber
