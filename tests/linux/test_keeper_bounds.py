"""The keeper when queues are full, descriptors run out, and foreign things come."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import sys
import tempfile
import textwrap
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster2.linux.handover import RECORD_FORMAT, batch_size
from cluster2.processes.keeper.keeper_loop import RESERVED_DESCRIPTORS, Keeper, reserve
from tests.linux.keepers import InProcess, InThread, Kept, Make, maker
from tests.system.harness import wait_until

ROOM = str(Path(__file__).parents[2] / "src/cluster2/processes/keeper")
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="takes a capability away, which only root has")


keep = pytest.fixture(params=[InThread, InProcess], ids=["thread", "process"], name="keep")(maker())
keep_in_thread = pytest.fixture(params=[InThread], ids=["thread"], name="keep_in_thread")(maker())
keep_in_process = pytest.fixture(params=[InProcess], ids=["process"], name="keep_in_process")(maker())


# Full queues


def test_a_full_ready_queue(keep: Make) -> None:
    """While no worker takes connections, those that wake wait in order; then all are delivered, in that order, each once."""
    kept = keep()
    kept.ready[0][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    clients = [kept.put() for _ in range(60)]
    kept.rests(60)
    for number, client in enumerate(clients):
        client.sendall(b"%d" % number)
    wait_until(lambda: 0 < kept.board.header.resting < 60, "the queue is full")
    seen = [int(kept.take()[1].recv(9)) for _ in clients]
    assert sorted(seen) == list(range(60))
    kept.rests(0)
    late = kept.put()
    late.sendall(b"after")
    assert kept.take()[1].recv(9) == b"after"


def test_the_order_of_waking(keep_in_thread: Make) -> None:
    """Those that can't be handed back are handed back in the order in which they woke."""
    kept = keep_in_thread()
    kept.ready[0][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    keeper: Keeper = kept.keeper  # type: ignore[attr-defined]
    for number in range(40):
        client = kept.put()
        wait_until(lambda: len(keeper._resting), "it rests")
        client.sendall(b"%02d" % number)
        wait_until(lambda: not len(keeper._resting), "it has woken")
    assert [int(kept.take()[1].recv(9)) for _ in range(40)] == list(range(40))


ROOM_FOR_FOUR = next(limit for limit in range(1000) if limit - reserve(limit) == 4)


@pytest.mark.parametrize("limit", [20, 64, 128, 256, 1024, 100_000])
def test_the_room_of_a_low_limit(limit: int) -> None:
    """With few descriptors it keeps some connections all the same, and can always take a message of a worker."""
    assert limit - reserve(limit) >= limit // 2
    assert reserve(limit) > batch_size(limit) >= 1


def test_no_descriptors_left(keep_in_thread: Make) -> None:
    """Before it runs out of descriptors it passes on to workers what it can't keep: in the queue it would not be heard."""
    kept = keep_in_thread(limit=ROOM_FOR_FOUR)
    clients = [kept.put() for _ in range(10)]
    kept.rests(4)
    taken = [kept.take()[1] for _ in range(6)]
    for client in clients:
        client.sendall(b"x")
    for each in taken:
        each.settimeout(10)
        assert each.recv(9) == b"x"
    clients = clients[:4]
    for _ in clients:
        assert kept.take()[1].recv(9) == b"x"
    kept.rests(0)
    assert kept.board.header.keeper_lost == 0


def test_late_ones_take_room_as_well(keep_in_thread: Make) -> None:
    """Connections that it can't hand back count: with a full ready queue it takes one message more than its capacity."""
    kept = keep_in_thread(limit=ROOM_FOR_FOUR)
    kept.ready[0][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    clients = [kept.put() for _ in range(40)]
    for client in clients:
        client.sendall(b"x")
    keeper: Keeper = kept.keeper  # type: ignore[attr-defined]
    wait_until(lambda: len(keeper._late[0]) >= 4 and not len(keeper._resting), "it has no room left")
    assert len(keeper._late[0]) <= 5
    for _ in clients:
        assert kept.take()[1].recv(9) == b"x"
    kept.rests(0)


LAUNCH = f"""
    import ctypes, os, resource, sys
    libc = ctypes.CDLL(None)
    for capability in (21, 24):  # SYS_ADMIN and SYS_RESOURCE, which let a process have more in flight
        assert libc.prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP
    resource.setrlimit(resource.RLIMIT_NOFILE, ({RESERVED_DESCRIPTORS + 40}, {RESERVED_DESCRIPTORS + 40}))
    os.execv(sys.executable, [sys.executable, "-I", "-S", {ROOM!r}, *sys.argv[1:]])
"""


class Bounded(InProcess):
    """A keeper with a capacity of 40 connections, which may have no more than 200 in flight."""

    argv = (sys.executable, "-c", textwrap.dedent(LAUNCH))


@ROOT_ONLY
def test_too_many_in_flight() -> None:
    """ETOOMANYREFS: connections that can't be handed back wait, without a busy loop; then all are delivered."""
    kept = Bounded(1, 60.0)
    kept.start()
    try:
        clients: list[socket.socket] = []
        with contextlib.suppress(AssertionError):
            while len(clients) < RESERVED_DESCRIPTORS + 400:
                clients.append(kept.put())
                clients[-1].sendall(b"x")
                wait_until(lambda: kept.board.header.resting == 0, "it is handed back", timeout=0.3)
        assert len(clients) < RESERVED_DESCRIPTORS + 300, "the bound was met"
        clients += [kept.put() for _ in range(10)]
        for client in clients[-10:]:
            client.sendall(b"x")
        wait_until(lambda: kept.board.header.resting > 10, "they wait")
        used = kept.cpu()
        until = time.monotonic() + 0.5
        wait_until(lambda: time.monotonic() > until, "half a second passes")
        assert kept.cpu() - used < 0.2
        for _ in clients:
            assert kept.take()[1].recv(9) == b"x"
        kept.rests(0)
        assert kept.board.header.keeper_lost == 0
    finally:
        kept.close()


# Foreign things


def raw(kept: Kept, data: bytes, fds: list[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    kept.rest[0].sendmsg([data], rights)


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", 0),
        (b"", 1),
        (b"garbage", 0),
        (b"garbage", 3),
        (RECORD_FORMAT.pack(0, 2, 0.0), 0),
        (RECORD_FORMAT.pack(0, 2, 0.0), 250),
        (RECORD_FORMAT.pack(200, 2, 0.0), 1),
        (RECORD_FORMAT.pack(0, 2, 0.0) * 2, 1),
        (b"x" * 50_000, 2),
    ],
)
def test_garbage_in_the_queue(keep: Make, data: bytes, count: int) -> None:
    """A record without its descriptor, or of an app that doesn't exist, is closed; the keeper goes on."""
    kept = keep()
    client, server = kept.connect()
    raw(kept, data, [server.fileno()] * count)
    server.close()
    good = kept.put()
    good.sendall(b"good")
    assert kept.take()[1].recv(9) == b"good"
    kept.rests(0)
    assert client.recv(1) == b"", "its descriptor is closed"


def foreign(kind: str, stack: ExitStack) -> int:
    """Return a descriptor that is no connection."""
    match kind:
        case "file":
            return stack.enter_context(tempfile.TemporaryFile()).fileno()
        case "directory":
            number = os.open("/", os.O_RDONLY)
        case "path":
            number = os.open("/", os.O_PATH)
        case "pipe without a writer":
            number, writer = os.pipe()
            os.close(writer)
        case "socket without a connection":
            return stack.enter_context(socket.socket()).fileno()
        case "socket that is shut down":
            ours, theirs = socket.socketpair()
            theirs.close()
            return stack.enter_context(ours).fileno()
        case _:
            return stack.enter_context(socket.create_server(("127.0.0.1", 0))).fileno()
    stack.callback(os.close, number)
    return number


CLOSED = [
    "file",
    "directory",
    "path",
    "pipe without a writer",
    "socket without a connection",
    "socket that is shut down",
]


@pytest.mark.parametrize("kind", CLOSED)
def test_what_can_not_rest(keep_in_process: Make, kind: str) -> None:
    """A descriptor that can't be watched, or a connection that is over, is closed at once; the keeper goes on."""
    kept = keep_in_process()
    assert isinstance(kept, InProcess)
    good = kept.put()
    kept.rests(1)
    before = kept.descriptors()
    with ExitStack() as stack:
        assert kept.outlet.send(foreign(kind, stack), 0, socket.AF_INET, 0.0)
    good.sendall(b"good")
    assert kept.take()[1].recv(9) == b"good"
    wait_until(lambda: kept.descriptors() == before - 1, "it is closed")
    kept.rests(0)


def test_what_is_no_connection_but_can_wake(keep: Make) -> None:
    """A pipe or a listening socket rests until something happens, and is handed on like a connection."""
    kept = keep()
    reader, writer = os.pipe()
    assert kept.outlet.send(reader, 0, socket.AF_INET, 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert kept.outlet.send(listener.fileno(), 0, socket.AF_INET, 0.0)
        kept.rests(2)
        os.write(writer, b"x")
        parcel = wait_until(kept.inlets[0].take, "the pipe wakes")
        assert parcel is not None
        os.close(parcel.descriptor)
        with socket.create_connection(listener.getsockname()):
            parcel = wait_until(kept.inlets[0].take, "the listener wakes")
            assert parcel is not None
            os.close(parcel.descriptor)
    os.close(reader)
    os.close(writer)
    kept.rests(0)
