"""How much memory processes have, weighed in turn.

What is shown is the proportional set size: a page that n processes share counts 1/n for each, so that the sum is what the
cluster really has. Reading it is a walk over the page tables, a millisecond per 100 MiB, so not all are weighed each second:
those that never were come first, as many as fit into `UNWEIGHED_TURN_S`; then one a second, the one that was weighed longest ago. After
walking the next turn waits until that was less than `MEMORY_TIME_SHARE` of the time, so that after a process of 10 GiB nothing is weighed
for 20 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from ....linux import processes

UNWEIGHED_TURN_S = 0.01
"""Seconds of walking in one turn, for processes that were never weighed."""
MEMORY_TIME_SHARE = 0.005
"""Of the time."""


def _weigh(pid: int) -> int | None:
    try:
        return processes.memory(pid)
    except (OSError, ValueError, OverflowError):
        return None  # gone meanwhile, or no pid at all, or no descriptor is left to read it by


class MemorySampler:
    """Weighs some of the processes each turn.

    Args:
        weigh: the memory of a process in bytes, or None.
        clock: seconds.
    """

    def __init__(
        self, weigh: Callable[[int], int | None] = _weigh, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._weigh = weigh
        self._clock = clock
        self._found: dict[int, int | None] = {}  # in the order in which they were weighed, the oldest first
        self._rests_until = 0.0

    def measure_some(self, pids: Iterable[int]) -> None:
        """Weigh some of them; forget all others."""
        wanted = set(pids)
        self._found = {pid: size for pid, size in self._found.items() if pid in wanted}
        began = self._clock()
        if began < self._rests_until:
            return
        fresh = sorted(wanted - self._found.keys())
        for pid in fresh or list(self._found)[:1]:
            self._found.pop(pid, None)
            self._found[pid] = self._weigh(pid)
            if self._clock() - began >= UNWEIGHED_TURN_S:
                break
        self._rests_until = began + (self._clock() - began) / MEMORY_TIME_SHARE

    def memory_of(self, pid: int) -> int | None:
        """The memory of a process in bytes, as it was weighed last; None: it wasn't yet, or can't be."""
        return self._found.get(pid)

    def total(self, pids: Iterable[int]) -> int | None:
        """Of all these; who wasn't weighed yet counts as the average of those who were. None: nobody was."""
        wanted = set(pids)
        known = [size for pid in wanted if (size := self._found.get(pid)) is not None]
        return round(sum(known) * len(wanted) / len(known)) if known else None

    def weighed(self, pids: Iterable[int]) -> bool:
        """Whether all of these were."""
        return all(pid in self._found for pid in pids)
