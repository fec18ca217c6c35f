"""What it means that a request held a thread for long.

A thread that is held is no obstacle by itself: the others go on, and the loop goes on. Two things are:

- *A thread that computes* has the GIL, and all others of its worker wait for it in turn: connections of this worker had
  better be served by a sibling. What counts is the CPU time that the request used.
- *No thread is free* while requests sleep or wait for something. What counts is for how long they hold their threads, by the
  clock; but only if at times there was no other.

By the clock a request also takes long when it only waits for its turn: at saturation with short handlers eight threads hand the
GIL around, and with fewer cores than busy workers each waits for the kernel's scheduler. That must not park: it would cost a
factor of three where nothing is to be gained. The loop's own thread is the witness. It waits for the same GIL and the same
processors, so its tick comes late by what such waiting takes. Of the time by the clock that is taken off, times
`LATENESS_STRETCH`, since a request waits more than once: for the GIL when it begins, when another has asked for it, and after
each system call.

Other evidence that was considered: voluntary switches (waiting for the GIL is one, too); the CPU time of the process in
between (silent about the kernel's scheduler); /proc/thread-self/schedstat (knows that, but costs a system call and misses the
GIL).
"""

from __future__ import annotations

from ....engines.base import ThreadHold

LATENESS_STRETCH = 4.0
"""How many times as late as the tick a request may be that only waited for its turn."""
HOLD_FADE = 0.8
"""What is left of a tick's lateness for the next one: ticks are few, and not each of them meets what a request met."""


class ThreadHoldEstimator:
    """Decides for how long requests really held threads, once a tick."""

    def __init__(self) -> None:
        """Nothing was late yet."""
        self._late = 0.0

    def tick(self, hold: ThreadHold, late: float) -> float:
        """Seconds that count; 0: nothing does.

        Args:
            hold: the longest ones since the last tick.
            late: seconds by which this tick came too late.
        """
        self._late = max(late, HOLD_FADE * self._late)
        return max(hold.used, hold.wall - LATENESS_STRETCH * self._late if hold.full else 0.0, 0.0)
