"""The memory of the cluster's processes, measured for a few of them at a time.

The figure is the proportional set size: a page that n processes share counts 1/n for each, so the sum is what the cluster really
uses. Reading it walks the page tables, which takes 1 ms for each 100 MiB. So not all processes are measured each second:

- Processes that were never measured come first, as many as fit into `UNMEASURED_TURN_S`.
- Then one process a turn is measured again, the one whose figure is the oldest.
- The next turn waits until measuring has taken less than `MEMORY_TIME_SHARE` of the time. After a process of 10 GiB nothing is
  measured for 20 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from ....linux import processes

UNMEASURED_TURN_S = 0.01
"""Seconds of measuring in one turn, for processes that were never measured."""
MEMORY_TIME_SHARE = 0.005
"""The share of the time that measuring may take."""


def _memory(pid: int) -> int | None:
    try:
        return processes.memory(pid)
    except (OSError, ValueError, OverflowError):
        return None  # the process has ended, the pid is none, or no descriptor is left to read it by


class MemorySampler:
    """Measures some of the processes each turn.

    Args:
        measure: returns the memory of a process in bytes, or None.
        clock: seconds.
    """

    def __init__(
        self, measure: Callable[[int], int | None] = _memory, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._measure = measure
        self._clock = clock
        self._sizes: dict[int, int | None] = {}  # in the order of their measurements, the oldest first
        self._next_turn_at = 0.0

    def measure_some(self, pids: Iterable[int]) -> None:
        """Measure some of these processes, and forget all others."""
        wanted = set(pids)
        self._sizes = {pid: size for pid, size in self._sizes.items() if pid in wanted}
        began = self._clock()
        if began < self._next_turn_at:
            return
        fresh = sorted(wanted - self._sizes.keys())
        for pid in fresh or list(self._sizes)[:1]:
            self._sizes.pop(pid, None)  # so that it is inserted at the end
            self._sizes[pid] = self._measure(pid)
            if self._clock() - began >= UNMEASURED_TURN_S:
                break
        self._next_turn_at = began + (self._clock() - began) / MEMORY_TIME_SHARE

    def memory_of(self, pid: int) -> int | None:
        """Return the last measured memory of a process in bytes; None: not measured yet, or not measurable."""
        return self._sizes.get(pid)

    def total(self, pids: Iterable[int]) -> int | None:
        """Return the memory of these processes together; None: none of them was measured.

        A process that wasn't measured yet counts as the average of those that were.
        """
        wanted = set(pids)
        known = [size for pid in wanted if (size := self._sizes.get(pid)) is not None]
        return round(sum(known) * len(wanted) / len(known)) if known else None

    def all_measured(self, pids: Iterable[int]) -> bool:
        """Return True if each of these processes was measured once."""
        return all(pid in self._sizes for pid in pids)
