"""The idle connections of the keeper, and when each of them expires.

Deadlines are kept in buckets of a second: adding, removing and expiring are a dictionary operation each, nothing is sorted,
and a keeper in which nothing happens wakes only when the next bucket is due.
"""

from __future__ import annotations

from collections.abc import Iterator

NO_DEADLINE = 1 << 40
"""A second that is never reached: for connections without a time limit."""


class IdleConnections:
    """The idle connections, by descriptor. Invariant: each is in exactly one bucket, that of its deadline."""

    def __init__(self) -> None:
        self._deadline: dict[int, int] = {}
        self._bucket: dict[int, set[int]] = {}
        self._about: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._deadline)

    def __contains__(self, descriptor: int) -> bool:
        return descriptor in self._deadline

    def add(self, descriptor: int, about: tuple[int, int], deadline: float) -> None:
        """Add a connection.

        Args:
            about: its app's index and its address family.
            deadline: on the caller's clock, in seconds; it expires in the first whole second after that.
        """
        second = min(int(deadline) + 1, NO_DEADLINE)
        self._deadline[descriptor] = second
        self._bucket.setdefault(second, set()).add(descriptor)
        # One tuple for all connections of an app: 10,000 connections would have 10,000 of them.
        self._about[descriptor] = _shared.setdefault(about, about)

    def remove(self, descriptor: int) -> tuple[int, int]:
        """Remove a connection. Returns its app's index and its address family. Raises KeyError if it isn't there."""
        second = self._deadline.pop(descriptor)
        bucket = self._bucket[second]
        bucket.discard(descriptor)
        if not bucket:
            del self._bucket[second]
        return self._about.pop(descriptor)

    def expired(self, now: float) -> list[int]:
        """Return the connections whose deadline has passed; they stay until they are removed."""
        return [each for second, bucket in self._bucket.items() if second <= now for each in bucket]

    def next_deadline(self) -> float | None:
        """Return when the next one expires; None: never."""
        first = min(self._bucket, default=NO_DEADLINE)
        return None if first >= NO_DEADLINE else float(first)

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._deadline))


_shared: dict[tuple[int, int], tuple[int, int]] = {}
