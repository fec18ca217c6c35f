"""The kernel's knowledge of whether a peer that has ended its side still reads."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator

import pytest

from cluster2.linux.tcp_progress import has_left, probe
from tests.system.harness import wait_until

AT_ONCE = struct.pack("ii", 1, 0)


@pytest.fixture(params=[socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return this end of a connection, and its peer's."""
    if request.param == socket.AF_UNIX:
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


def test_one_that_still_reads(ends: tuple[socket.socket, socket.socket]) -> None:
    """A peer that has ended its side, and keeps its socket, hasn't left."""
    ours, theirs = ends
    theirs.shutdown(socket.SHUT_WR)
    assert ours.recv(1) == b""
    probe(ours, 1)
    assert not has_left(ours.fileno())
    ours.sendall(b"x")
    assert theirs.recv(1) == b"x"


def test_one_that_resets(ends: tuple[socket.socket, socket.socket]) -> None:
    """A peer that resets the connection after the end of its side, or closes a Unix socket, has left."""
    ours, theirs = ends
    theirs.shutdown(socket.SHUT_WR)
    assert ours.recv(1) == b""
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    theirs.close()
    wait_until(lambda: has_left(ours.fileno()), "it is seen")


def test_one_that_has_closed(ends: tuple[socket.socket, socket.socket]) -> None:
    """A peer that closes its socket looks like one that still reads, until its kernel has forgotten it and a probe comes."""
    ours, theirs = ends
    if theirs.family == socket.AF_INET:
        theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)  # seconds, instead of tcp_fin_timeout's 60
    theirs.close()
    assert select.select([ours], [], [], 10)[0]
    assert ours.recv(1) == b""
    probe(ours, 1)
    wait_until(lambda: has_left(ours.fileno()), "a probe has found out")
