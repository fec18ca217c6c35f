"""A group of listening sockets on one address, of which a program of ours says who takes the next connection.

For engines whose accept loop can't be ours. They take all that is pending at once, and can't stop taking without stopping
altogether. So each worker gets a socket, a *place* in the group, of its own; whoever is to take nothing more is steered
around, goes on accepting what is on its way to it, and stops when nothing is.

Facts that this stands on (Linux 6.18, IPv4 and IPv6; each has a test in tests/linux/test_steering.py):

- **The group grows out of an ordinary listener.** SO_REUSEPORT may be set on a socket that is bound and listens already; the
  kernel compares flags when the *next* one binds. So the master binds without the flag, which says honestly whether the port
  is free (with it, a second master of the same user binds the same port without an error), and opens the group when it is
  known that one is needed. The port is never given up in between, and what waits in the queue stays there. Who binds
  without the flag is refused as before.
- **The index of a socket in the group is the order of `listen()`**, the ordinary listener's is 0. When one is closed the last
  one moves to its index, so none ever is, before all are. A stranger of the same user who sets the flag too may join at the
  end; he gets nothing, but a place that is opened later would not be where it is thought to be: therefore the proof.
- **SO_ATTACH_REUSEPORT_CBPF** sets a classic BPF program for the whole group; no privilege needed. To set another replaces it
  at once, for all sockets (25 µs). It runs once for each SYN, and returns an index. One that is out of range falls back to
  the kernel's hash over *all* sockets, those that nobody serves included: the program must never return one.
- **A connection belongs to the socket that was chosen at its SYN.** Its handshake can end long after the program was
  replaced, and it appears in the queue of the old socket then. `waiting` tells (TCP_INFO: `tcpi_unacked` is the length of
  a listener's queue).
- **The queue belongs to the socket, not to who accepts from it.** As long as the master holds the socket a worker may die: what
  waited is served by whoever has that place next.

The program looks at the client's port, halved, since Linux gives out even ones. So with SYN cookies, where a place is chosen
again for the last ACK, it is the same one. The data begins behind the TCP header here; the network header is reached by a
negative offset. No such program can count, so connections are spread as by chance: of 200 over 4 places the fullest has 56 in the
mean. (Ports in a row would go round in turn; but the kernel skips some at random.)

A proof, not a belief: `grow` connects to each new socket through the program, and accepts the connection there. A kernel
that can't do this (a sandbox's, for one) is found out at start. To open and prove a place takes 0.1 to 1 ms. It waits for
nothing: over loopback the whole handshake happens within connect(2) (of 15,000, some beside four processes that compute and
three that fill the loopback, none was late). Only a proof that fails takes the time that is given to it.
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
PROOF_TIMEOUT_S: Final = 0.25
"""Seconds that a connection to ourselves may take, where there is time."""
_DOUBT: Final = 10
"""The chance that a kernel that can't steer passes the proof of a place is one to two to the power of that."""
_WAY_OUT: Final = "choose engine http, which needs no steering"


class SteeredGroup:
    """The sockets of one address, in the order of their places.

    Attributes:
        listener: place 0, from which the group grew; it isn't closed with the group.
    """

    def __init__(self, listener: Listener, backlog: int) -> None:
        """Only place 0 so far, and nothing steered.

        Raises:
            ConfigError: a socket that can't be steered: a Unix socket, or one that was inherited.
        """
        if listener.sock.family not in (socket.AF_INET, socket.AF_INET6):
            raise ConfigError(f"{listener.address} can't be steered: it is no TCP address")
        if not listener.owned:
            raise ConfigError(
                f"{listener.address} can't be steered: it was inherited, and its queue is somebody else's; bind a TCP address"
            )
        self.listener = listener
        self._backlog = backlog
        self._more: list[socket.socket] = []
        self._steered: tuple[int, ...] = (0,)
        self._sink: socket.socket | None = None

    def __len__(self) -> int:
        """How many places there are."""
        return 1 + len(self._more)

    def at(self, place: int) -> socket.socket:
        """The socket of a place. Raises IndexError."""
        return self._more[place - 1] if place else self.listener.sock

    def grow(self, places: int, patience: float = PROOF_TIMEOUT_S) -> None:
        """Have at least so many places, and prove that the new ones can be steered to.

        Args:
            patience: for how long this may block, in seconds, where a place can't be proved.

        Raises:
            ConfigError: the kernel can't, or a stranger is in the way; the places that were proved remain.
        """
        if places > MAX_STEERED_SLOTS:
            raise ConfigError(
                f"{self.listener.address}: {places} places are wanted, {MAX_STEERED_SLOTS} can be steered"
            )
        if self._sink is not None and places > len(self):
            raise ConfigError(f"{self.listener.address}: no place can be opened behind the shut door")
        first = self.listener.sock
        try:
            if len(self) < places:
                first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            while len(self) < places:
                self._open(first, patience)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"{self.listener.address} can't be steered: {reason}; {_WAY_OUT}") from error
        finally:
            if len(self) > 1:
                self.steer(self._steered)

    def steer(self, places: Sequence[int]) -> None:
        """From now on each new connection goes to one of these places, in turn.

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
        """How many connections wait at a place to be accepted."""
        return queue_length(self.at(place))

    def shut_door(self) -> None:
        """Drop new connections until `close`, as `Listener.shut_door` does, at all places at once.

        Raises:
            OSError: the door stays open.
        """
        if self._sink is None:
            others = program(self._steered, self.listener.sock.family)
            self._sink = open_sink(self.listener.sock, len(self), others)

    def close(self) -> None:
        """Close all places but the first, whose owner is somebody else; what waits there is reset."""
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

    def _open(self, first: socket.socket, patience: float) -> None:
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
            self._prove(place, patience)
        except BaseException:
            # It is the last one, so no other changes its index.
            self._more.pop().close()
            raise

    def _prove(self, place: int, patience: float) -> None:
        """Connect to a new place, which nobody is steered to yet, and find the connection there.

        Of few places a hash would choose the right one too often: with each more the proof needs fewer connections.
        """
        for _ in range(max(1, _DOUBT // place.bit_length())):
            if not self._reached(place, patience):
                raise ConfigError(
                    f"{self.listener.address} can't be steered: a connection to place {place} didn't arrive there; "
                    f"another server shares the port, or this kernel can't steer: {_WAY_OUT}"
                )

    def _reached(self, place: int, patience: float) -> bool:
        name = loopback_of(self.listener.sock.getsockname())
        with socket.socket(self.listener.sock.family, socket.SOCK_STREAM) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.setblocking(False)
            client.bind((name[0], 0, *name[2:]))
            mine = client.getsockname()
            self._attach(program(self._steered, client.family, probe=(mine[1], place)))
            with contextlib.suppress(BlockingIOError):  # says so even if it is done
                client.connect(name)
            return bool(self._arrived(place, patience) == mine)

    def _arrived(self, place: int, patience: float) -> tuple[object, ...] | None:
        """Take the connection that has come to a place; who it is from."""
        sock = self.at(place)
        waiting = select.poll()
        waiting.register(sock, select.POLLIN)
        if not waiting.poll(patience * 1000):
            return None
        taken, peer = sock.accept()
        taken.close()
        return tuple(peer)

    def _attach(self, steps: Sequence[Instruction]) -> None:
        attach(self.listener.sock, steps)


def program(places: Sequence[int], family: int, probe: tuple[int, int] | None = None) -> list[Instruction]:
    """What sends connections to these places in turn.

    Args:
        probe: a client's port, and the place that it alone is sent to.
    """
    port = NET_OFFSET + IP_HEADER_BYTES[socket.AddressFamily(family)]
    steps: list[Instruction] = [(0x28, 0, 0, port & 0xFFFFFFFF)]  # A = the half-word there
    if probe is not None:
        steps += [(0x15, 0, 1, probe[0]), (0x06, 0, 0, probe[1])]
    steps += [(0x74, 0, 0, 1), (0x94, 0, 0, len(places))]  # A >>= 1; A %= n
    for turn, place in enumerate(places):
        steps += [(0x15, 0, 1, turn), (0x06, 0, 0, place)]  # A == turn: return the place
    return [*steps, (0x06, 0, 0, places[0])]
