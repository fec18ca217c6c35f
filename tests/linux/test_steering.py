"""The steered group, against the real kernel: each fact that it stands on."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster2.config.value_types import TcpAddress, UnixAddress
from cluster2.errors import AddressInUse, ConfigError
from cluster2.linux.established_connections import (
    EstablishedConnection,
    descriptors,
    end_silent,
    established,
    progress,
    reset,
    reset_established,
    shut_down,
    with_progress,
)
from cluster2.linux.lingering_close import Lingering
from cluster2.linux.listeners import NOTSENT_LOWAT_BYTES, Listener, open_all, queue_length
from cluster2.linux.steered_group import MAX_STEERED_SLOTS, SteeredGroup
from cluster2.linux.tcp_progress import untaken
from tests.system.harness import wait_until

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

HOSTS = ["127.0.0.1", "::1", "0.0.0.0", "::"]
Make = Callable[..., SteeredGroup]


@pytest.fixture
def group() -> Iterator[Make]:
    """Make groups on a free port; they are closed after the test."""
    made: list[SteeredGroup] = []

    def make(places: int = 4, host: str = "127.0.0.1") -> SteeredGroup:
        (listener,) = open_all([TcpAddress(host, 0)], backlog=512)
        one = SteeredGroup(listener, 512)
        made.append(one)
        one.grow(places)
        return one

    yield make
    for each in made:
        each.close()
        each.listener.close()


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    """Sockets put here are closed after the test."""
    opened: list[socket.socket] = []
    yield opened
    for each in opened:
        each.close()


def connect(one: SteeredGroup, clients: list[socket.socket], number: int = 1) -> None:
    """So many clients."""
    host, *rest = one.listener.sock.getsockname()
    for _ in range(number):
        client = socket.socket(one.listener.sock.family)
        clients.append(client)
        client.settimeout(10)
        client.connect(({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), *rest))


def waiting(one: SteeredGroup) -> list[int]:
    """By place."""
    return [one.waiting(place) for place in range(len(one))]


@pytest.mark.parametrize("host", HOSTS)
def test_steered(group: Make, clients: list[socket.socket], host: str) -> None:
    """Every connection goes to the one place that it is steered to, whichever that is, from the next one on."""
    one = group(4, host)
    expected = [0, 0, 0, 0]
    for place in (2, 0, 3, 1, 3):
        one.steer([place])
        connect(one, clients, 3)
        expected[place] += 3
        assert waiting(one) == expected


def test_grows_out_of_a_listener(group: Make, clients: list[socket.socket]) -> None:
    """The queue of a listener is kept when it becomes a group, and place 0 takes connections until others are steered to."""
    one = group(1)
    connect(one, clients, 2)
    one.grow(3)
    connect(one, clients, 2)
    assert waiting(one) == [4, 0, 0]
    taken, peer = one.listener.sock.accept()
    taken.close()
    assert peer == clients[0].getsockname()


def test_grows_while_it_is_steered(group: Make, clients: list[socket.socket]) -> None:
    """More places can be opened at any time; until they are steered to nothing changes, and the proofs leave nothing behind."""
    one = group(2)
    one.steer([1])
    connect(one, clients)
    one.grow(7)
    connect(one, clients)
    assert waiting(one) == [0, 2, 0, 0, 0, 0, 0]
    one.steer([6])
    connect(one, clients)
    assert waiting(one) == [0, 2, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_spread(group: Make, clients: list[socket.socket], host: str) -> None:
    """Connections are spread over all places that are steered to, and none goes elsewhere."""
    one = group(8, host)
    places = [0, 3, 4, 7]
    one.steer(places)
    connect(one, clients, 200)
    counts = waiting(one)
    assert sum(counts[place] for place in places) == 200
    assert min(counts[place] for place in places) > 20, counts


def test_the_index_is_the_order_of_listening(group: Make, clients: list[socket.socket]) -> None:
    """Closing a socket in the middle moves the last one to its index: that is why none ever is."""
    one = group(4)
    gone = one._more.pop(0)
    gone.close()
    one.steer([1])
    connect(one, clients)
    assert waiting(one) == [0, 0, 1], "what was place 3 has index 1 now"


def test_out_of_range_falls_back_to_all(group: Make, clients: list[socket.socket]) -> None:
    """A program that returns no place's index leaves it to the kernel's hash over all sockets, so ours never does."""
    one = group(4)
    one.steer([1])
    one._attach([(0x06, 0, 0, 4)])
    connect(one, clients, 64)
    assert sum(waiting(one)) == 64
    assert sum(count > 0 for count in waiting(one)) > 1
    with pytest.raises(IndexError):
        one.steer([1, 4])
    with pytest.raises(ValueError):
        one.steer([])


def test_a_stranger_gets_nothing_and_is_found_out(group: Make, clients: list[socket.socket]) -> None:
    """A server of the same user that shares the port gets no connection; a place opened later is proved to be elsewhere."""
    one = group(2)
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(one.listener.sock.getsockname())
        stranger.listen()
        one.steer([0, 1])
        connect(one, clients, 20)
        assert sum(waiting(one)) == 20
        with pytest.raises(ConfigError, match="didn't arrive there; another server shares the port"):
            one.grow(3)
        assert len(one) == 2
        connect(one, clients, 20)
        assert sum(waiting(one)) == 40
    one.grow(3)


def test_a_proof_that_fails_is_short(group: Make, clients: list[socket.socket]) -> None:
    """Where a connection to ourselves is never made, that is known after the time that may be lost for it."""
    one = group(2)
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(one.listener.sock.getsockname())
        stranger.listen(0)
        one._attach([(0x06, 0, 0, 2)])
        while queue_length(stranger) < 1:
            connect(one, clients)
        times = []
        for _ in range(5):
            begun = time.monotonic()
            with pytest.raises(ConfigError, match="can't be steered"):
                one.grow(3, timeout_s=0.01)
            times.append(time.monotonic() - begun)
        assert 0.01 <= min(times) < 0.1, times
    one.grow(3)


def test_a_kernel_that_cant_steer(group: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes the program and doesn't apply it is found out, and nothing stays open."""
    one = group(1)
    monkeypatch.setattr(one, "_attach", lambda steps: None)
    with pytest.raises(ConfigError, match=r"this kernel can't steer: choose engine http"):
        one.grow(8)
    monkeypatch.undo()
    one.close()
    one.grow(8)


def test_who_binds_without_the_flag_is_refused(group: Make) -> None:
    """A second master gets "address in use", though the group's sockets have SO_REUSEPORT."""
    one = group()
    address = one.listener.address
    assert isinstance(address, TcpAddress)
    with pytest.raises(AddressInUse):
        open_all([address], backlog=16)


def test_a_connection_stays_where_it_was(group: Make, clients: list[socket.socket]) -> None:
    """The queue of a place to which nothing is steered any more can be accepted, by another process as well."""
    one = group(2)
    one.steer([1])
    connect(one, clients)
    one.steer([0])
    assert waiting(one) == [0, 1]
    with one.at(1).dup() as successor:
        taken, _ = successor.accept()
    with taken:
        clients[0].sendall(b"hello")
        assert taken.recv(5) == b"hello"
    assert waiting(one) == [0, 0]


def test_the_door_of_each_place(group: Make, clients: list[socket.socket]) -> None:
    """When a group is shut no new connection comes in at any place, and queued ones can be accepted."""
    one = group(2)
    one.steer([0, 1])
    connect(one, clients, 4)
    one.shut_door()
    with socket.socket() as late:
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.connect(one.listener.sock.getsockname())
    assert sum(waiting(one)) == 4
    for place in (0, 1):
        while one.waiting(place):
            one.at(place).accept()[0].close()


def test_what_cant_be_steered(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Unix sockets and inherited ones are refused, with the reason and the way out; so are too many places."""
    path = tmp_path_factory.mktemp("s") / "s"
    (unix,) = open_all([UnixAddress(str(path))], backlog=1)
    with pytest.raises(ConfigError, match="it is no TCP address"):
        SteeredGroup(unix, 1)
    unix.close()
    (listener,) = open_all([TcpAddress("127.0.0.1", 0)], backlog=1)
    with pytest.raises(ConfigError, match="it was inherited"):
        SteeredGroup(Listener(listener.sock, listener.address, owned=False), 1)
    with pytest.raises(ConfigError, match=f"{MAX_STEERED_SLOTS} can be steered"):
        SteeredGroup(listener, 1).grow(MAX_STEERED_SLOTS + 1)
    listener.close()


def test_unsent_bytes_are_bounded(group: Make) -> None:
    """At all places alike: what is accepted there takes the bound over (test_listeners shows what it does)."""
    one = group(3)
    bounds = {one.at(place).getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) for place in range(3)}
    assert bounds == {NOTSENT_LOWAT_BYTES}


def test_established(group: Make, clients: list[socket.socket]) -> None:
    """Connections that came in through a listener are distinguished from all other descriptors."""
    one, other = group(1, "0.0.0.0"), group(1)
    assert established(one.listener.sock) == 0
    connect(one, clients, 2)
    connect(other, clients, 1)
    taken = [one.listener.sock.accept()[0] for _ in range(2)] + [other.listener.sock.accept()[0]]
    assert (established(one.listener.sock), established(other.listener.sock)) == (2, 1)
    reset_established(one.listener.sock)
    for client in clients[:2]:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    taken[2].sendall(b"!")
    assert clients[2].recv(1) == b"!", "the other listener's connections are left alone"
    for each in taken:
        each.close()
    assert established(one.listener.sock) == 0


def test_who_is_silent(group: Make, clients: list[socket.socket]) -> None:
    """Connections that have brought and taken nothing more, and owe nothing, are ended; the others are left alone."""
    one = group(1)
    connect(one, clients, 4)
    taken = [one.listener.sock.accept()[0] for _ in range(4)]
    talks, slow, silent, takes = taken
    slow.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            slow.send(bytes(65536))
    before = progress(one.listener.sock)
    assert {brought for _, brought in before.values()} == {0}
    clients[0].sendall(b"!")
    assert talks.recv(1) == b"!"
    takes.sendall(b"?")
    assert clients[3].recv(1) == b"?"
    now = end_silent(one.listener.sock, before)
    assert now[takes.fileno()] == (before[takes.fileno()][0] + 1, 0)
    assert now[talks.fileno()] == before[talks.fileno()], "who has said something stays alive"
    assert silent.recv(1) == b""
    for each in (talks, slow, takes):
        each.setblocking(False)
        with pytest.raises(BlockingIOError):
            each.recv(1)
    silent.sendall(b"bye")
    assert clients[2].recv(3) == b"bye", "what it still has to say is heard"
    for each in taken:
        each.close()


class JustThen(dict[int, tuple[int, int]]):
    """Something happens in the moment in which it is read."""

    happens: Callable[[], object] = print

    def get(self, key: int, default: Any = None) -> Any:
        self.happens()
        return super().get(key, default)


def test_who_begins_to_take_just_then(group: Make, clients: list[socket.socket]) -> None:
    """A client that takes all that it left lying, between the look at its progress and the one at what is untaken, stays."""
    one = group(1)
    connect(one, clients, 1)
    taken, _ = one.listener.sock.accept()
    taken.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            taken.send(bytes(65536))
    clients[0].setblocking(False)

    def takes() -> bool:
        with contextlib.suppress(BlockingIOError):
            clients[0].recv(1 << 20)
        return untaken(taken.fileno()) == 0

    before = JustThen(progress(one.listener.sock))
    before.happens = lambda: wait_until(takes, "it has taken all")
    end_silent(one.listener.sock, before)
    with pytest.raises(BlockingIOError):
        taken.recv(1)
    taken.close()


def test_what_a_look_tells(group: Make, clients: list[socket.socket]) -> None:
    """Each connection is listed with its peer and its progress; a reset or an end is for one of them only."""
    one = group(1)
    connect(one, clients, 3)
    taken = [one.listener.sock.accept()[0] for _ in range(3)]
    full, ends, other = taken
    full.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            full.send(bytes(65536))
    clients[1].sendall(b"hello")
    assert ends.recv(5) == b"hello"

    def seen(sock: socket.socket) -> EstablishedConnection:
        (found,) = (each for each in with_progress(one.listener.sock) if each.descriptor == sock.fileno())
        return found

    before = seen(full)
    assert before[1:4] == (os.fstat(full.fileno()).st_ino, *clients[0].getsockname())
    assert before.untaken > 0
    assert seen(full) == before
    assert seen(ends)[4:] == (0, 5, 0, True)
    assert not seen(full).asks
    assert not seen(other).asks, "nobody has spoken"
    clients[0].recv(1 << 22, socket.MSG_WAITALL)
    assert seen(full).taken > before.taken
    reset(full.fileno())
    assert clients[0].recv(1 << 26, socket.MSG_WAITALL), "what had arrived before is read first"
    with pytest.raises(ConnectionResetError):
        clients[0].recv(1)
    shut_down(ends.fileno())
    assert ends.recv(1) == b""
    other.sendall(b"!")
    assert clients[2].recv(1) == b"!"
    for each in taken:
        each.close()


def test_who_still_speaks(group: Make, clients: list[socket.socket]) -> None:
    """Data that was sent before its owner closed reaches a peer that goes on sending; then the connection is let go."""
    one = group(1)
    connect(one, clients, 2)
    closes, stays = (one.listener.sock.accept()[0] for _ in range(2))
    lingering = Lingering()
    lingering.hold(descriptors(one.listener.sock))
    assert established(one.listener.sock) == len(lingering) == 2, "duplicates aren't counted"
    closes.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += closes.send(bytes(65536))
    clients[0].sendall(b"more")
    closes.close()
    clients[1].sendall(b"hello")
    got = 0
    while data := clients[0].recv(65536):
        got += len(data)
        clients[0].send(b"more")
        lingering.check(0)
    assert got == sent
    lingering.check(0)
    assert len(lingering) == 2, "it may say more"
    clients[0].shutdown(socket.SHUT_WR)
    while len(lingering) == 2:
        lingering.check(0)
    assert stays.recv(5) == b"hello", "what has an owner is his"
    lingering.close()
    assert not lingering
    stays.sendall(b"!")
    assert clients[1].recv(1) == b"!"
    stays.close()
