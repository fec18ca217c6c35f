"""How many more connections a worker can have, by its limit of descriptors (RLIMIT_NOFILE).

At the limit accept(2) fails, and the connection waits in the accept queue or goes to another worker. libuv, which accepts while
a worker is eager, doesn't leave it there: it gives up a descriptor that it has in reserve, and accepts and closes all that is
pending (`uv__emfile_trick`). So its server must be closed while there is still room for all that it may accept until the next
tick: one turn of the loop takes the whole accept queue, and the turns of a tick before it some hundreds. From there on
connections are taken one at a time, and none by which the app would lack descriptors for its own files.

What isn't a connection (files and sockets of the app, the loop's own) is measured now and then, not counted. Between two
measurements the number of connections, which the engines know, tells the rest: no request and no connection pays for this.
"""

from __future__ import annotations

from ....linux import processes

_MAX_ACCEPTS_PER_TICK = 700
"""Connections that are accepted within a quick tick at most: each costs 15 µs or more."""
MAX_RESERVED_DESCRIPTORS = 64
"""Descriptors that are left to the app, of a limit that is large enough for that."""
_RESERVE_SHARE = 8
"""Of a small limit the app is left one of so many."""


class ConnectionBudget:
    """The room for connections, as of the last measurement.

    Attributes:
        burst: connections that may be accepted before the next look.
        limit: how many descriptors there may be.
    """

    def __init__(self, accept_queues: int, backlog: int) -> None:
        """Measure once.

        Args:
            accept_queues: how many there are.
            backlog: the length of each.
        """
        self.burst = accept_queues * (min(backlog, processes.max_backlog()) + 1) + _MAX_ACCEPTS_PER_TICK
        self.limit = 0
        self._others = 0
        self.measure(0)

    def measure(self, connections: int) -> None:
        """Find out how many descriptors are open beside so many connections."""
        self.limit = processes.file_limit()
        self._others = max(0, processes.open_descriptors() - connections)

    def remaining(self, connections: int) -> int:
        """Return how many more connections there may be beside these; 0 or less: none."""
        reserve = min(MAX_RESERVED_DESCRIPTORS, self.limit // _RESERVE_SHARE)
        return self.limit - self._others - connections - reserve

    def is_scarce(self, room: int) -> bool:
        """Return whether accepting all that is pending, again and again until the next look, might take more than this room."""
        return room < self.burst
