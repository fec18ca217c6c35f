"""Count the connections that wait in the accept queues of sockets of all kinds.

For TCP the kernel reports the length by TCP_INFO (`listeners.queue_length`). For a Unix socket only a netlink socket can ask
(sock_diag(7)): given one inode, the kernel searches its table of Unix sockets, which takes 30 µs with some hundreds of them. The
kernel may be built without `unix_diag`, and a sandbox may forbid netlink. The length isn't known then.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable

from .listeners import queue_length

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, pid
_REQUEST = struct.Struct("=BBHIIIII")  # family, protocol, padding, states, inode, what to show, two of a cookie
_MESSAGE_BYTES = 16
_ATTRIBUTE = struct.Struct("=HH")
_UDIAG_SHOW_RQLEN = 0x10
_UNIX_DIAG_RQLEN = 4
_ANY = 0xFFFFFFFF


def waiting(listeners: Iterable[socket.socket]) -> int | None:
    """Return how many connections wait at these sockets together; None: the length of one queue isn't known."""
    total = 0
    for sock in listeners:
        length = length_of(sock)
        if length is None:
            return None
        total += length
    return total


def length_of(sock: socket.socket) -> int | None:
    """Return how many connections wait at a listening socket; None: it isn't known."""
    try:
        return queue_length(sock) if sock.family != socket.AF_UNIX else _unix_length(os.fstat(sock.fileno()).st_ino)
    except OSError:
        return None


def _unix_length(inode: int) -> int | None:
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY, inode, _UDIAG_SHOW_RQLEN, _ANY, _ANY)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as link:
        link.settimeout(0)  # the kernel answers within the call
        size = _HEADER.size + len(request)
        link.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + request)
        response = link.recv(4096)
    if _HEADER.unpack_from(response)[1] != _SOCK_DIAG_BY_FAMILY:
        return None
    at = _HEADER.size + _MESSAGE_BYTES
    while at + _ATTRIBUTE.size <= len(response):
        length, kind = _ATTRIBUTE.unpack_from(response, at)
        # For a listening socket the first number of this attribute is the queue's length, the second one its bound.
        if kind == _UNIX_DIAG_RQLEN:
            return int(struct.unpack_from("=I", response, at + _ATTRIBUTE.size)[0])
        # Attributes are aligned to 4 bytes (NLA_ALIGN). The lower bound ends the loop even if a length is 0.
        at += max(_ATTRIBUTE.size, -(-length // 4) * 4)
    return None
