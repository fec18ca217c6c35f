"""Handing connections over, on the real kernel: whole or not at all, and what happens when something is full, foreign or gone."""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster2.linux.handover import (
    CONNECTIONS_PER_MESSAGE,
    RECORD_FORMAT,
    HandedConnection,
    QueueReader,
    QueueWriter,
    queue,
)
from tests.linux.leaks import descriptors

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

SRC = Path(__file__).parents[2] / "src"
SCM_MAX = 253
"""Descriptors that the kernel lets travel in one message."""


@pytest.fixture
def leaving() -> Iterator[ExitStack]:
    """Close at the end of the test all that it opens."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def ways(leaving: ExitStack) -> tuple[socket.socket, QueueWriter, QueueReader]:
    """Return the raw entry of a queue, and both ends as they are used."""
    into, out = queue()
    leaving.callback(into.close)
    leaving.callback(out.close)
    return into, QueueWriter(into), QueueReader(out)


def connection(leaving: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Client and server end of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = leaving.enter_context(socket.create_connection(listener.getsockname()))
        server, _ = listener.accept()
    client.settimeout(10)
    return client, leaving.enter_context(server)


def inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


def close(parcels: list[HandedConnection]) -> list[HandedConnection]:
    for parcel in parcels:
        os.close(parcel.descriptor)
    return parcels


def test_one_travels_whole(ways: tuple[socket.socket, QueueWriter, QueueReader], leaving: ExitStack) -> None:
    """A connection arrives with its app, family and age. Both its ends work on; the sender's copy may be closed at once."""
    _, outlet, inlet = ways
    client, server = connection(leaving)
    client.sendall(b"before ")
    assert outlet.send(server.fileno(), 3, socket.AF_INET, 1.5)
    server.close()
    client.sendall(b"after")
    parcel = inlet.take()
    assert parcel is not None
    assert parcel[1:] == (3, socket.AF_INET, 1.5)
    assert not os.get_inheritable(parcel.descriptor)
    with socket.socket(fileno=parcel.descriptor) as arrived:
        assert arrived.recv(12, socket.MSG_WAITALL) == b"before after"
        arrived.sendall(b"answer")
        assert client.recv(100) == b"answer"
    assert inlet.take() is None
    assert not inlet.ended


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 255), st.integers(0, 255), st.floats(0, 1e6, width=32)),
        min_size=0,
        max_size=3 * CONNECTIONS_PER_MESSAGE,
    )
)
def test_many_travel_in_order(about: list[tuple[int, int, float]]) -> None:
    """So many as one likes arrive in order, each with its own record, at most 128 a message."""
    into, out = queue()
    pipes = [os.pipe() for _ in range(3)]
    ends = [end for pipe in pipes for end in pipe]
    try:
        parcels = [HandedConnection(ends[index % len(ends)], *each) for index, each in enumerate(about)]
        assert QueueWriter(into).send_all(parcels) == len(parcels)
        arrived: list[HandedConnection] = []
        inlet = QueueReader(out)
        while some := inlet.take_all():
            assert len(some) <= CONNECTIONS_PER_MESSAGE
            arrived += some
        assert [each[1:] for each in arrived] == [each[1:] for each in parcels]
        assert [inode(each.descriptor) for each in arrived] == [inode(each.descriptor) for each in parcels]
        close(arrived)
    finally:
        for end in ends:
            os.close(end)
        into.close()
        out.close()


def test_a_full_queue(ways: tuple[socket.socket, QueueWriter, QueueReader], leaving: ExitStack) -> None:
    """A full queue says so and takes nothing; all that it took comes out in order, and then it takes again."""
    _, outlet, inlet = ways
    _, server = connection(leaving)
    sent = 0
    while outlet.send(server.fileno(), 0, socket.AF_INET, float(sent)):
        sent += 1
    assert sent > 100
    assert outlet.send_all([HandedConnection(server.fileno(), 0, socket.AF_INET, 0.0)]) == 0
    assert [int(each.idle_s) for each in close(list(iter(inlet.take, None)))] == list(range(sent))
    assert outlet.send(server.fileno(), 0, socket.AF_INET, 0.0)
    close([parcel for parcel in [inlet.take()] if parcel])


def test_more_than_fit(ways: tuple[socket.socket, QueueWriter, QueueReader], leaving: ExitStack) -> None:
    """If not all fit, the first ones go, in whole messages; the sender learns how many, and keeps the others."""
    _, outlet, inlet = ways
    _, server = connection(leaving)
    parcels = [HandedConnection(server.fileno(), 0, socket.AF_INET, float(age)) for age in range(200_000)]
    sent = outlet.send_all(parcels)
    assert 0 < sent < len(parcels)
    assert sent % CONNECTIONS_PER_MESSAGE == 0
    received = 0
    while some := close(inlet.take_all()):
        assert [int(each.idle_s) for each in some] == list(range(received, received + len(some)))
        received += len(some)
    assert received == sent


def test_a_descriptor_that_is_closed(ways: tuple[socket.socket, QueueWriter, QueueReader]) -> None:
    """A descriptor that isn't open can't be sent, and nothing arrives."""
    _, outlet, inlet = ways
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    assert not outlet.send(reader, 0, socket.AF_INET, 0.0)
    assert inlet.take() is None


def test_nobody_reads_any_more(leaving: ExitStack) -> None:
    """Without a receiver nothing can be sent; the connection stays the sender's, and no signal comes."""
    into, out = queue()
    leaving.callback(into.close)
    out.close()
    client, server = connection(leaving)
    assert not QueueWriter(into).send(server.fileno(), 0, socket.AF_INET, 0.0)
    server.sendall(b"still ours")
    assert client.recv(100) == b"still ours"


def test_nobody_sends_any_more(ways: tuple[socket.socket, QueueWriter, QueueReader], leaving: ExitStack) -> None:
    """When all senders have closed, what waits is delivered first, and then the end is seen."""
    _, outlet, inlet = ways
    _, server = connection(leaving)
    assert outlet.send(server.fileno(), 0, socket.AF_INET, 0.0)
    outlet.close()
    assert len(close(inlet.take_all())) == 1
    assert not inlet.ended
    assert inlet.take_all() == []
    assert inlet.ended
    inlet.close()


def test_a_connection_in_the_queue_outlives_its_sender(leaving: ExitStack) -> None:
    """A process that sends a connection and is killed takes nothing along: the next reader has it."""
    into, out = queue()
    leaving.callback(into.close)
    leaving.callback(out.close)
    client, server = connection(leaving)
    program = f"""
        import os, signal, socket, sys
        sys.path.insert(0, {str(SRC)!r})
        from cluster2.linux.handover import QueueWriter
        assert QueueWriter(socket.socket(fileno={into.fileno()})).send({server.fileno()}, 1, 2, 3.0)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    fds = (into.fileno(), server.fileno())
    argv = [sys.executable, "-c", textwrap.dedent(program)]
    assert subprocess.run(argv, pass_fds=fds, check=False, timeout=30).returncode == -9
    server.close()
    parcel = QueueReader(out).take()
    assert parcel is not None
    with socket.socket(fileno=parcel.descriptor) as arrived:
        arrived.sendall(b"alive")
        assert client.recv(100) == b"alive"


# Messages that no process of a cluster sends


def raw(into: socket.socket, data: bytes, fds: list[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    into.sendmsg([data], rights)


WHOLE = RECORD_FORMAT.pack(0, socket.AF_INET, 0.0)
GARBAGE: dict[str, tuple[bytes, int]] = {
    "nothing at all": (b"", 0),
    "too short": (WHOLE[:-1], 1),
    "one byte": (b"x", 1),
    "one byte more": (WHOLE + b"x", 1),
    "no descriptor": (WHOLE, 0),
    "no record": (b"", 1),
    "two descriptors": (WHOLE, 2),
    "three descriptors": (WHOLE, 3),
    "as many as the kernel lets pass": (WHOLE, SCM_MAX),
    "two records and a descriptor": (2 * WHOLE, 1),
    "more records than there may be": ((CONNECTIONS_PER_MESSAGE + 1) * WHOLE, CONNECTIONS_PER_MESSAGE + 1),
    "a whole book": (b"x" * 100_000, 5),
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("many", [False, True], ids=["take", "take_all"])
def test_garbage(
    ways: tuple[socket.socket, QueueWriter, QueueReader], leaving: ExitStack, name: str, many: bool
) -> None:
    """A message that isn't a whole record with its descriptor is dropped, strays are closed, and the next one arrives."""
    into, outlet, inlet = ways
    _, server = connection(leaving)
    before = descriptors()
    data, count = GARBAGE[name]
    raw(into, data, [server.fileno()] * count)
    assert (inlet.take_all() if many else inlet.take() or []) == []
    assert descriptors() == before
    assert (inlet.truncated, inlet.ended) == (0, False)
    assert outlet.send(server.fileno(), 7, socket.AF_INET, 0.0)
    found = inlet.take_all() if many else [parcel for parcel in [inlet.take()] if parcel]
    assert [each.app_index for each in close(found)] == [7]


def test_several_in_a_queue_of_single_ones(
    ways: tuple[socket.socket, QueueWriter, QueueReader], leaving: ExitStack
) -> None:
    """A message of several, where each message is to carry one, is dropped with all its descriptors."""
    _, outlet, inlet = ways
    _, server = connection(leaving)
    before = descriptors()
    assert outlet.send_all([HandedConnection(server.fileno(), 0, socket.AF_INET, 0.0)] * 3) == 3
    assert inlet.take() is None
    assert descriptors() == before


@settings(max_examples=200)
@given(st.binary(max_size=3000), st.integers(0, SCM_MAX), st.booleans())
def test_any_bytes(data: bytes, count: int, many: bool) -> None:
    """With any bytes and descriptors none is leaked, and as many are returned as were sent."""
    into, out = queue()
    reader, writer = os.pipe()
    before = descriptors()
    try:
        raw(into, data, [reader] * count)
        inlet = QueueReader(out)
        found = inlet.take_all() if many else [parcel for parcel in [inlet.take()] if parcel]
        fits = len(data) == RECORD_FORMAT.size * count and 0 < count <= (CONNECTIONS_PER_MESSAGE if many else 1)
        assert len(found) == (count if fits else 0)
        close(found)
        assert not inlet.ended
        assert inlet.truncated >= 0
        assert descriptors() == before
    finally:
        for end in (reader, writer):
            os.close(end)
        into.close()
        out.close()


def things(leaving: ExitStack) -> dict[str, int]:
    """Descriptors that are no connection."""
    reader, writer = os.pipe()
    leaving.callback(os.close, reader)
    leaving.callback(os.close, writer)
    return {
        "file": leaving.enter_context(tempfile.TemporaryFile()).fileno(),
        "pipe": reader,
        "listener": leaving.enter_context(socket.create_server(("127.0.0.1", 0))).fileno(),
        "epoll": leaving.enter_context(select.epoll()).fileno(),
    }


@pytest.mark.parametrize("name", ["file", "pipe", "listener", "epoll"])
def test_what_is_no_connection_arrives(
    ways: tuple[socket.socket, QueueWriter, QueueReader], leaving: ExitStack, name: str
) -> None:
    """The queue doesn't look into descriptors: what is no connection arrives, and is the receiver's to close."""
    _, outlet, inlet = ways
    thing = things(leaving)[name]
    assert outlet.send(thing, 0, socket.AF_INET, 0.0)
    parcel = inlet.take()
    assert parcel is not None
    assert inode(parcel.descriptor) == inode(thing)
    close([parcel])


def test_records_have_eight_bytes() -> None:
    """A record is as long as both sides of a hand-over between versions believe."""
    assert (RECORD_FORMAT.size, struct.calcsize(RECORD_FORMAT.format)) == (8, 8)
