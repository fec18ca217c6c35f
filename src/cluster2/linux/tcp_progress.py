"""The kernel's counts of a connection's progress: bytes that came, and bytes that the peer has received.

To detect a client that is gone, each read and each write would have to be counted. The kernel does so anyway. `TCP_INFO` (tcp(7))
has both counts since Linux 4.2: `tcpi_bytes_received`, and `tcpi_bytes_acked`, the bytes that the peer's kernel has received. Its
layout is `struct tcp_info` in linux/tcp.h, which only ever grows at its end. So nothing is counted on the path of a byte, and a
connection that seems to make no progress is checked once a second (1.9 µs).

The length of the process's own buffer doesn't show progress: the kernel reports a socket as writable only when a third of its
send buffer is free, which may be 4 MiB. With a client that takes 10 kB/s it doesn't change for minutes. The times
`tcpi_last_data_sent` and `_recv` don't either: with a slow reader nothing is sent for a while. They do show which side has sent
last.

A Unix socket has no such counts. For the bytes that its reader hasn't taken there is `SIOCOUTQ` (unix(7) shares it with tcp(7)).
"""

from __future__ import annotations

import ctypes
import fcntl
import select
import socket
import termios

_SENT_AGO, _RECEIVED_AGO, _ACKED, _RECEIVED, _END = 44, 52, 120, 128, 136
_libc = ctypes.CDLL(None, use_errno=True)
_info = (ctypes.c_char * _END)()
_size = ctypes.c_uint32()
_counts = memoryview(_info).cast("B")[_ACKED:_END].cast("Q")
_ago = memoryview(_info).cast("B")[_SENT_AGO : _RECEIVED_AGO + 4].cast("I")


def transferred(descriptor: int) -> tuple[int, int] | None:
    """Return the bytes that a TCP connection has delivered to its peer, and received from it; None: no TCP, or closed."""
    _size.value = _END
    # The call goes through ctypes: uvloop's socket objects have no getsockopt, and making a socket of a duplicate costs 5 µs.
    if _libc.getsockopt(descriptor, socket.IPPROTO_TCP, socket.TCP_INFO, _info, ctypes.byref(_size)):
        return None
    return (_counts[0], _counts[1]) if _size.value == _END else None


def peer_spoke_last() -> bool:
    """Return whether the connection of the last `transferred` call has brought bytes since it was last sent any.

    Within a tick of the kernel's clock it hasn't.
    """
    return _counts[1] > 0 and (not _counts[0] or _ago[2] < _ago[0])


def untaken(descriptor: int) -> int:
    """Return the bytes in the kernel that the peer hasn't received; 0 also if that can't be known."""
    try:
        return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), "little")
    except (OSError, ValueError):  # no socket any more; a number below 0
        return 0


def probe(sock: socket.socket, seconds: int) -> None:
    """Detect a peer that is gone by keep-alive probes (tcp(7)), after it has closed its sending side.

    A client that has closed its socket looks like one that has closed its sending side and still reads, until something is sent
    to it. The client's kernel forgets a closed socket after `tcp_fin_timeout` (60 s), and then resets the connection at the next
    probe.
    """
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds)


def has_left(descriptor: int) -> bool:
    """Return whether the peer of a connection has reset it, or (Unix sockets) has closed its own.

    Use it where no task reads any more, since the peer has closed its sending side.
    """
    poll = select.poll()
    # POLLERR and POLLHUP are reported without being asked for (poll(2)).
    poll.register(descriptor, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
