"""How a worker takes connections, decided by one measure: for how long the app's handlers hold the loop.

- *Eager*, while steps of handlers are short: nothing is gained by holding back, so the loop's own server takes all that is
  pending, in C.
- *Held*, while steps are long: one connection at a time, the next only when that one's request has begun. So a worker that is
  about to compute takes nothing that a sibling could serve at once.
- *Parking*, while steps are longer than `handoff_slow_above`: each connection goes to the keeper after its response, so that its
  next request is served by whoever is free then, not by the worker that happens to have the connection.

A single long step is no evidence. A step that writes its response also handles what the kernel has received meanwhile for anybody
(softirq, up to 1.3 ms of the thread's own CPU time on a busy loopback), and a hypervisor takes processors away: an app whose
steps take 15 µs has three steps a second of more than 0.5 ms among those that are measured. Holding back for these made a
connection for each request cost 1.4 times as much. So there are two degrees: steps longer than `LONG_STEP_S` count if they are
many, those longer than `CLEARLY_LONG_STEP_S` if they are two.

How long handlers hold the loop is a matter of the app, not of a worker: what one worker sees counts for all. Parking needs
three steps longer than `handoff_slow_above` within two seconds, in all workers together.

Delay in the queue is no evidence: saturation with short handlers looks the same, and parking would make it worse.

Everything here is arithmetic on times that the caller gives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import IntEnum

LONG_STEP_S = 0.0005
"""Seconds that a step may hold the loop before taking everything that is pending becomes unfair."""
CLEARLY_LONG_STEP_S = 0.002
"""Seconds that a step never takes by the kernel's doing alone, but by accident."""
CALM_AFTER_S = 3.0
"""Seconds without such a step after which a mode is left."""
COUNTING_WINDOW_S = 2.0
"""Seconds within which steps are counted."""
MIN_LONG_STEPS = 24
MIN_CLEARLY_LONG_STEPS = 2
"""Steps of each degree that make a worker hold back. About 200 steps are measured within the window under load."""
MIN_SLOW_STEPS = 3
"""Steps longer than `handoff_slow_above`, anywhere, that make a worker park."""


class AcceptMode(IntEnum):
    """How connections are taken. The numbers stand in the scoreboard."""

    BATCH = 0
    ONE_BY_ONE = 1
    HANDOFF = 2


class AcceptModeSelector:
    """The mode of one worker.

    Attributes:
        mode: how it takes connections now.
        longest: the longest step since the last calm, in seconds.
        handoff_slow_above: seconds; 0: never.
    """

    def __init__(self, handoff_slow_above: float) -> None:
        """Start eager.

        Args:
            handoff_slow_above: seconds; 0: never park.
        """
        self.mode = AcceptMode.BATCH
        self.longest = 0.0
        self.handoff_slow_above = handoff_slow_above
        self._long_at = 0.0
        self._held_at = 0.0
        self._park_at = 0.0
        self._long: deque[float] = deque(maxlen=MIN_LONG_STEPS)
        self._clear: deque[float] = deque(maxlen=MIN_CLEARLY_LONG_STEPS)
        self._recent: deque[float] = deque(maxlen=MIN_SLOW_STEPS)

    def is_proof(self, step: float) -> bool:
        """Whether a step of that length is evidence for parking, to be shared with the other workers."""
        return 0 < self.handoff_slow_above < step

    def step(self, step: float, now: float, elsewhere: Iterable[float]) -> AcceptMode:
        """A handler held the loop for `step` seconds, more than LONG. Returns the mode from now on.

        Args:
            elsewhere: when each other worker last saw proof, on the same clock as `now`.
        """
        self.longest = max(self.longest, step)
        self._long_at = now
        self._long.append(now)
        if step > CLEARLY_LONG_STEP_S:
            self._clear.append(now)
        if _all_recent(self._long, now) or _all_recent(self._clear, now):
            self._held_at = now
            self.mode = max(self.mode, AcceptMode.ONE_BY_ONE)
        if self.is_proof(step):
            self._recent.append(now)
            seen = sum(now - when < COUNTING_WINDOW_S for when in self._recent)
            seen += sum(
                abs(now - when) < COUNTING_WINDOW_S for when in elsewhere
            )  # a time that is far ahead is no proof
            if seen >= MIN_SLOW_STEPS:
                self._park_at = self._held_at = now
                self.mode = AcceptMode.HANDOFF
        return self.mode

    def hold_back(self, now: float) -> AcceptMode:
        """Connections must not be taken eagerly, whatever the app does: descriptors are scarce. Returns the mode from now on."""
        self._held_at = now
        self.mode = max(self.mode, AcceptMode.ONE_BY_ONE)
        return self.mode

    def relax(self, now: float) -> AcceptMode:
        """Some time has passed. Returns the mode from now on."""
        if self.mode is AcceptMode.HANDOFF and now - self._park_at > CALM_AFTER_S:
            self.mode = AcceptMode.ONE_BY_ONE
        if self.mode is AcceptMode.ONE_BY_ONE and now - self._held_at > CALM_AFTER_S:
            self.mode = AcceptMode.BATCH
        if self.mode is AcceptMode.BATCH and now - self._long_at > CALM_AFTER_S:
            self.longest = 0.0
        return self.mode


def _all_recent(times: deque[float], now: float) -> bool:
    """Return whether as many steps as are counted were within the window."""
    return len(times) == times.maxlen and now - times[0] < COUNTING_WINDOW_S
