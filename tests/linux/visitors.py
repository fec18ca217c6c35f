"""Clients of a listener, one after the other, and a server for them."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Sequence

from cluster2.linux.listeners import Listener

Open = Callable[..., list[Listener]]
"""The fixture `listen`: opens addresses."""


def connect(listener: Listener) -> socket.socket:
    """Return a connected client."""
    client = socket.socket(listener.sock.family)
    client.settimeout(10)
    try:
        client.connect(listener.sock.getsockname())
    except OSError:
        client.close()
        raise
    return client


def accept(listener: Listener) -> socket.socket:
    """Return the next connection; it is waited for, since a connect over loopback may return first."""
    assert select.select([listener.sock], [], [], 10)[0]
    sock, _ = listener.sock.accept()
    sock.settimeout(10)
    return sock


def serve(listener: Listener, clients: Sequence[socket.socket]) -> None:
    """Accept all clients in turn, and pass a word each way."""
    for number, client in enumerate(clients):
        sock = accept(listener)
        assert sock.recv(100) == b"question %d" % number
        sock.sendall(b"answer")
        assert client.recv(100) == b"answer"
        sock.close()
        client.close()


def ask(listener: Listener, count: int) -> list[socket.socket]:
    clients = [connect(listener) for _ in range(count)]
    for number, client in enumerate(clients):
        client.sendall(b"question %d" % number)
    return clients
