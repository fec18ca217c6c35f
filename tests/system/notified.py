"""A service manager's end of sd_notify(3)."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Self

from tests.system.harness import PATIENCE


class Manager:
    """Receives what a service says, in order.

    Attributes:
        address: as NOTIFY_SOCKET has it.
        said: the datagrams so far, each as a dictionary.
    """

    def __init__(self, path: Path | None) -> None:
        """Listen at a path, or in the abstract namespace."""
        self.address = str(path) if path is not None else f"@cluster2-test-{os.getpid()}-{time.monotonic_ns()}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address.replace("@", "\0", 1))
        self._socket.settimeout(PATIENCE)
        self.said: list[dict[str, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def next(self, *, but: str = "") -> dict[str, str]:
        """The next datagram; those that have `but` are passed over."""
        while True:
            lines = self._socket.recv(65536).decode().splitlines()
            message = dict(line.split("=", 1) for line in lines)
            self.said.append(message)
            if not but or but not in message:
                return message
