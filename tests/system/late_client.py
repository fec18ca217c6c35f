"""A TCP client of our own, which sends the last ACK of its handshake when the test says so.

The kernel's would send it at once. So this one lives behind a TUN device, in a network namespace of the test's own: what the
cluster's kernel sends to the network 10.77.0.0/24 is read here, packet by packet, and answered by hand.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

SERVER = "10.77.0.1"
CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
PATIENCE = 20.0


class Network:
    """A namespace with the address `SERVER` on a TUN device that we read and write. Needs root."""

    def __init__(self) -> None:
        self.name = f"cluster2-{os.getpid()}"
        _ip("netns", "add", self.name)
        self._tun = -1
        try:
            opener = threading.Thread(target=self._open)  # a thread may live in another namespace than its process
            opener.start()
            opener.join()
            for words in (f"addr add {SERVER}/24 dev tun0", "link set tun0 up", "link set lo up"):
                _ip("-n", self.name, *words.split())
        except BaseException:
            self.close()
            raise
        self._clients: dict[int, Client] = {}

    def argv(self, command: list[str]) -> list[str]:
        """A command line that runs in the namespace."""
        return ["ip", "netns", "exec", self.name, *command]

    def client(self, port: int) -> Client:
        """One that hasn't sent anything yet."""
        client = Client(self, port, 40000 + len(self._clients))
        self._clients[client.own] = client
        return client

    def send(self, packet: bytes) -> None:
        os.write(self._tun, packet)

    def pump(self, seconds: float) -> None:
        """Read what comes for the clients, for at most so long; returns after the first packet."""
        if select.select([self._tun], [], [], seconds)[0]:
            packet = os.read(self._tun, 65536)
            if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_TCP:
                segment = packet[(packet[0] & 15) * 4 : int.from_bytes(packet[2:4], "big")]
                client = self._clients.get(int.from_bytes(segment[2:4], "big"))
                if client is not None:
                    client.take(segment)

    def close(self) -> None:
        if self._tun >= 0:
            os.close(self._tun)
        _ip("netns", "del", self.name)

    def _open(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        namespace = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            if libc.setns(namespace, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            self._tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(self._tun, TUNSETIFF, struct.pack("16sH14x", b"tun0", IFF_TUN | IFF_NO_PI))
        finally:
            os.close(namespace)


@dataclass
class Client:
    """One connection.

    Attributes:
        received: what the server has sent so far, in order.
        reset: it has refused us.
        ended: it has closed its side.
    """

    network: Network
    port: int
    own: int
    received: bytes = b""
    reset: bool = False
    ended: bool = False
    _acknowledged: bool = False
    _next: int = 1000
    _expected: int = 0
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def syn(self) -> None:
        """Begin a handshake, and wait for the server's answer."""
        self._send(SYN)
        self._next += 1
        self.wait(lambda: bool(self._expected), "the answer to a SYN")

    def ask(self, request: bytes) -> None:
        """End the handshake, and send a request."""
        self._acknowledged = True
        self._send(ACK)
        self.say(request)

    def say(self, text: bytes) -> None:
        """Send more."""
        self._send(ACK | PSH, text)
        self._next += len(text)

    def wait(self, done: Callable[[], bool], why: str) -> None:
        """Read until `done()`, or the server has reset the connection."""
        deadline = time.monotonic() + PATIENCE
        while not done() and not self.reset:
            assert time.monotonic() < deadline, f"waited for {why}"
            self.network.pump(0.1)

    def answer(self) -> bytes:
        """All that the server sends until it closes; empty if it resets the connection."""
        self.wait(lambda: self.ended, "the end of an answer")
        return b"" if self.reset else self.received

    def take(self, segment: bytes) -> None:
        """What the server sent."""
        number = int.from_bytes(segment[4:8], "big")
        flags, payload = segment[13], segment[(segment[12] >> 4) * 4 :]
        if flags & RST:
            self.reset = True
        elif flags & SYN:
            self._expected = number + 1
        elif number == self._expected and self._acknowledged:
            self.received += payload
            self._expected += len(payload) + bool(flags & FIN)
            self.ended = self.ended or bool(flags & FIN)
            if payload or flags & FIN:
                self._send(ACK)

    def _send(self, flags: int, payload: bytes = b"") -> None:
        source, target = socket.inet_aton("10.77.0.2"), socket.inet_aton(SERVER)
        numbers = (self._next, self._expected if flags & ACK else 0)
        head = struct.pack("!HHIIBBHHH", self.own, self.port, *numbers, 5 << 4, flags, 65535, 0, 0)
        pseudo = source + target + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(head) + len(payload))
        total = _checksum(pseudo + head + payload)
        segment = head[:16] + struct.pack("!H", total) + head[18:] + payload
        ip = struct.pack(
            "!BBHHHBBH4s4s",
            0x45,
            0,
            20 + len(segment),
            next(self._numbers),
            0,
            64,
            socket.IPPROTO_TCP,
            0,
            source,
            target,
        )
        self.network.send(ip[:10] + struct.pack("!H", _checksum(ip)) + ip[12:] + segment)


def _checksum(data: bytes) -> int:
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
