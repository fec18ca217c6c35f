"""Connections that linger are let go when they are over, also when their owner was the one to read of it."""

from __future__ import annotations

import contextlib
import socket
import struct

from cluster2.linux.lingering_close import Lingering


def test_a_reset_that_its_owner_has_read_of() -> None:
    """The kernel counts bytes that the peer didn't take for ever then; the duplicate is closed all the same."""
    lingering = Lingering()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as peer:
        owner, _ = listener.accept()
        with owner:
            owner.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    owner.send(bytes(1 << 16))
            lingering.hold([owner.fileno()])
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            owner.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                owner.recv(1)
        assert len(lingering) == 1
        lingering.check(0.0)
        left = len(lingering)
        lingering.close()
    assert not left
