"""How a worker takes connections, decided by one measure: for how long the app's handlers hold the loop.

- *Eager*, while no step of a handler is longer than 0.5 ms: nothing is gained by holding back, so the loop's own server takes
  all that is pending, in C.
- *Held*, from the first long step until none was seen for some seconds: one connection at a time, the next only when that
  one's request has begun. So a worker that is about to compute takes nothing that a sibling could serve at once.
- *Parking*, while steps are longer than `park_above`: each connection goes to the keeper after its response, so that its
  next request is served by whoever is free then, not by the worker that happens to have the connection.

How long handlers hold the loop is a matter of the app, not of a worker: what one worker sees counts for all. One long step
may be a garbage collection or the kernel's scheduler; parking needs three within two seconds, in all workers together.

Delay in the queue is no evidence: saturation with short handlers looks the same, and parking would make it worse.

Everything here is arithmetic on times that the caller gives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import IntEnum

LONG = 0.0005
"""Seconds that a step may hold the loop before taking everything that is pending becomes unfair."""
CALM = 3.0
"""Seconds without such a step after which a mode is left."""
WINDOW = 2.0
PROOF = 3
"""Long steps within the window, anywhere, that make a worker park."""


class Mode(IntEnum):
    """How connections are taken. The numbers stand in the scoreboard."""

    EAGER = 0
    HELD = 1
    PARKING = 2


class Pace:
    """The mode of one worker.

    Attributes:
        mode: how it takes connections now.
        longest: the longest step since the mode was last relaxed, in seconds.
        park_above: seconds; 0: never.
    """

    def __init__(self, park_above: float) -> None:
        """Start eager.

        Args:
            park_above: seconds; 0: never park.
        """
        self.mode = Mode.EAGER
        self.longest = 0.0
        self.park_above = park_above
        self._long_at = 0.0
        self._park_at = 0.0
        self._recent: deque[float] = deque(maxlen=PROOF)

    def is_proof(self, step: float) -> bool:
        """Whether a step of that length is evidence for parking, to be shared with the other workers."""
        return 0 < self.park_above < step

    def step(self, step: float, now: float, elsewhere: Iterable[float]) -> Mode:
        """A handler held the loop for `step` seconds, more than LONG. Returns the mode from now on.

        Args:
            elsewhere: when each other worker last saw proof, on the same clock as `now`.
        """
        self._long_at = now
        self.longest = max(self.longest, step)
        if self.mode is Mode.EAGER:
            self.mode = Mode.HELD
        if self.is_proof(step):
            self._recent.append(now)
            seen = sum(now - when < WINDOW for when in self._recent)
            seen += sum(abs(now - when) < WINDOW for when in elsewhere)  # a time that is far ahead is no proof
            if seen >= PROOF:
                self._park_at = now
                self.mode = Mode.PARKING
        return self.mode

    def relax(self, now: float) -> Mode:
        """Some time has passed. Returns the mode from now on."""
        if self.mode is Mode.PARKING and now - self._park_at > CALM:
            self.mode = Mode.HELD
        if self.mode is Mode.HELD and now - self._long_at > CALM:
            self.mode = Mode.EAGER
            self.longest = 0.0
        return self.mode
