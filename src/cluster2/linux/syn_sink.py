"""The SYN sink: a second socket on a listener's address that drops every new connection. It shuts a TCP listener.

The sink joins the listener in a SO_REUSEPORT group. A classic BPF program for the group sends each segment that has SYN and
no ACK to the sink, and everything else to where it went before. The sink drops the SYN without an answer. The client repeats
it after 1 s: then the port is closed and the client is refused, or a successor listens on the port and answers. Handshakes
that have begun are not affected: the last ACK finds its request socket by its addresses and ports, and the connection appears
in the accept queue of the listener that answered the SYN.

No step needs a capability (Linux 6.18, IPv4 and IPv6; tests/linux/test_closing_listeners.py shows each of these):

- SO_REUSEPORT may be set on a socket that listens already (`cluster2.linux.steered_group` has the rules of such groups), and
  SO_ATTACH_REUSEPORT_CBPF is open to every user. Only `bind` may need a privilege: CAP_NET_BIND_SERVICE below port 1024, and the
  user of the listener's process, since the kernel compares the owners of the sockets of a group.
- The sink drops SYNs for two reasons. IP_MINTTL (IPV6_MINHOPCOUNT) is 255: it drops segments of all clients that are not in the
  same network with an unusual TTL, from the first moment on, also before the program is attached. And its accept queue holds
  one connection, this process's own, which is never accepted: the kernel drops every SYN for a listener whose queue is full.
- That connection is a proof as well: it must arrive at the sink. A kernel that takes the options and does not steer is found
  out, and the caller gets an error.

What was tried instead:
- a classic BPF filter on the listener that drops SYNs (SO_ATTACH_FILTER). It works in the same way, but current kernels give
  EPERM without CAP_NET_ADMIN (seen with 6.18.44), which ordinary users and containers do not have.
- IP_MINTTL on the listener itself. Accepted connections inherit it, so each engine would have to reset it before the client's
  next segment comes, and an engine with its own accept loop cannot.

Opening a sink takes 0.3 ms.
"""

from __future__ import annotations

import array
import errno
import select
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final

Instruction = tuple[int, int, int, int]
"""struct sock_filter: u16 code, u8 jt, u8 jf, u32 k."""

NET_OFFSET: Final = -0x100000  # SKF_NET_OFF: offsets count from the network header
IP_HEADER_BYTES: Final = {socket.AF_INET: 20, socket.AF_INET6: 40}
"""The bytes before the TCP header: a SYN has neither IP options nor extension headers. One that has is let in."""

_SO_ATTACH_REUSEPORT_CBPF: Final = 51
_IP_MINTTL: Final = 21
_IPV6_MINHOPCOUNT: Final = 73
_MAX_TTL: Final = 255
_TCP_FLAGS_OFFSET: Final = 13
_FILL_TIMEOUT_S: Final = 0.05
_TO_FIRST_SOCKET: Final[tuple[Instruction, ...]] = ((0x06, 0, 0, 0),)


def open_sink(
    listener: socket.socket, index: int = 1, others: Sequence[Instruction] = _TO_FIRST_SOCKET
) -> socket.socket:
    """Open a sink beside a listening TCP socket. New connections are dropped as long as the sink is open.

    Close the listener first and the sink then: in the other order a connection would get in between, and be reset.

    Args:
        index: the number of sockets that are in the group already, which becomes the sink's index.
        others: the program for all segments that are no SYN.

    Raises:
        OSError: the sink cannot be bound, or this kernel does not steer. Nothing has changed then.
    """
    sink = socket.socket(listener.family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            sink.setsockopt(socket.SOL_SOCKET, option, 1)
        if listener.family == socket.AF_INET6:
            sink.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sink.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, _MAX_TTL)
        else:
            sink.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, _MAX_TTL)
        sink.bind(listener.getsockname())
        sink.listen(0)
        attach(listener, [*divert_syns(listener.family, index), *others])
        _fill(sink)
    except BaseException:
        sink.close()
        raise
    return sink


def divert_syns(family: int, index: int) -> list[Instruction]:
    """Return the beginning of a program: segments with SYN and without ACK go to the socket with this index."""
    flags = NET_OFFSET + IP_HEADER_BYTES[socket.AddressFamily(family)] + _TCP_FLAGS_OFFSET
    return [
        (0x30, 0, 0, flags & 0xFFFFFFFF),  # A = the byte with the flags
        (0x54, 0, 0, 0x12),  # A &= SYN | ACK
        (0x15, 0, 1, 0x02),  # SYN alone?
        (0x06, 0, 0, index),
    ]


def attach(sock: socket.socket, steps: Sequence[Instruction]) -> None:
    """Replace the program of the SO_REUSEPORT group of a socket. Raises OSError."""
    packed = array.array("B", b"".join(struct.pack("HBBI", *step) for step in steps))
    address, _ = packed.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, struct.pack("HP", len(steps), address))


def loopback_of(name: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the address by which this machine reaches a socket that is bound to `name` (with the scope of IPv6 as it is)."""
    return ({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name[0], name[0]), *name[1:])


def _fill(sink: socket.socket) -> None:
    """Occupy the only place in the accept queue of the sink with a connection of this process.

    Raises:
        OSError: the connection was made, but did not arrive at the sink.
    """
    with socket.socket(sink.family, socket.SOCK_STREAM) as client:
        client.settimeout(_FILL_TIMEOUT_S)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if sink.family == socket.AF_INET6:
            client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, _MAX_TTL)
        else:
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, _MAX_TTL)
        if client.connect_ex(loopback_of(sink.getsockname())) != 0:
            return  # a firewall, or no loopback interface: IP_MINTTL alone drops SYNs then
        arrived = select.poll()
        arrived.register(sink, select.POLLIN)
        if not arrived.poll(_FILL_TIMEOUT_S * 1000):
            raise OSError(errno.EOPNOTSUPP, "this kernel does not steer connections by SO_ATTACH_REUSEPORT_CBPF")
