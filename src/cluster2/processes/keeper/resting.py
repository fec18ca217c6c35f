"""Which connections rest here, and when each has been idle for too long.

Deadlines are kept in buckets of a second: adding, removing and expiring are a dictionary operation each, nothing is sorted,
and a keeper in which nothing happens wakes only when the next bucket is due.
"""

from __future__ import annotations

from collections.abc import Iterator

NO_DEADLINE = 1 << 40
"""A second that never comes: for connections without a time limit."""


class IdleConnections:
    """Connections at rest, by descriptor. Invariant: each is in exactly one bucket, that of its deadline."""

    def __init__(self) -> None:
        self._deadline: dict[int, int] = {}
        self._bucket: dict[int, set[int]] = {}
        self._about: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._deadline)

    def __contains__(self, descriptor: int) -> bool:
        return descriptor in self._deadline

    def add(self, descriptor: int, about: tuple[int, int], deadline: float) -> None:
        """It rests from now on.

        Args:
            about: its app's index and its address family.
            deadline: on the caller's clock, in seconds; it expires in the first whole second after that.
        """
        second = min(int(deadline) + 1, NO_DEADLINE)
        self._deadline[descriptor] = second
        self._bucket.setdefault(second, set()).add(descriptor)
        self._about[descriptor] = _shared.setdefault(about, about)

    def remove(self, descriptor: int) -> tuple[int, int]:
        """It rests no more. Returns what was noted about it. Raises KeyError if it didn't rest."""
        second = self._deadline.pop(descriptor)
        bucket = self._bucket[second]
        bucket.discard(descriptor)
        if not bucket:
            del self._bucket[second]
        return self._about.pop(descriptor)

    def expired(self, now: float) -> list[int]:
        """Those whose deadline has passed; they rest still."""
        return [each for second, bucket in self._bucket.items() if second <= now for each in bucket]

    def next_deadline(self) -> float | None:
        """When the next one expires; None: never."""
        first = min(self._bucket, default=NO_DEADLINE)
        return None if first >= NO_DEADLINE else float(first)

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._deadline))


_shared: dict[tuple[int, int], tuple[int, int]] = {}
