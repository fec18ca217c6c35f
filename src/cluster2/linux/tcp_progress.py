"""What the kernel knows of a connection's progress: bytes that came, bytes that the other side has taken.

Whoever wants to know whether a client is still there would have to count each read and each write; the kernel does so
anyway. `TCP_INFO` (tcp(7); the layout is `struct tcp_info` in linux/tcp.h, which only ever grows at its end) has both counts
since Linux 4.2: `tcpi_bytes_received`, and `tcpi_bytes_acked`, what the peer's kernel has taken. So nothing is noted on the way
of a byte, and a connection that seems to make no progress is asked once a second (1.9 µs).

Why not the length of our own buffer: the kernel reports a socket as writable only when a third of its send buffer is free, which
may be 4 MiB. A client that takes 10 kB/s shows no change there for minutes. Nor the times `tcpi_last_data_sent` and `_recv`: a
reader who takes slowly makes us send nothing for a while. They do tell who spoke last.

A Unix socket has no such counts. What its reader hasn't taken is told by `SIOCOUTQ` (unix(7) shares it with tcp(7)).
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
    """Bytes that a TCP connection has delivered to its peer, and received from it; None: it isn't TCP, or it is over."""
    _size.value = _END
    # Through ctypes, since the sockets that uvloop hands out can't be asked, and to make one of a duplicate costs 5 µs.
    if _libc.getsockopt(descriptor, socket.IPPROTO_TCP, socket.TCP_INFO, _info, ctypes.byref(_size)):
        return None
    return (_counts[0], _counts[1]) if _size.value == _END else None


def peer_spoke_last() -> bool:
    """Whether the connection that `transferred` was asked for last has brought bytes since it was last sent any.

    Within a tick of the kernel's clock it hasn't.
    """
    return _counts[1] > 0 and (not _counts[0] or _ago[2] < _ago[0])


def untaken(descriptor: int) -> int:
    """Bytes in the kernel that the peer hasn't taken; 0 also where that can't be known."""
    try:
        return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), "little")
    except (OSError, ValueError):  # no socket any more; a number below 0
        return 0


def probe(sock: socket.socket, seconds: int) -> None:
    """Have the kernel find out that a peer which has ended its side is gone altogether, by keep-alive probes (tcp(7)).

    A client that has closed its socket looks like one that has ended its side and still reads, until something is sent to it. The
    client's kernel forgets a closed socket after `tcp_fin_timeout` (60 s), and then resets the connection at the next probe.
    """
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds)


def has_left(descriptor: int) -> bool:
    """Whether the peer of a connection has reset it, or (Unix sockets) has closed its own.

    To be asked where nobody reads any more, since the end of what the peer says has come.
    """
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
