"""Counts of how requests end, by the same definitions for each engine. `docs/metrics.md` has them for users.

- A *request* counts once, when it has ended: its response is complete, the server has refused it, or its connection is gone. So
  streams that are cut count, and `request_threshold` includes them. A websocket's request is its handshake, which ends
  with the response to it. A request that has begun and hasn't ended is under way.
- Its *status* is the one that was sent, or `CLIENT_CLOSED_STATUS` if the client left before that. Its *class* is the first digit.
- It is an *error* if its class is 5xx, unless the server itself has refused it (501, 505: the client's fault). It is also
  an error if the app raised or broke the protocol after the status was sent, or after the client had gone.
- It is a *disconnect* if its connection ended before the response was complete, and not because the app failed.

An engine counts with one addition a request: `by_status[status] += 1`. Classes and sums are made on demand. No figure
depends on a log record, since an app can silence loggers.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

CLIENT_CLOSED_STATUS = 499
"""The status of a request whose client left before a status was sent, as in nginx."""
STATUS_CLASSES = 5
"""The number of status classes, 1xx to 5xx."""


class Outcomes:
    """The outcomes of one engine's requests.

    Attributes:
        by_status: the number of requests that have ended, by status.
        failed: errors whose status isn't 5xx.
        refused: requests that the server has refused with 5xx, which are no errors.
        disconnects: requests whose connection ended before the response was complete; None: the engine can't know.
    """

    __slots__ = ("by_status", "disconnects", "failed", "refused")

    def __init__(self, *, sees_clients: bool = True) -> None:
        """Begin with no request.

        Args:
            sees_clients: the engine knows which clients have left.
        """
        self.by_status: defaultdict[int, int] = defaultdict(int)
        self.failed = self.refused = 0
        self.disconnects: int | None = 0 if sees_clients else None

    def total(self) -> int:
        """Return how many requests have ended."""
        return sum(self.by_status.values())

    def errors(self) -> int:
        """Return how many of them were errors."""
        return self.by_class()[-1] - self.refused + self.failed

    def by_class(self) -> Sequence[int]:
        """Return how many have ended with a status of 1xx, 2xx, and so on to 5xx."""
        counts = [0] * STATUS_CLASSES
        for status, count in self.by_status.items():
            # A client has to treat a status below 100 or above 599 as a 5xx (RFC 9110, 15).
            counts[status // 100 - 1 if 100 <= status < 600 else STATUS_CLASSES - 1] += count
        return counts


def add(one: Sequence[int], other: Sequence[int]) -> Sequence[int]:
    """Return the sums, class by class."""
    return [first + second for first, second in zip(one, other, strict=True)]


def reading(counter: itertools.count[int]) -> int:
    """Return the next value of a counter without taking it. Threads count by such counters, since a step is atomic."""
    state: Any = counter.__reduce__()[1]
    return int(state[0])
