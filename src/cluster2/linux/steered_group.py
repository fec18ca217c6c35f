"""A group of listening sockets on one address, with a program that selects which of them gets the next connection.

This is for engines with their own accept loop. Such a loop takes all that is pending at once, and can't stop taking without
stopping altogether. So each worker gets a socket of its own, a *place* in the group. New connections are steered around a worker
that should take no more. It goes on accepting the connections that are on their way to it, and stops when there are none.

The kernel facts behind this (Linux 6.18, IPv4 and IPv6; each has a test in tests/linux/test_steering.py):

- **The group grows out of an ordinary listener.** SO_REUSEPORT may be set on a socket that is bound and listens already: the
  kernel compares flags when the *next* one binds. So the master binds without the flag, which reports correctly whether the port
  is free. (With it, a second master of the same user binds the same port without an error.) The master opens the group when it is
  known that one is needed. The port is never given up in between, and the queue is kept. A process that binds without the flag is
  refused as before.
- **The index of a socket in the group is the order of `listen()`**, and the ordinary listener's is 0. When one is closed, the
  last one moves to its index. So none is closed before all are. Another process of the same user that sets the flag too may join
  at the end. It gets no connections, but a place that is opened later would not have the expected index. The proof below detects
  that.
- **SO_ATTACH_REUSEPORT_CBPF** sets a classic BPF program for the whole group, without a privilege. Setting another one replaces
  it at once, for all sockets (25 µs). It runs once for each SYN, and returns an index. For an index that is out of range the
  kernel falls back to its hash over *all* sockets, those without a worker included. So the program must never return one.
- **A connection belongs to the socket that was chosen at its SYN.** Its handshake can end long after the program was replaced,
  and it appears in the queue of the old socket then. `waiting` reports the length of that queue (TCP_INFO: `tcpi_unacked` of a
  listener).
- **The queue belongs to the socket, not to the process that accepts from it.** As long as the master holds the socket, a worker
  may die: the next worker with that place serves the queued connections.

The program uses the client's port, halved, since Linux assigns even ones. So with SYN cookies, where a place is chosen again for
the last ACK, it is the same one. The data begins behind the TCP header here, and the network header is reached by a negative
offset. No such program can count, so the distribution is random: of 200 connections over 4 places the fullest has 56 in the mean.
(Ports in a row would go round in turn, but the kernel skips some at random.)

Each place is proved: `grow` connects to each new socket through the program, and accepts the connection there. So a kernel that
can't steer (a sandbox's, for one) is found out at start. Opening and proving a place takes 0.1 to 1 ms. It waits for nothing:
over loopback the whole handshake happens within connect(2). (Of 15,000, some beside four processes that compute and three that
fill the loopback, none was late.) Only a proof that fails takes its whole timeout.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Sequence
from typing import Final

from cluster2.errors import ConfigError
from cluster2.linux.listeners import Listener, bound_unsent, queue_length
from cluster2.linux.syn_sink import (
    IP_HEADER_BYTES,
    NET_OFFSET,
    Instruction,
    attach,
    divert_syns,
    loopback_of,
    open_sink,
)

MAX_STEERED_SLOTS: Final = 2000
"""A program may have 4096 instructions; each place takes two."""
_PROOF_TIMEOUT_S: Final = 0.25
"""Seconds that a connection of the process to itself may take."""
_DOUBT: Final = 10
"""A kernel that can't steer passes a proof with a probability of one to two to the power of this number."""
_WAY_OUT: Final = "choose engine http, which needs no steering"


class SteeredGroup:
    """The sockets of one address, in the order of their places.

    Attributes:
        listener: place 0, from which the group grew; it isn't closed with the group.
    """

    def __init__(self, listener: Listener, backlog: int) -> None:
        """Begin with place 0, and nothing steered.

        Raises:
            ConfigError: a socket that can't be steered: a Unix socket, or one that was inherited.
        """
        if listener.sock.family not in (socket.AF_INET, socket.AF_INET6):
            raise ConfigError(f"{listener.address} can't be steered: it is no TCP address")
        if not listener.owned:
            raise ConfigError(
                f"{listener.address} can't be steered: it was inherited, and its queue is another process's; bind a TCP address"
            )
        self.listener = listener
        self._backlog = backlog
        self._more: list[socket.socket] = []
        self._steered: tuple[int, ...] = (0,)
        self._sink: socket.socket | None = None

    def __len__(self) -> int:
        """Return how many places there are."""
        return 1 + len(self._more)

    def at(self, place: int) -> socket.socket:
        """Return the socket of a place. Raises IndexError."""
        return self._more[place - 1] if place else self.listener.sock

    def grow(self, places: int, timeout_s: float = _PROOF_TIMEOUT_S) -> None:
        """Have at least so many places, and prove that the new ones can be steered to.

        Args:
            timeout_s: for how long this may block, in seconds, if a place can't be proved.
        Raises:
            ConfigError: the kernel can't, or another process has joined the group; the places that were proved remain.
        """
        if places > MAX_STEERED_SLOTS:
            raise ConfigError(
                f"{self.listener.address}: {places} places are wanted, {MAX_STEERED_SLOTS} can be steered"
            )
        if self._sink is not None and places > len(self):
            raise ConfigError(f"{self.listener.address}: no place can be opened: the listener is shut")
        first = self.listener.sock
        try:
            if len(self) < places:
                first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            while len(self) < places:
                self._open(first, timeout_s)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"{self.listener.address} can't be steered: {reason}; {_WAY_OUT}") from error
        finally:
            if len(self) > 1:
                self.steer(self._steered)

    def steer(self, places: Sequence[int]) -> None:
        """Send each new connection to one of these places from now on, in turn.

        Raises:
            IndexError: there is no such place.
            ValueError: there is none at all.
        """
        if not places:
            raise ValueError("connections must go somewhere")
        if max(places) >= len(self):
            raise IndexError(f"there is no place {max(places)}")
        self._steered = tuple(places)
        if len(self) > 1:
            self._attach(self._program())

    def waiting(self, place: int) -> int:
        """Return how many connections wait at a place to be accepted."""
        return queue_length(self.at(place))

    def shut_door(self) -> None:
        """Drop new connections until `close`, as `Listener.shut_door` does, at all places at once.

        Raises:
            OSError: the listener stays open.
        """
        if self._sink is None:
            others = program(self._steered, self.listener.sock.family)
            self._sink = open_sink(self.listener.sock, len(self), others)

    def close(self) -> None:
        """Close all places but the first, which belongs to the listener. Queued connections of these places are reset."""
        for sock in self._more:
            sock.close()
        self._more.clear()
        if self._sink is not None:
            self._sink.close()
            self._sink = None

    def _program(self) -> list[Instruction]:
        family = self.listener.sock.family
        shut = [] if self._sink is None else divert_syns(family, len(self))
        return [*shut, *program(self._steered, family)]

    def _open(self, first: socket.socket, timeout_s: float) -> None:
        place = len(self)
        sock = socket.socket(first.family, socket.SOCK_STREAM)
        self._more.append(sock)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if first.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound_unsent(sock)
            sock.bind(first.getsockname())
            sock.listen(self._backlog)
            sock.setblocking(False)
            self._prove(place, timeout_s)
        except BaseException:
            # It is the last one, so no other changes its index.
            self._more.pop().close()
            raise

    def _prove(self, place: int, timeout_s: float) -> None:
        """Connect to a new place, to which nothing is steered yet, and find the connection there.

        With few places the kernel's hash would choose the right one too often. With each more the proof needs fewer connections.
        """
        for _ in range(max(1, _DOUBT // place.bit_length())):
            if not self._reached(place, timeout_s):
                raise ConfigError(
                    f"{self.listener.address} can't be steered: a connection to place {place} didn't arrive there; "
                    f"another server shares the port, or this kernel can't steer: {_WAY_OUT}"
                )

    def _reached(self, place: int, timeout_s: float) -> bool:
        name = loopback_of(self.listener.sock.getsockname())
        with socket.socket(self.listener.sock.family, socket.SOCK_STREAM) as client:
            # A linger of 0 makes close(2) reset the connection: no port stays in TIME_WAIT.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.setblocking(False)
            client.bind((name[0], 0, *name[2:]))
            mine = client.getsockname()
            self._attach(program(self._steered, client.family, probe=(mine[1], place)))
            with contextlib.suppress(BlockingIOError):  # raised also when the connection is made at once
                client.connect(name)
            return bool(self._arrived(place, timeout_s) == mine)

    def _arrived(self, place: int, timeout_s: float) -> tuple[object, ...] | None:
        """Take the connection that has come to a place, and return its peer."""
        sock = self.at(place)
        waiting = select.poll()
        waiting.register(sock, select.POLLIN)
        if not waiting.poll(timeout_s * 1000):
            return None
        taken, peer = sock.accept()
        taken.close()
        return tuple(peer)

    def _attach(self, steps: Sequence[Instruction]) -> None:
        attach(self.listener.sock, steps)


def program(places: Sequence[int], family: int, probe: tuple[int, int] | None = None) -> list[Instruction]:
    """Return the program that sends connections to these places in turn.

    Args:
        probe: a client's port, and the place that it alone is sent to.
    """
    port = NET_OFFSET + IP_HEADER_BYTES[socket.AddressFamily(family)]
    steps: list[Instruction] = [(0x28, 0, 0, port & 0xFFFFFFFF)]  # A = the client's port
    if probe is not None:
        steps += [(0x15, 0, 1, probe[0]), (0x06, 0, 0, probe[1])]
    steps += [(0x74, 0, 0, 1), (0x94, 0, 0, len(places))]  # A >>= 1; A %= n
    for turn, place in enumerate(places):
        steps += [(0x15, 0, 1, turn), (0x06, 0, 0, place)]  # A == turn: return the place
    return [*steps, (0x06, 0, 0, places[0])]
