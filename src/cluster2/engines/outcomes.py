"""How requests end, counted in the same way by each engine. `docs/metrics.md` has the definitions for users.

- A *request* counts once, when it has ended: its response is complete, the server has refused it, or its connection is gone. So
  streams that are cut count, and `request_threshold` sees them. What has begun and hasn't ended is under way. A websocket's
  request is its handshake: it ends with the answer to that.
- Its *status* is the one that was sent; `CLIENT_CLOSED_STATUS` if the client left before any was. Its *class* is the first digit.
- It is an *error* if its class is 5xx, unless the server itself has refused it (501, 505: the client's fault), or if the app
  failed in another way: it raised, or broke the protocol, when the status was sent already, or when the client had gone.
- It is a *disconnect* if its connection ended before the response was complete, and not because the app failed.

An engine counts with one addition a request, by status: `by_status[status] += 1`. Classes and sums are made on demand.
No log record is needed for any of it, since an app can silence loggers.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

CLIENT_CLOSED_STATUS = 499
"""The status of a request whose client left before a status was sent, as nginx has it."""
STATUS_CLASSES = 5
"""1xx to 5xx."""


class Outcomes:
    """What has become of the requests of one engine.

    Attributes:
        by_status: how many have ended with which status.
        failed: errors whose status doesn't say so.
        refused: requests that the server has refused with 5xx: no errors.
        disconnects: requests whose connection ended before the response was complete; None: the engine can't know.
    """

    __slots__ = ("by_status", "disconnects", "failed", "refused")

    def __init__(self, *, sees_clients: bool = True) -> None:
        """Nothing has ended.

        Args:
            sees_clients: disconnects are known.
        """
        self.by_status: defaultdict[int, int] = defaultdict(int)
        self.failed = self.refused = 0
        self.disconnects: int | None = 0 if sees_clients else None

    def total(self) -> int:
        """Return how many have ended."""
        return sum(self.by_status.values())

    def errors(self) -> int:
        """Return how many were errors."""
        return self.by_class()[-1] - self.refused + self.failed

    def by_class(self) -> Sequence[int]:
        """Return how many have ended with a status of 1xx, 2xx, and so on to 5xx."""
        counts = [0] * STATUS_CLASSES
        for status, count in self.by_status.items():
            # A client has to take a class that it doesn't know for 5xx (RFC 9110, 15).
            counts[status // 100 - 1 if 100 <= status < 600 else STATUS_CLASSES - 1] += count
        return counts


def add(one: Sequence[int], other: Sequence[int]) -> Sequence[int]:
    """Return the sums, class by class."""
    return [first + second for first, second in zip(one, other, strict=True)]


def reading(counter: itertools.count[int]) -> int:
    """Return what a counter will give next, without taking it. A step of one is atomic, so that threads can count by it."""
    state: Any = counter.__reduce__()[1]
    return int(state[0])
