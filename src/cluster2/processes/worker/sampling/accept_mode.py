"""The mode in which a worker accepts connections, by one measure: for how long the app's handlers hold the loop.

- `batch`, while steps of handlers are short: holding back has no advantage, so the loop's own server accepts all that is pending,
  in C.
- `one_by_one`, while steps are long: the worker accepts one connection, and the next only when the first one's request has begun.
  So a worker that is about to compute takes no connection that a sibling could serve at once.
- `handoff`, while steps are longer than `handoff_slow_above`: each connection goes to the keeper after its response. Then any
  free worker serves its next request, not the worker that happens to have the connection.

*A single long step is no evidence.* A step that writes its response also handles what the kernel has received meanwhile for other
processes (softirq, up to 1.3 ms of the thread's own CPU time on a busy loopback), and a hypervisor takes processors away. An app
whose steps take 15 µs has three steps a second of more than 0.5 ms among those that are measured. When the worker held back for
these, a connection for each request cost 1.4 times as much. So there are two degrees: steps longer than `LONG_STEP_S` count if
they are many, and steps longer than `CLEARLY_LONG_STEP_S` if they are two.

*Evidence is shared.* For how long handlers hold the loop depends on the app, not on a worker: evidence of one worker counts for
all. Mode `handoff` needs three steps longer than `handoff_slow_above` within two seconds, in all workers together.

*Delay in the queue is no evidence.* Saturation with short handlers looks the same, and mode `handoff` would make it worse.

Everything here is arithmetic on times that the caller passes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import IntEnum

LONG_STEP_S = 0.0005
"""Seconds that a step may hold the loop before accepting all that is pending becomes unfair."""
CLEARLY_LONG_STEP_S = 0.002
"""Seconds that a step never takes by the kernel's work alone, except by accident."""
CALM_AFTER_S = 3.0
"""Seconds without such a step after which a mode is left."""
COUNTING_WINDOW_S = 2.0
"""Seconds within which steps are counted."""
MIN_LONG_STEPS = 24
MIN_CLEARLY_LONG_STEPS = 2
"""Steps of each degree that start mode `one_by_one`. Under load about 200 steps are measured within the window."""
MIN_SLOW_STEPS = 3
"""Steps longer than `handoff_slow_above`, in all workers together, that start mode `handoff`."""


class AcceptMode(IntEnum):
    """The mode in which a worker accepts connections. The scoreboard has the numbers."""

    BATCH = 0
    ONE_BY_ONE = 1
    HANDOFF = 2


class AcceptModeSelector:
    """Selects the mode of one worker.

    Attributes:
        mode: the current mode.
        longest: the longest step since the last calm, in seconds.
        handoff_slow_above: seconds; 0: mode `handoff` is never selected.
    """

    def __init__(self, handoff_slow_above: float) -> None:
        """Start in mode `batch`."""
        self.mode = AcceptMode.BATCH
        self.longest = 0.0
        self.handoff_slow_above = handoff_slow_above
        self._last_long_at = 0.0
        self._held_back_at = 0.0
        self._handoff_at = 0.0
        self._long_steps: deque[float] = deque(maxlen=MIN_LONG_STEPS)
        self._clearly_long_steps: deque[float] = deque(maxlen=MIN_CLEARLY_LONG_STEPS)
        self._slow_steps: deque[float] = deque(maxlen=MIN_SLOW_STEPS)

    def is_proof(self, step: float) -> bool:
        """Return whether a step of that length is evidence for mode `handoff`, to be shared with the other workers."""
        return 0 < self.handoff_slow_above < step

    def step(self, step: float, now: float, elsewhere: Iterable[float]) -> AcceptMode:
        """Count a step that held the loop for longer than `LONG_STEP_S`. Return the mode from now on.

        Args:
            step: its seconds.
            elsewhere: when each other worker last saw a step that is proof, on the same clock as `now`.
        """
        self.longest = max(self.longest, step)
        self._last_long_at = now
        self._long_steps.append(now)
        if step > CLEARLY_LONG_STEP_S:
            self._clearly_long_steps.append(now)
        if _all_recent(self._long_steps, now) or _all_recent(self._clearly_long_steps, now):
            self._held_back_at = now
            # Never down from `handoff`: only `relax` leaves a mode.
            self.mode = max(self.mode, AcceptMode.ONE_BY_ONE)
        if self.is_proof(step):
            self._slow_steps.append(now)
            seen = sum(now - when < COUNTING_WINDOW_S for when in self._slow_steps)
            # `abs`: a time far ahead is no proof; the app may have written anything into a row.
            seen += sum(abs(now - when) < COUNTING_WINDOW_S for when in elsewhere)
            if seen >= MIN_SLOW_STEPS:
                self._handoff_at = self._held_back_at = now
                self.mode = AcceptMode.HANDOFF
        return self.mode

    def hold_back(self, now: float) -> AcceptMode:
        """Leave mode `batch`, since descriptors are scarce. Return the mode from now on."""
        self._held_back_at = now
        self.mode = max(self.mode, AcceptMode.ONE_BY_ONE)
        return self.mode

    def relax(self, now: float) -> AcceptMode:
        """Leave a mode for which there was no evidence lately. Return the mode from now on."""
        if self.mode is AcceptMode.HANDOFF and now - self._handoff_at > CALM_AFTER_S:
            self.mode = AcceptMode.ONE_BY_ONE
        if self.mode is AcceptMode.ONE_BY_ONE and now - self._held_back_at > CALM_AFTER_S:
            self.mode = AcceptMode.BATCH
        if self.mode is AcceptMode.BATCH and now - self._last_long_at > CALM_AFTER_S:
            self.longest = 0.0
        return self.mode


def _all_recent(times: deque[float], now: float) -> bool:
    """Return whether the deque is full, and its oldest step was within the window."""
    return len(times) == times.maxlen and now - times[0] < COUNTING_WINDOW_S
