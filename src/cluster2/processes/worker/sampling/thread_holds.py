"""Estimates for how long requests hold threads in a way that delays others.

A thread that is held is no obstacle by itself: the other threads go on, and the loop goes on. Two cases are obstacles:

- *A thread that computes* has the GIL, and all other threads of its worker wait for it in turn. A sibling should serve this
  worker's connections. The hold is the CPU time that the request used.
- *No thread is free* while requests sleep or wait. The hold is the wall time for which a request had its thread, but only if at
  times there was no free thread.

*Waiting for a turn must not count.* By the wall clock a request also takes long when it only waits for its turn. At saturation
with short handlers eight threads hand the GIL around, and with fewer cores than busy workers each waits for the kernel's
scheduler. That must not start mode `handoff`: it would cost a factor of three without any gain.

*The loop's own thread is the reference.* It waits for the same GIL and the same processors, so its tick comes late by the time
that such waiting takes. That lateness, times `LATENESS_STRETCH`, is subtracted from the wall time: a request waits more than
once. It waits for the GIL when it begins, when another thread has requested it, and after each system call.

*Other evidence was considered:*

- Voluntary switches: a wait for the GIL is one, too.
- The CPU time of the process in between: it doesn't show the kernel's scheduler.
- /proc/thread-self/schedstat shows that, but costs a system call and misses the GIL.
"""

from __future__ import annotations

from ....engines.base import ThreadHold

LATENESS_STRETCH = 4.0
"""The factor by which a request that only waited for its turn may be later than the tick."""
HOLD_FADE = 0.8
"""The share of a tick's lateness that is kept for the next tick: ticks are few, and not each is delayed as a request is."""


class ThreadHoldEstimator:
    """Estimates once a tick for how long requests really held threads."""

    def __init__(self) -> None:
        """Start without lateness."""
        self._late = 0.0

    def tick(self, hold: ThreadHold, late: float) -> float:
        """Return the seconds that count; 0: none do.

        Args:
            hold: the longest holds since the last tick.
            late: the seconds by which this tick came late.
        """
        self._late = max(late, HOLD_FADE * self._late)
        # CPU time counts always, wall time only if threads had run out.
        return max(hold.used, hold.wall - LATENESS_STRETCH * self._late if hold.full else 0.0, 0.0)
