"""Where a worker's connections come from."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass, field

from ..engines.base import FedEngine
from ..kernel.handover import Inlet


@dataclass(slots=True, eq=False)
class Door:
    """A listening socket, with the engine behind it.

    Attributes:
        owned: nobody will accept from it after us.
    """

    listener: socket.socket
    engine: FedEngine
    tls: ssl.SSLContext | None
    owned: bool = True
    native: asyncio.Server | None = field(default=None, repr=False)

    @property
    def watched(self) -> socket.socket:
        """What epoll knows of it."""
        return self.listener


@dataclass(slots=True, eq=False)
class ReadyQueue:
    """The exit of a ready queue, with the engine behind it."""

    inlet: Inlet
    engine: FedEngine

    @property
    def watched(self) -> Inlet:
        """What epoll knows of it."""
        return self.inlet
