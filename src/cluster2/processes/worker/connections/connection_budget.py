"""The number of connections that a worker may still accept, by its limit of descriptors (RLIMIT_NOFILE).

*Why before the limit.* At the limit accept(2) fails, and the connection waits in the accept queue or goes to another worker. In
mode `batch` libuv accepts, and it doesn't leave the connection there. It gives up a descriptor that it holds in reserve, then
accepts and closes all that is pending (`uv__emfile_trick`). So the worker closes libuv's server while the budget still covers all
that libuv may accept until the next tick. One turn of the loop takes the whole accept queue, and the turns of a tick before it
take some hundreds. Below that the worker accepts one connection at a time. It stops before the app lacks descriptors for its
files.

*How it is known.* Descriptors that aren't connections (files and sockets of the app, the loop's own) are measured now and then,
not counted. Between two measurements only the number of connections changes, which the engines know. So no request and no
connection pays for this.
"""

from __future__ import annotations

from ....linux import processes

_MAX_ACCEPTS_PER_TICK = 700
"""Connections that are accepted within a fast tick (10 ms) at most: each costs 15 µs or more."""
MAX_RESERVED_DESCRIPTORS = 64
"""Descriptors that are left to the app, if the limit is large enough."""
_RESERVE_DIVISOR = 8
"""The divisor of a small limit: one descriptor in so many is left to the app."""


class ConnectionBudget:
    """The number of connections that may be added, as of the last measurement.

    Attributes:
        burst: connections that may be accepted before the next check.
        limit: the soft limit of descriptors.
    """

    def __init__(self, accept_queues: int, backlog: int) -> None:
        """Measure once.

        Args:
            accept_queues: their number.
            backlog: the length of each.
        """
        # The kernel holds one connection more than the backlog says, and caps the backlog by net.core.somaxconn.
        self.burst = accept_queues * (min(backlog, processes.max_backlog()) + 1) + _MAX_ACCEPTS_PER_TICK
        self.limit = 0
        self._others = 0
        self.measure(0)

    def measure(self, connections: int) -> None:
        """Measure how many descriptors are open beside these connections."""
        self.limit = processes.file_limit()
        self._others = max(0, processes.open_descriptors() - connections)

    def remaining(self, connections: int) -> int:
        """Return how many more connections may be added to these; 0 or less: none."""
        reserve = min(MAX_RESERVED_DESCRIPTORS, self.limit // _RESERVE_DIVISOR)
        return self.limit - self._others - connections - reserve

    def is_scarce(self, remaining: int) -> bool:
        """Return whether libuv might accept more than the remaining connections before the next check."""
        return remaining < self.burst
