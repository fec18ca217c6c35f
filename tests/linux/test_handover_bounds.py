"""Handing connections over when descriptors run out: at the receiver, and on the way."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from cluster2.linux.handover import HandedConnection, QueueReader, QueueWriter, queue
from tests.linux.test_handover import SRC, close, connection

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


@pytest.fixture
def leaving() -> Iterator[ExitStack]:
    """Close at the end of the test all that it opens."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def ways(leaving: ExitStack) -> tuple[QueueWriter, QueueReader]:
    """Both ends of a queue."""
    into, out = queue()
    leaving.callback(into.close)
    leaving.callback(out.close)
    return QueueWriter(into), QueueReader(out)


@pytest.fixture
def few_files() -> Iterator[Callable[[int], None]]:
    """Leave this process so many further descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit(room: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1 + room, hard))

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def fill() -> list[int]:
    """Open descriptors until no further one is possible."""
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return taken


@pytest.mark.parametrize(("room", "sent"), [(0, 1), (0, 100), (3, 10), (60, 128)])
def test_a_receiver_without_room(
    ways: tuple[QueueWriter, QueueReader],
    leaving: ExitStack,
    few_files: Callable[[int], None],
    room: int,
    sent: int,
) -> None:
    """EMFILE: as many arrive as there are free descriptors, the first ones, with their records; the others are counted."""
    outlet, inlet = ways
    client, server = connection(leaving)
    assert (
        outlet.send_all([HandedConnection(server.fileno(), 0, socket.AF_INET, float(age)) for age in range(sent)])
        == sent
    )
    server.close()
    few_files(room + 8)
    taken = fill()
    for _ in range(room):
        os.close(taken.pop())
    arrived = inlet.take_all()
    for each in taken:
        os.close(each)
    assert [int(each.idle_s) for each in arrived] == list(range(room))
    assert inlet.truncated == sent - room
    close(arrived)
    assert client.recv(1) == b"", "the kernel has closed what didn't fit"
    assert not inlet.ended


def test_one_without_room(
    ways: tuple[QueueWriter, QueueReader], leaving: ExitStack, few_files: Callable[[int], None]
) -> None:
    """In a queue of single ones nothing arrives on EMFILE, one is counted, and the next one is received."""
    outlet, inlet = ways
    _, server = connection(leaving)
    for _ in range(2):
        assert outlet.send(server.fileno(), 0, socket.AF_INET, 0.0)
    few_files(8)
    taken = fill()
    assert inlet.take() is None
    for each in taken:
        os.close(each)
    assert inlet.truncated == 1
    parcel = inlet.take()
    assert parcel is not None
    close([parcel])


FLIGHT = """
    import ctypes, os, resource, socket, sys
    sys.path.insert(0, SRC)
    from cluster2.linux.handover import QueueReader, QueueWriter, HandedConnection, queue
    os.setresgid(65533, 65533, 65533)
    os.setresuid(65533, 65533, 65533)   # without CAP_SYS_RESOURCE and CAP_SYS_ADMIN the bound holds
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    into, out = queue()
    outlet, inlet = QueueWriter(into), QueueReader(out)
    reader, writer = os.pipe()
    sent = 0
    while outlet.send(reader, 0, 2, float(sent)):
        sent += 1
        assert sent < 1000
    try:
        into.sendmsg([b"x" * 8], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, reader.to_bytes(4, "little"))], socket.MSG_DONTWAIT)
    except OSError as error:
        print(error.errno, sent)
    assert outlet.send_all([HandedConnection(reader, 0, 2, 0.0)]) == 0
    for age in range(sent):
        parcel = inlet.take()
        assert parcel.idle_s == age
        os.close(parcel.descriptor)
    assert inlet.take() is None
    assert outlet.send(reader, 0, 2, 0.0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a user of its own: what others of this one send would count")
def test_too_many_in_flight() -> None:
    """ETOOMANYREFS: with as many in flight as one process may open nothing more is taken, and nothing is lost."""
    program = textwrap.dedent(FLIGHT).replace("SRC", repr(str(SRC)))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    number, sent = map(int, done.stdout.split())
    assert number == 109  # ETOOMANYREFS
    assert 30 <= sent <= 50
