"""The acceptor on real listening sockets: its modes, the accept queue at the end, descriptors that run out."""

from __future__ import annotations

import asyncio
import errno
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from cluster2.config.settings import Settings
from cluster2.engines.base import AppContext, Interface
from cluster2.engines.tcp.tcp_engine import TcpEngine
from cluster2.linux.handover import QueueReader, QueueWriter, queue
from cluster2.processes.worker.connections.acceptor import MAX_HEAD_WAIT_S, Acceptor, ListeningSource, ReadyQueue
from cluster2.processes.worker.sampling.accept_mode import AcceptMode
from tests.linux.leaks import descriptors_left
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")


async def greet_and_wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    await reader.read()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as found:
        found.setblocking(False)
        yield found


class Taking:
    """An acceptor before a TCP engine."""

    def __init__(self, *listeners: socket.socket, handler: Any = greet) -> None:
        self.engine = TcpEngine(AppContext(handler, Interface.TCP, Settings(), None))
        self.woken = 0
        self.acceptor = Acceptor([ListeningSource(each, self.engine, None) for each in listeners], [], self.wake)

    def wake(self) -> None:
        self.woken += 1

    async def idle(self) -> None:
        await until(lambda: not self.acceptor.joining() and self.engine.idle())


async def greeting(listener: socket.socket) -> bytes:
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE)
    finally:
        writer.close()


@pytest.mark.parametrize("mode", AcceptMode)
async def test_every_mode_takes(listener: socket.socket, mode: AcceptMode) -> None:
    """Take and count all connections in each mode, and report activity."""
    taking = Taking(listener)
    await taking.acceptor.start()
    await taking.acceptor.set_mode(mode)
    assert await asyncio.gather(*(greeting(listener) for _ in range(20))) == [b"hello"] * 20
    assert taking.acceptor.accepted == 20
    assert taking.woken >= 20
    await taking.idle()
    taking.acceptor.stop()


@pytest.mark.parametrize("mode", AcceptMode)
async def test_none_is_overlooked(listener: socket.socket, mode: AcceptMode) -> None:
    """Stop at any turn of the loop: each connection that was taken by then is known to the acceptor or to the engine."""
    for turns in range(12):
        taking = Taking(listener, handler=greet_and_wait)
        await taking.acceptor.start()
        await taking.acceptor.set_mode(mode)
        with socket.create_connection(listener.getsockname()) as client:
            for _ in range(turns):
                await asyncio.sleep(0)
            taking.acceptor.stop()
            assert taking.acceptor.open() or taking.acceptor.accepted == 0 or not taking.engine.idle()
            taking.acceptor.serve_queue(everything=True)
            assert await asyncio.to_thread(client.recv, 10) == b"hello"
        await until(lambda taking=taking: not taking.acceptor.open() and taking.engine.idle())  # type: ignore[misc]


async def test_from_mode_to_mode(listener: socket.socket) -> None:
    """Lose no connection, whichever modes follow each other."""
    taking = Taking(listener)
    await taking.acceptor.start()
    for mode in (
        AcceptMode.ONE_BY_ONE,
        AcceptMode.HANDOFF,
        AcceptMode.BATCH,
        AcceptMode.ONE_BY_ONE,
        AcceptMode.ONE_BY_ONE,
        AcceptMode.BATCH,
        AcceptMode.BATCH,
        AcceptMode.HANDOFF,
    ):
        await taking.acceptor.set_mode(mode)
        assert await greeting(listener) == b"hello"
    assert taking.acceptor.accepted == 8
    taking.acceptor.stop()


async def test_no_descriptor_to_listen_by(listener: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    """Return to mode batch without a descriptor for the server: take connections as soon as there is one."""
    taking = Taking(listener)
    await taking.acceptor.start()
    await taking.acceptor.set_mode(AcceptMode.ONE_BY_ONE)
    with descriptors_left(0):
        changing = asyncio.ensure_future(taking.acceptor.set_mode(AcceptMode.BATCH))
        await until(lambda: "no connection can be accepted" in caplog.text, "it has failed")
    await changing
    assert await greeting(listener) == b"hello"
    await taking.idle()
    taking.acceptor.stop()


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("a fault of ours")])
async def test_a_connection_that_can_not_be_taken(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Take the next connection after a pause, whatever failed when one was taken."""
    taking = Taking(listener)
    await taking.acceptor.start()
    await taking.acceptor.set_mode(AcceptMode.ONE_BY_ONE)
    failed = []

    def fail(*_: object) -> None:
        failed.append(error)
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(taking.engine, "accepted_protocol", fail)
        lost = asyncio.ensure_future(greeting(listener))
        await until(lambda: failed, "it has failed")
    assert await greeting(listener) == b"hello"
    lost.cancel()
    taking.acceptor.stop()


async def test_a_mode_that_comes_too_late(listener: socket.socket) -> None:
    """Take no connection after the stop, even if the stop came in the middle of one and the mode changes just then."""
    taking = Taking(listener, handler=greet_and_wait)
    await taking.acceptor.start()
    await taking.acceptor.set_mode(AcceptMode.HANDOFF)
    with ExitStack() as stack:
        stack.enter_context(socket.create_connection(listener.getsockname()))
        while not taking.acceptor.accepted:
            await asyncio.sleep(0)
        taking.acceptor.stop()  # while that one keeps the next one waiting
        await taking.acceptor.set_mode(AcceptMode.ONE_BY_ONE)
        stack.enter_context(socket.create_connection(listener.getsockname()))
        await asyncio.sleep(3 * MAX_HEAD_WAIT_S)  # it would have taken the next one before
        assert taking.acceptor.accepted == 1
        listener.accept()[0].close()
    await taking.idle()


async def test_lost_on_the_way(listener: socket.socket) -> None:
    """Count the connections that the ready queues lost for want of a descriptor, all queues together."""
    engine = TcpEngine(AppContext(greet, Interface.TCP, Settings(), None))
    with ExitStack() as stack:
        inlets = []
        for lost in (2, 3):
            into, out = queue()
            stack.callback(into.close)
            stack.callback(out.close)
            inlets.append(QueueReader(out))
            inlets[-1].truncated = lost
        acceptor = Acceptor([], [ReadyQueue(inlet, engine) for inlet in inlets], lambda: None)
        assert acceptor.lost == 5


async def test_several_doors() -> None:
    """Serve all listening sockets in turn, in either kind of mode."""
    with ExitStack() as stack:
        doors = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        for door in doors:
            door.setblocking(False)
        taking = Taking(*doors)
        await taking.acceptor.start()
        for mode in (AcceptMode.BATCH, AcceptMode.ONE_BY_ONE):
            await taking.acceptor.set_mode(mode)
            assert await asyncio.gather(*map(greeting, doors * 4)) == [b"hello"] * 12
        taking.acceptor.stop()


@pytest.mark.parametrize("mode", [AcceptMode.BATCH, AcceptMode.ONE_BY_ONE])
async def test_the_queue_at_the_end(listener: socket.socket, mode: AcceptMode) -> None:
    """Take all that waits when no successor will, and nothing that comes later."""
    taking = Taking(listener)
    await taking.acceptor.start()
    await taking.acceptor.set_mode(mode)
    taking.acceptor.stop_listening()
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(50)]
        taking.acceptor.serve_queue()
        assert taking.acceptor.accepted == 50
        late = stack.enter_context(socket.create_connection(listener.getsockname()))
        late.setblocking(False)
        for client in clients:
            client.settimeout(PATIENCE)
            assert await asyncio.to_thread(client.recv, 5) == b"hello"
        await taking.idle()
        with pytest.raises(BlockingIOError):
            late.recv(5)
    taking.acceptor.stop()


async def test_another_worker_takes_what_a_stopped_one_leaves(listener: socket.socket) -> None:
    """Leave the listening socket open after the stop, and the connections that wait there to a sibling."""
    stopped, sibling = Taking(listener), Taking(listener)
    await stopped.acceptor.start()
    stopped.acceptor.stop()
    waiting = asyncio.ensure_future(greeting(listener))
    await sibling.acceptor.start()
    assert await waiting == b"hello"
    assert (stopped.acceptor.accepted, sibling.acceptor.accepted) == (0, 1)
    sibling.acceptor.stop()


OUT_OF_FILES = """
import asyncio, logging, os, resource, socket, time, uvloop
from tests.unit.processes.worker.connections.test_acceptor import Taking, AcceptMode, greeting

taken, paused = [], []

class Handler(logging.Handler):
    def emit(self, record):
        paused.append(record.getMessage())

def take_all():
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass

async def main():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    taking = Taking(listener)
    acceptor = taking.acceptor
    await acceptor.start()
    await acceptor.set_mode(AcceptMode.ONE_BY_ONE)
    assert await greeting(listener) == b"hello"
    clients = [socket.socket() for _ in range(20)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    for client in clients:
        await taking.idle()  # connections that close give back their descriptors
        take_all()
        accepted, tried, began = acceptor.accepted, len(paused), time.monotonic()
        client.settimeout(10)
        client.connect(listener.getsockname())
        while acceptor.accepted == accepted and len(paused) < tried + 3:
            await asyncio.sleep(0.001)
        if acceptor.accepted == accepted:
            break
    else:
        raise AssertionError("there was a descriptor each time")
    print(time.monotonic() - began)
    for each in taken:
        os.close(each)
    assert await asyncio.to_thread(client.recv, 5) == b"hello"
    acceptor.stop()

logging.getLogger("cluster2.worker").addHandler(Handler())
uvloop.run(main())
assert all("no connection can be taken for 0.1 s" in each for each in paused), paused
"""


def test_descriptors_run_out() -> None:
    """Wait a little without a free descriptor instead of spinning, and go on when there is one."""
    ended = subprocess.run([sys.executable, "-c", OUT_OF_FILES], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) > 0.15, "three attempts have two pauses between them"


class Narrow(TcpEngine):
    """An engine whose capacity the test sets."""

    def __init__(self) -> None:
        super().__init__(AppContext(greet, Interface.TCP, Settings(), None))
        self.free = False
        self.denied = 0
        self.freed: Callable[[], None] = lambda: None

    def has_capacity(self) -> bool:
        self.denied += not self.free
        return self.free

    def on_capacity(self, freed: Callable[[], None]) -> None:
        self.freed = freed


async def test_nothing_is_taken_without_room(listener: socket.socket) -> None:
    """Leave a connection to siblings until its engine has capacity, or grants one all the same."""
    engine = Narrow()
    acceptor = Acceptor([ListeningSource(listener, engine, None)], [], lambda: None)
    await acceptor.start()
    await acceptor.set_mode(AcceptMode.ONE_BY_ONE)
    waiting = [asyncio.ensure_future(greeting(listener)) for _ in range(3)]
    await until(lambda: engine.denied)
    denied = engine.denied
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert (acceptor.accepted, engine.denied) == (0, denied), "it looks again only when it is told to"
    engine.freed()
    await until(lambda: acceptor.accepted == 1)
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert acceptor.accepted == 1, "an invitation is for one"
    engine.free = True
    engine.freed()
    assert await asyncio.gather(*waiting) == [b"hello"] * 3
    acceptor.stop()


async def test_engines_without_room_dont_hold_up_others(listener: socket.socket) -> None:
    """Take the connections of one engine while the other has no capacity, and don't spin."""
    narrow, wide = Narrow(), TcpEngine(AppContext(greet, Interface.TCP, Settings(), None))
    with socket.create_server(("127.0.0.1", 0)) as other:
        acceptor = Acceptor(
            [ListeningSource(listener, narrow, None), ListeningSource(other, wide, None)], [], lambda: None
        )
        await acceptor.start()
        await acceptor.set_mode(AcceptMode.ONE_BY_ONE)
        waiting = asyncio.ensure_future(greeting(listener))
        await until(lambda: narrow.denied)
        assert [await greeting(other) for _ in range(5)] == [b"hello"] * 5
        before = narrow.denied
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert narrow.denied <= before + 4
        assert not waiting.done()
        narrow.free = True
        narrow.freed()
        assert await waiting == b"hello"
        await acceptor.set_mode(AcceptMode.BATCH)
        assert await greeting(listener) == await greeting(other) == b"hello"
        acceptor.stop()


@pytest.mark.parametrize("mode", [AcceptMode.ONE_BY_ONE, AcceptMode.HANDOFF])
async def test_no_room(listener: socket.socket, mode: AcceptMode) -> None:
    """Take as many connections as the capacity allows; the others wait until it grows."""
    taking = Taking(listener)
    taking.acceptor.set_capacity(3)
    await taking.acceptor.start(mode)
    greetings = [asyncio.ensure_future(greeting(listener)) for _ in range(8)]
    await until(lambda: taking.acceptor.accepted == 3)
    taking.acceptor.set_capacity(0)
    assert await taking_stands(taking, 3)
    taking.acceptor.set_capacity(2)
    await until(lambda: taking.acceptor.accepted == 5)
    assert await taking_stands(taking, 5)
    taking.acceptor.set_capacity(100)
    assert await asyncio.gather(*greetings) == [b"hello"] * 8
    taking.acceptor.stop()


async def taking_stands(taking: Taking, count: int) -> bool:
    """Return whether nothing more is taken while the loop turns and timers fire."""
    for _ in range(20):
        await asyncio.sleep(MAX_HEAD_WAIT_S)
    return taking.acceptor.accepted == count


async def test_no_room_for_what_returns() -> None:
    """Leave connections in a ready queue while there is no capacity, also in mode batch."""
    entry, exit = queue()
    engine = TcpEngine(AppContext(greet, Interface.TCP, Settings(), None))
    acceptor = Acceptor([], [ReadyQueue(QueueReader(exit), engine)], lambda: None)
    acceptor.set_capacity(0)
    await acceptor.start()
    ours, theirs = socket.socketpair()
    with ours, entry, exit:
        assert QueueWriter(entry).send(theirs.fileno(), 0, socket.AF_UNIX, 0.0)
        theirs.close()
        for _ in range(20):
            await asyncio.sleep(MAX_HEAD_WAIT_S)
        assert (acceptor.returned, acceptor.lost) == (0, 0)
        acceptor.set_capacity(1)
        ours.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(ours, 10) == b"hello"
        acceptor.stop()
