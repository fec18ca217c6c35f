"""Shutting a listener, over real sockets on loopback."""

from __future__ import annotations

import errno
import os
import select
import socket
from pathlib import Path

import pytest

from cluster2.config.value_types import FdAddress, TcpAddress, UnixAddress
from cluster2.errors import AddressInUse
from cluster2.linux.listeners import Listener, queue_length
from tests.linux.children import told
from tests.linux.visitors import Open, accept, ask, connect, serve

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


LOOPBACKS = ["127.0.0.1", "::1"]
NOBODY = 65534


@pytest.mark.parametrize("host", LOOPBACKS)
def test_a_shut_door_of_tcp(listen: Open, host: str) -> None:
    """No new connection gets in any more, and all in the queue are served."""
    (listener,) = listen(TcpAddress(host, 0))
    clients = ask(listener, 5)
    listener.shut_door()
    newcomer = socket.socket(listener.sock.family)
    newcomer.setblocking(False)
    assert newcomer.connect_ex(listener.sock.getsockname()) == errno.EINPROGRESS
    assert select.select([], [newcomer], [], 0.1)[1] == []
    assert queue_length(listener.sock) == 5
    serve(listener, clients)
    assert queue_length(listener.sock) == 0
    listener.close()
    newcomer.close()


@pytest.mark.parametrize("host", LOOPBACKS)
def test_a_handshake_under_way_ends_behind_a_shut_door(listen: Open, host: str) -> None:
    """A client whose handshake has begun is accepted and served (TCP_DEFER_ACCEPT holds the handshake open for us)."""
    (listener,) = listen(TcpAddress(host, 0))
    listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
    client = connect(listener)
    assert queue_length(listener.sock) == 0
    listener.shut_door()
    client.sendall(b"question 0")
    serve(listener, [client])


def test_an_accepted_connection_is_not_hurt(listen: Open) -> None:
    """Connections from before and after the shutting go on; the sink concerns new ones only."""
    (listener,) = listen(TcpAddress("127.0.0.1", 0))
    before, waiting = connect(listener), connect(listener)
    served = [accept(listener)]
    listener.shut_door()
    served.append(accept(listener))
    for client, sock in zip((before, waiting), served, strict=True):
        client.sendall(b"x" * 1000)
        assert sock.recv(1000, socket.MSG_WAITALL) == b"x" * 1000
        sock.sendall(b"y")
        assert client.recv(10) == b"y"
        client.close()
        sock.close()


def kept_out(listener: Listener, ttl: int = 64) -> bool:
    """Return whether a new client gets no answer. Its packets have this TTL."""
    with socket.socket(listener.sock.family) as newcomer:
        if listener.sock.family == socket.AF_INET6:
            newcomer.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
        else:
            newcomer.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        newcomer.setblocking(False)
        newcomer.connect_ex(listener.sock.getsockname())
        return not select.select([], [newcomer], [], 0.1)[1]


@pytest.mark.parametrize("host", LOOPBACKS)
@pytest.mark.parametrize("ttl", [1, 64, 255])
def test_newcomers_of_every_distance_are_kept_out(listen: Open, host: str, ttl: int) -> None:
    """The TTL of a client's packets makes no difference."""
    (listener,) = listen(TcpAddress(host, 0))
    listener.shut_door()
    assert kept_out(listener, ttl)


@pytest.mark.parametrize("host", LOOPBACKS)
def test_a_door_is_shut_without_privileges(listen: Open, host: str) -> None:
    """An ordinary user without capabilities can shut a listener; queued connections are accepted."""

    def shut() -> list[object]:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        (listener,) = listen(TcpAddress(host, 0))
        clients = ask(listener, 3)
        listener.shut_door()
        out = kept_out(listener)
        serve(listener, clients)
        return [os.geteuid() != 0, out]

    assert told(shut) == [True, True]


def test_one_process_shuts_the_door_for_all(listen: Open) -> None:
    """A listener that one process shuts is shut for all that share it, until that process closes it."""
    (listener,) = listen(TcpAddress("127.0.0.1", 0))
    client = connect(listener)
    shared = Listener(listener.sock.dup(), listener.address, owned=True)
    shared.shut_door()
    assert kept_out(listener)
    accept(listener).close()
    client.close()
    shared.close()
    assert not kept_out(listener)


def test_the_port_is_free_behind_a_shut_door(listen: Open) -> None:
    """A successor is refused while the listener is shut, and can bind the port as soon as it is closed."""
    (listener,) = listen(TcpAddress("127.0.0.1", 0))
    address = TcpAddress("127.0.0.1", listener.sock.getsockname()[1])
    listener.shut_door()
    with pytest.raises(AddressInUse):
        listen(address)
    listener.close()
    (successor,) = listen(address)
    client = connect(successor)
    accept(successor).close()
    client.close()


def test_a_door_that_stays_open(listen: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the kernel takes the program and does not steer, shutting the listener is an error, and it goes on."""
    (listener,) = listen(TcpAddress("127.0.0.1", 0))
    monkeypatch.setattr("cluster2.linux.syn_sink.attach", lambda *_: None)
    monkeypatch.setattr("cluster2.linux.syn_sink._IP_MINTTL", socket.IP_TTL)

    def shut_often() -> None:
        # Without a program the kernel spreads connections by a hash: one in two finds the sink by chance.
        for _ in range(64):
            listener.shut_door()
            assert listener._sink is not None
            listener._sink.close()
            listener._sink = None

    with pytest.raises(OSError, match="does not steer"):
        shut_often()
    for _ in range(16):
        connect(listener).close()


def test_why_not_shutdown(listen: Open) -> None:
    """shutdown(SHUT_RD) on a TCP listener resets queued connections: the reason for the sink."""
    (listener,) = listen(TcpAddress("127.0.0.1", 0))
    client = connect(listener)
    listener.sock.shutdown(socket.SHUT_RD)
    with pytest.raises(OSError, match="Invalid argument"):
        listener.sock.accept()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()


def test_why_not_a_backlog_of_zero(listen: Open) -> None:
    """listen(0) lets newcomers in once the queue is drained: another reason for the sink."""
    (listener,) = listen(TcpAddress("127.0.0.1", 0))
    client = connect(listener)
    listener.sock.listen(0)
    accept(listener).close()
    client.close()
    connect(listener).close()


def test_a_shut_door_of_a_unix_socket(listen: Open, tmp_path: Path) -> None:
    """New connections are refused, queued ones are served, and then accept says that there is nothing."""
    (listener,) = listen(UnixAddress(str(tmp_path / "a.sock")))
    clients = ask(listener, 3)
    listener.shut_door()
    with pytest.raises(ConnectionRefusedError):
        connect(listener)
    serve(listener, clients)
    assert select.select([listener.sock], [], [], 0)[0], "readable without end, as the module says"
    with pytest.raises(BlockingIOError):
        listener.sock.accept()


def test_an_inherited_door_stays_open(listen: Open) -> None:
    """A socket that another process owns goes on taking connections for its next user."""
    owner = socket.create_server(("127.0.0.1", 0))
    (listener,) = listen(FdAddress(os.dup(owner.fileno())))
    listener.shut_door()
    client = connect(listener)
    listener.close()
    sock, _ = owner.accept()
    for each in (client, sock, owner):
        each.close()
