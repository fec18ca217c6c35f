"""The master's end of the channel against peers that send noise, flood it, or don't read: it lives, and others are served."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cluster2 import events
from cluster2.core.lifecycle import WorkerState
from cluster2.processes.master.messaging.hub import MessageHub
from cluster2.processes.master.state.handle import WorkerHandle
from cluster2.processes.master.state.inbox import ChannelClosed, InboxMessage, ProtocolViolation, WorkerMessage
from cluster2.processes.master.workers import worker_channel
from cluster2.processes.master.workers.worker_channel import WorkerChannel
from cluster2.protocol import codec, messages
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio


class Peer:
    """A worker's end, in the hands of a test, and what the master's end made of it."""

    def __init__(self, site: Site, sock: socket.socket, slot: int) -> None:
        self.sock = sock
        self.facts: list[InboxMessage] = []
        self.handle = WorkerHandle(incarnation=slot, slot=slot, generation=1, row=0, born=0.0, state=WorkerState.READY)
        self.link = WorkerChannel(self.handle, self.facts.append, site.board, patience=0.2)
        self._unpacker = codec.Unpacker()
        self.heard: list[Any] = []

    async def say(self, *messages: messages.ChannelMessage) -> None:
        await self.send(b"".join(map(codec.pack, messages)))

    async def send(self, data: bytes) -> None:
        await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self.sock, data), PATIENCE)

    async def hear(self, count: int = 1) -> list[Any]:
        """Return the next messages of the master."""
        while len(self.heard) < count:
            data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.sock, 1 << 20), PATIENCE)
            assert data, "the master has closed the channel"
            self.heard += self._unpacker.unpack(data)
        taken, self.heard = self.heard[:count], self.heard[count:]
        return taken

    def garbage(self) -> str | None:
        """Return the reason for which the worker is to be replaced."""
        return next((fact.text for fact in self.facts if isinstance(fact, ProtocolViolation)), None)

    async def is_garbage(self) -> str:
        found = await until(self.garbage, lambda: f"garbage; so far {self.facts[:5]}")
        assert found is not None
        await until(lambda: any(isinstance(fact, ChannelClosed) for fact in self.facts), "its channel is closed")
        return found

    async def asks(self, name: str, value: object, number: int = 1) -> None:
        await self.say(messages.Delegate(name, codec.payload(value), number, name))


class Site:
    """A message hub with some links; `echo` has a handler."""

    def __init__(self) -> None:
        self.board = MessageHub()
        self.events: list[events.Event] = []
        self.peers: list[Peer] = []

        async def echo(message: Any) -> Any:
            return message

        self.board.delegates.handle("echo", echo)

    async def join(self) -> Peer:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        peer = Peer(self, theirs, len(self.peers))
        self.peers.append(peer)
        await asyncio.get_running_loop().create_unix_connection(lambda: peer.link, sock=ours)
        await peer.say(messages.Started(1000 + peer.handle.slot, messages.PROTOCOL_VERSION))
        await until(lambda: peer.link in self.board._links, "it has joined")
        return peer


@asynccontextmanager
async def a_site() -> AsyncIterator[Site]:
    site = Site()
    site.board.start(site.events.append)
    try:
        yield site
    finally:
        await site.board.close(0.0)
        for peer in site.peers:
            peer.link.close()
            peer.sock.close()
        await until(lambda: all(peer.link.is_closing() for peer in site.peers), "all are closed")


async def test_noise() -> None:
    """Random bytes, spoilt frames, endless lengths: garbage or waited for, never more, and another worker is served."""
    noise = random.Random(1)
    whole = b"".join(map(codec.pack, [messages.Ready(), messages.Delegate("echo", codec.payload([1]), 1, "echo")] * 3))
    async with a_site() as site:
        sound = await site.join()
        for number in range(150):
            mad = await site.join()
            match number % 4:
                case 0:
                    data = noise.randbytes(noise.randrange(1, 5000))
                case 1:  # one byte is another
                    at = noise.randrange(len(whole))
                    data = whole[:at] + bytes([noise.randrange(256)]) + whole[at + 1 :]
                case 2:  # the end is missing
                    data = whole[: noise.randrange(1, len(whole))]
                case _:  # 4 GiB are announced
                    data = (2**32 - 1 - noise.randrange(1 << 20)).to_bytes(4, "big") + b"x" * 100
            with contextlib.suppress(ConnectionError):
                await mad.send(data)
            await sound.asks("echo", number, number + 1)
            (answer,) = await sound.hear()
            assert (answer.number, codec.value(answer.value)) == (number + 1, number)
            if number % 4 == 3:
                assert "bytes was announced" in await mad.is_garbage()
            assert len(mad.link._unpacker._rest) <= codec.MAX_MESSAGE_BYTES + 4
            mad.sock.close()
        assert sound.garbage() is None


async def test_what_is_unknown_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """An unknown message is reported once and ignored; a stream of them is a fault."""
    unknown = codec.pack(messages.Note("")).replace(b"Note", b"Nota")
    async with a_site() as site:
        peer = await site.join()
        await peer.send(unknown * 3)
        await peer.asks("echo", 1)
        await peer.hear()
        (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "this version doesn't know, which is ignored: 'Nota'" in record.getMessage()
        assert peer.garbage() is None
        await peer.send(unknown * worker_channel.MAX_UNKNOWN_MESSAGES)
        assert "unknown types" in await peer.is_garbage()


@pytest.mark.parametrize("message", [messages.Note("look"), messages.Ready()], ids=["notes", "ready"])
async def test_a_flood_of_what_concerns_supervision(message: messages.ChannelMessage) -> None:
    """The master's queue gets no more of it than a worker can have to say; then the worker is garbage."""
    async with a_site() as site:
        peer = await site.join()
        with contextlib.suppress(ConnectionError):
            await peer.send(codec.pack(message) * 50_000)
        assert "a flood" in await peer.is_garbage()
        assert (
            sum(isinstance(fact, WorkerMessage) for fact in peer.facts) <= worker_channel.MAX_SUPERVISION_MESSAGES + 1
        )


async def test_more_work_than_is_done() -> None:
    """A worker that delegates faster than handlers end isn't read; nothing is lost, and others are served meanwhile."""
    async with a_site() as site:
        gate, done = asyncio.Event(), []

        async def slow(message: Any) -> None:
            await gate.wait()
            done.append(message)

        site.board.delegates.handle("slow", slow)
        eager, quiet = await site.join(), await site.join()
        times = 40_000
        frames = b"".join(codec.pack(messages.Delegate("slow", codec.payload(number))) for number in range(times))
        # `send` isn't used here, since it is bounded: it returns when almost all is done, which takes seconds on a busy machine.
        sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(eager.sock, frames))
        await until(
            lambda: eager.link.fire_and_forget > worker_channel.MAX_OPEN_CALLS, "it has asked for more than it may"
        )
        for number in range(20):
            await quiet.asks("echo", number, number + 1)
            await quiet.hear()
        assert not sending.done()
        assert eager.link.fire_and_forget < times // 2
        gate.set()
        await sending
        await until(lambda: len(done) == times, lambda: f"all is done: {len(done)}")
        assert done == list(range(times))


async def test_heavy_work() -> None:
    """Work is weighed as well as counted: a worker that delegates megabytes is read more slowly, and nothing is lost."""
    async with a_site() as site:
        gate, done = asyncio.Event(), []

        async def slow(message: Any) -> None:
            await gate.wait()
            done.append(len(message))

        site.board.delegates.handle("slow", slow, single=False)
        peer = await site.join()
        frame = codec.pack(messages.Delegate("slow", codec.payload("x" * 1_000_000)))
        sending = asyncio.ensure_future(peer.send(frame * 100))
        await until(lambda: peer.link.pending_bytes > worker_channel.MAX_OPEN_CALL_BYTES, "it is heavy")
        for _ in range(100):
            await asyncio.sleep(0)
        assert peer.link.pending_bytes < worker_channel.MAX_OPEN_CALL_BYTES + 3 * codec.MAX_MESSAGE_BYTES
        gate.set()
        await sending
        await until(lambda: done == [1_000_000] * 100, "all is done")
        assert peer.link.pending_bytes == peer.link.fire_and_forget == 0


async def test_what_can_not_be_understood_is_not_passed_on() -> None:
    """An event whose data can't be decoded harms its sender only: no other worker gets it."""
    async with a_site() as site:
        mad, sound = await site.join(), await site.join()
        bad = codec.pack(messages.Emit("news", codec.payload("abc"), None, True)).replace(b"abc", b"\xff\xfe\xfd")
        await mad.send(bad)
        await mad.is_garbage()
        await sound.asks("echo", 1)
        assert isinstance((await sound.hear())[0], messages.CallResult)


async def test_one_that_does_not_read() -> None:
    """Events for it are dropped and counted, the master's buffer is bounded, others get them all; in the end it is garbage."""
    async with a_site() as site:
        deaf, sound = await site.join(), await site.join()
        data = "x" * 100_000
        for _ in range(200):
            site.board.emit("news", data)
            await sound.hear()
        assert deaf.link.dropped > 100
        assert deaf.link._waiting() < 2 * worker_channel.OUTBOX_FULL_BYTES
        assert sound.link.dropped == 0
        assert "hasn't read" in await deaf.is_garbage()


async def test_answers_to_one_that_does_not_read() -> None:
    """Answers wait for it up to a bound, and beyond that are dropped as well."""
    async with a_site() as site:
        deaf = await site.join()
        deaf.link._patience = PATIENCE
        site.board.delegates.handle("long", lambda message: "x" * 1_000_000, single=False)
        for number in range(40):
            await deaf.asks("long", number, number + 1)
        await until(lambda: site.board.delegates.handled == 40 and not site.board.delegates.unfinished(), "all is done")
        assert deaf.link.dropped > 10
        assert deaf.link._waiting() < worker_channel.MAX_OUTBOX_BYTES + 3 * codec.MAX_MESSAGE_BYTES


async def test_the_last_words_of_a_worker() -> None:
    """The messages that a worker has sent before its end are read after it."""
    async with a_site() as site:
        done = []
        site.board.delegates.handle("audit", done.append)
        peer = await site.join()
        await peer.say(*[messages.Delegate("audit", codec.payload(number)) for number in range(2000)])
        peer.sock.close()
        peer.link.finish()
        await until(lambda: sorted(done) == list(range(2000)), lambda: f"all is done: {len(done)}")


async def test_an_event_of_the_masters_own() -> None:
    """A worker that says what only the master may say is garbage."""
    async with a_site() as site:
        peer = await site.join()
        await peer.say(messages.Emit("died", codec.payload(None)))
        assert "which is the master's" in await peer.is_garbage()
        assert site.events == []


async def test_events_that_nobody_can_keep_up_with() -> None:
    """While too many async handlers are under way, no more events are taken from the worker."""
    async with a_site() as site:
        gate = asyncio.Event()

        async def slow(event: Any) -> None:
            await gate.wait()

        site.board.emitter.on("news", slow)
        site.board._on_event = site.board.emitter.emit
        peer = await site.join()
        frames = codec.pack(messages.Emit("news", codec.payload("x" * 100))) * 30_000
        sending = asyncio.ensure_future(peer.send(frames))
        await until(site.board.emitter.crowded, "it is crowded")
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(site.board.emitter._running) < 20_000
        gate.set()
        await sending
        await until(lambda: not site.board.emitter._running, "all have ended")
