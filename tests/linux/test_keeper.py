"""The keeper on the real kernel: as a thread of this process, and as the process that the master executes."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import struct
import time
from pathlib import Path

import pytest

from cluster2.core.lifecycle import WorkerState
from cluster2.linux import processes
from cluster2.linux.handover import HandedConnection
from tests.linux.keepers import InProcess, InThread, Make, maker
from tests.system.harness import wait_until

keep = pytest.fixture(params=[InThread, InProcess], ids=["thread", "process"], name="keep")(maker())
keep_in_thread = pytest.fixture(params=[InThread], ids=["thread"], name="keep_in_thread")(maker())
keep_in_process = pytest.fixture(params=[InProcess], ids=["process"], name="keep_in_process")(maker())


# At rest, and awake


def test_what_wakes_is_ready(keep: Make) -> None:
    """A connection rests until its client says something; then it is in the ready queue, and not a byte was read."""
    kept = keep()
    client = kept.put(idle_s=3.0)
    kept.rests(1)
    assert kept.inlets[0].take() is None
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    parcel, server = kept.take()
    assert (parcel.app_index, parcel.family, parcel.idle_s) == (0, socket.AF_INET, 0.0)
    assert server.recv(100) == b"GET / HTTP/1.1\r\n\r\n"
    server.sendall(b"answer")
    assert client.recv(100) == b"answer"
    kept.rests(0)


def test_what_came_on_the_way(keep: Make) -> None:
    """Bytes that arrived before the keeper had the connection wake it at once."""
    kept = keep()
    client, server = kept.connect()
    client.sendall(b"early")
    assert kept.outlet.send(server.fileno(), 0, socket.AF_INET, 0.0)
    server.close()
    _, taken = kept.take()
    assert taken.recv(100) == b"early"


def test_each_app_has_its_queue(keep: Make) -> None:
    """A connection comes back to the app that it belongs to."""
    kept = keep(sites=3)
    clients = [kept.put(site) for site in (2, 0, 1)]
    kept.rests(3)
    for client, site in zip(clients, (2, 0, 1), strict=True):
        client.sendall(b"%d" % site)
    for site in range(3):
        parcel, server = kept.take(site)
        assert parcel.app_index == site
        assert server.recv(9) == b"%d" % site


def test_there_and_back_again(keep: Make) -> None:
    """A connection may go and come back as often as it likes; nothing stays behind."""
    kept = keep()
    client = kept.put()
    for turn in range(200):
        client.sendall(b"%03d" % turn)
        parcel, server = kept.take()
        assert server.recv(9) == b"%03d" % turn
        server.sendall(b"%03d" % turn)
        assert client.recv(9) == b"%03d" % turn
        assert kept.outlet.send(parcel.descriptor, 0, parcel.family, 0.0)
        server.close()
    kept.rests(1)


def test_thousands(keep: Make) -> None:
    """Two thousand rest, sent 128 a message; all wake, each once."""
    kept = keep()
    pairs = [socket.socketpair() for _ in range(2000)]
    with contextlib.ExitStack() as stack:
        for ours, theirs in pairs:
            stack.enter_context(ours)
            stack.enter_context(theirs)
        parcels = [HandedConnection(theirs.fileno(), 0, socket.AF_UNIX, 0.0) for _, theirs in pairs]
        while parcels:
            parcels = parcels[kept.outlet.send_all(parcels) :]
        kept.rests(2000)
        for number, (ours, _) in enumerate(pairs):
            ours.sendall(b"%d" % number)
        seen = []
        for _ in pairs:
            with kept.take()[1] as taken:
                seen.append(int(taken.recv(9)))
        assert sorted(seen) == list(range(2000))
        kept.rests(0)


# Clients that leave, and time that passes


def test_a_client_that_closes(keep: Make) -> None:
    """A client that closes wakes its connection; the next worker reads the end. The keeper has it no more."""
    kept = keep()
    kept.put().close()
    _, server = kept.take()
    assert server.recv(9) == b""
    kept.rests(0)


def test_a_client_that_says_something_and_half_closes(keep: Make) -> None:
    """A request before a half-close is delivered, and can be answered."""
    kept = keep()
    client = kept.put()
    kept.rests(1)
    client.sendall(b"last")
    client.shutdown(socket.SHUT_WR)
    _, server = kept.take()
    assert server.recv(9) == b"last"
    server.sendall(b"answer")
    assert client.recv(9) == b"answer"


def test_a_client_that_resets(keep: Make) -> None:
    """A connection that was reset is closed there: no worker can use it."""
    kept = keep()
    client = kept.put()
    kept.rests(1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    kept.rests(0)
    assert kept.inlets[0].take() is None


@pytest.mark.slow
def test_the_time_limit_holds_there(keep: Make) -> None:
    """A connection is closed when it was idle for `timeout` in all: the time before it came counts."""
    kept = keep(timeout=20.0)
    began = time.monotonic()
    old, young = kept.put(idle_s=19.0), kept.put(idle_s=0.0)
    assert old.recv(1) == b""
    assert 1.0 <= time.monotonic() - began < 3.0
    kept.rests(1)
    assert kept.board.header.keeper_expired == 1
    young.sendall(b"still there")
    assert kept.take()[1].recv(99) == b"still there"


def test_overdue_on_arrival(keep: Make) -> None:
    """One that is overdue when it comes is closed soon; what already woke isn't."""
    kept = keep(timeout=5.0)
    assert kept.put(idle_s=1000.0).recv(1) == b""
    kept.rests(0)


def test_without_a_time_limit(keep_in_thread: Make) -> None:
    """With `timeout = 0` connections may rest for ever."""
    kept = keep_in_thread(timeout=0.0)
    client = kept.put(idle_s=1e9)
    kept.rests(1)
    assert kept.keeper._resting.next_deadline() is None  # type: ignore[attr-defined]
    client.sendall(b"x")
    kept.take()


@pytest.mark.parametrize("age", [math.nan, math.inf, -math.inf, -5.0])
def test_an_age_that_is_none(keep: Make, age: float) -> None:
    """A foreign age can't break it: it counts as none, or as the longest."""
    kept = keep(timeout=30.0)
    kept.put(idle_s=age)
    other = kept.put()
    other.sendall(b"x")
    kept.take()


# The end


def test_drained_and_empty(keep: Make) -> None:
    """After `drain` the keeper leaves when it has no connection any more; until then those that wake are handed back."""
    kept = keep()
    client = kept.put()
    kept.rests(1)
    kept.control.send(b"drain 60")
    client.sendall(b"last")
    assert kept.take()[1].recv(9) == b"last"
    kept.wait()


def test_drained_but_silent(keep: Make) -> None:
    """A connection that stays silent until the end of the drain is closed with it."""
    kept = keep()
    client = kept.put()
    kept.rests(1)
    began = time.monotonic()
    kept.control.send(b"drain 0.3")
    kept.wait()
    assert time.monotonic() - began >= 0.3
    if isinstance(kept, InProcess):
        assert client.recv(1) == b""
        assert kept.status is not None
        assert kept.status.code == 0


def test_it_waits_for_workers_that_have_not_heard(keep: Make) -> None:
    """While a worker serves it may still send something: an empty keeper waits for that."""
    kept = keep()
    row = kept.board.row(kept.board.claim())
    row.state = WorkerState.READY
    kept.control.send(b"drain 60")
    client = kept.put()
    kept.rests(1)
    assert not kept.gone()
    client.sendall(b"last")
    assert kept.take()[1].recv(9) == b"last"
    assert not kept.gone()
    row.state = WorkerState.DRAINING
    kept.wait()


def test_drained_with_a_full_queue(keep: Make) -> None:
    """The keeper doesn't leave with connections that it couldn't hand back yet."""
    kept = keep()
    kept.ready[0][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    clients = [kept.put() for _ in range(20)]
    for client in clients:
        client.sendall(b"x")
    wait_until(lambda: kept.board.header.resting > 0, "some wait")
    kept.control.send(b"drain 60")
    for _ in clients:
        assert kept.take()[1].recv(9) == b"x"
    kept.wait()


def test_the_master_is_gone(keep_in_process: Make) -> None:
    """When the control channel ends it leaves at once, and what rested is closed."""
    kept = keep_in_process()
    assert isinstance(kept, InProcess)
    client = kept.put()
    kept.rests(1)
    kept.control.close()
    assert client.recv(1) == b""
    kept.wait()
    assert kept.status is not None
    assert kept.status.code == 0


def test_only_the_master_ends_it(keep_in_process: Make) -> None:
    """TERM, INT, HUP and QUIT, which a terminal or a supervisor sends to a whole group, don't end it."""
    kept = keep_in_process()
    client = kept.put()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        os.kill(kept.pid, number)
    client.sendall(b"x")
    assert kept.take()[1].recv(9) == b"x"


def test_killed(keep_in_process: Make) -> None:
    """Killed, it loses what it had; what waits in the queues lives on, and the next keeper takes it."""
    kept = keep_in_process()
    resting, woken = kept.put(), kept.put()
    kept.rests(2)
    woken.sendall(b"woken")
    kept.rests(1)
    os.kill(kept.pid, signal.SIGSTOP)
    wait_until(lambda: "T" in Path(f"/proc/{kept.pid}/stat").read_text().rpartition(")")[2].split()[0], "it is stopped")
    waiting = kept.put()
    os.kill(kept.pid, signal.SIGKILL)
    kept.wait()
    assert resting.recv(1) == b""
    assert kept.take()[1].recv(9) == b"woken"
    kept.control.close()
    kept.control, kept.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kept.start()
    waiting.sendall(b"waiting")
    assert kept.take()[1].recv(9) == b"waiting"


def test_stopped(keep_in_process: Make) -> None:
    """While it is stopped its heartbeat grows old, and the queue to it fills until it takes no more; then all goes on."""
    kept = keep_in_process()
    kept.rest[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    os.kill(kept.pid, signal.SIGSTOP)
    wait_until(lambda: "T" in Path(f"/proc/{kept.pid}/stat").read_text().rpartition(")")[2].split()[0], "it is stopped")
    beat = kept.board.header.keeper_beat
    client, server = kept.connect()
    sent = 0
    while kept.outlet.send(server.fileno(), 0, socket.AF_INET, 0.0):
        sent += 1
        assert sent < 1000
    server.sendall(b"still ours")
    assert client.recv(99) == b"still ours"
    os.kill(kept.pid, signal.SIGCONT)
    kept.rests(sent)
    assert kept.board.header.keeper_beat > beat


def test_it_needs_the_standard_library_only(keep_in_process: Make) -> None:
    """The keeper runs without site-packages, and is small."""
    kept = keep_in_process()
    maps = Path(f"/proc/{kept.pid}/maps").read_text()
    assert "site-packages" not in maps
    assert processes.memory(kept.pid) < 20 * 2**20


def test_a_keeper_with_nothing_to_do(keep_in_process: Make) -> None:
    """With connections at rest and nothing that wakes, it uses no CPU time that could be measured."""
    kept = keep_in_process()
    assert isinstance(kept, InProcess)
    for _ in range(50):
        kept.put()
    kept.rests(50)
    used, until = kept.cpu(), time.monotonic() + 0.5
    wait_until(lambda: time.monotonic() > until, "half a second passes")
    assert kept.cpu() - used <= 0.02


def test_what_the_kernel_says_of_a_half_close() -> None:
    """The kernel watches a connection that is half closed, reset or readable with the events that the keeper asks for."""
    ours, theirs = socket.socketpair()
    with ours, theirs, select.epoll() as epoll:
        epoll.register(ours, select.EPOLLIN | select.EPOLLRDHUP)
        assert epoll.poll(0) == []
        theirs.shutdown(socket.SHUT_WR)
        assert epoll.poll(0) == [(ours.fileno(), select.EPOLLIN | select.EPOLLRDHUP)]
