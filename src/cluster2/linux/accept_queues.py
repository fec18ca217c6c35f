"""How many connections wait to be accepted, at sockets of all kinds.

TCP tells it by TCP_INFO (`listeners.queue_length`). Of a Unix socket only a netlink socket knows (sock_diag(7)): asked for one
inode, the kernel looks through its table of Unix sockets, 30 µs with some hundreds. The kernel may be built without
`unix_diag`, and a sandbox may forbid netlink: then it isn't known.
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
    """Return how many connections wait at these sockets together; None: of one of them it isn't known."""
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
        answer = link.recv(4096)
    if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None
    at = _HEADER.size + _MESSAGE_BYTES
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _UNIX_DIAG_RQLEN:
            return int(struct.unpack_from("=I", answer, at + _ATTRIBUTE.size)[0])
        at += max(_ATTRIBUTE.size, -(-length // 4) * 4)
    return None
