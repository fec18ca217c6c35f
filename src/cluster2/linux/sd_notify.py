"""Send the service manager notifications by the protocol of sd_notify(3), for units of `Type=notify` and `notify-reload`.

A message is one datagram to the Unix socket that `NOTIFY_SOCKET` names, lines of `NAME=value`. The name begins with `/`, or with
`@` for the abstract namespace, where the kernel wants a zero byte in its place. Other address families (vsock, for virtual
machines) aren't supported.

- `READY=1`: the service serves. Sent again after each `RELOADING=1`.
- `RELOADING=1` has to come with `MONOTONIC_USEC`, the time on CLOCK_MONOTONIC, in the same datagram. systemd compares it with the
  moment when it sent the HUP, so that an earlier reload doesn't count as the response (systemd 253).
- `STOPPING=1`: the service stops. From then on `TimeoutStopSec` bounds it.
- `STATUS=`: a line for people.
- `WATCHDOG=1`: a heartbeat. `WATCHDOG_USEC` sets its interval, and `WATCHDOG_PID`, if present, the process that must send it. The
  manual advises half of that time.
- `MAINPID=`: the process of the service, if systemd has started another one (`cluster2 start`).

The variables are removed from the environment: a process that inherits them could send messages for the master, and the app and
its programs may call sd_notify for their own reasons. The socket doesn't block, and a message that it doesn't take is dropped:
the manager may be slow or gone, and no message is worth waiting for in the loop that supervises. A dropped `WATCHDOG=1` is
followed by another in time.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import MutableMapping

logger = logging.getLogger("cluster2.master")

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceNotifier:
    """The connection to the service manager; without one every call does nothing.

    Attributes:
        watchdog: seconds within which a heartbeat must come; 0: none is expected.
    """

    def __init__(self, address: str | None, watchdog: float = 0.0) -> None:
        """Send nothing yet.

        Args:
            address: as in NOTIFY_SOCKET; None or no address of a Unix socket: no message is ever sent.
        """
        self.watchdog = watchdog if address else 0.0
        self._socket: socket.socket | None = None
        if not address:
            return
        if address[0] not in "/@":
            logger.warning(
                "NOTIFY_SOCKET=%s: neither a path nor an abstract name; the service manager gets no messages", address
            )
            self.watchdog = 0.0
            return
        self._address = "\0" + address[1:] if address[0] == "@" else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> ServiceNotifier:
        """Return the notifier that the environment describes, and remove the variables."""
        address, usec, pid = (environ.pop(name, "") for name in _VARIABLES)
        meant = not pid or pid == str(os.getpid())
        try:
            watchdog = int(usec) / 1e6 if usec and meant else 0.0
        except ValueError:
            logger.warning("WATCHDOG_USEC=%s: not a number; no heartbeats are sent", usec)
            watchdog = 0.0
        return cls(address or None, max(0.0, watchdog))

    def ready(self, status: str, *, main: int | None = None) -> None:
        """Report that the service serves (again).

        Args:
            main: the process of the service; None: systemd knows it.
        """
        self._send("READY=1", f"STATUS={status}", *([] if main is None else [f"MAINPID={main}"]))

    def reloading(self, status: str) -> None:
        """Report that new code or configuration is being loaded; `ready` is to follow."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """Report that the service stops."""
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Send a line for people."""
        self._send(f"STATUS={status}")

    def alive(self) -> None:
        """Send a heartbeat, if any is expected."""
        if self.watchdog:
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket; later calls do nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        message = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            self._socket.sendto(message.encode(errors="backslashreplace"), self._address)
        except OSError as error:  # full, gone, not allowed: no reason to disturb the master
            logger.debug("the service manager didn't get %r: %s", message, error)
