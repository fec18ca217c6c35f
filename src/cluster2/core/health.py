"""Which worker has to be replaced, and why: thresholds that it has passed, and signs that it is stuck.

Pure functions of what is known about a worker. Thresholds are stretched at random, once for each worker, so that workers that
were started together don't leave together (the seed multiplied by 1 to 1.5 as well).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .lifecycle import WorkerState, state_label

STUCK_OVERDUE_S = 3.0
"""Seconds by which a sign of life may be overdue until its worker counts as stuck, with a busy machine in mind. It is replaced
much later (`max_heartbeat_delay`)."""
STUCK_STATE = "stuck"
"""How the state of such a worker is called."""
PROMISED_HEARTBEAT_S = 2.0
"""Seconds until the next sign of life that a worker promises with each one; a healthy one gives it in half of that."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a worker has done enough. 0: no limit.

    Attributes:
        uptime: seconds.
        memory: bytes.
    """

    connections: float = 0.0
    requests: float = 0.0
    uptime: float = 0.0
    memory: float = 0.0

    def stretched(self, factor: float) -> Limits:
        """All limits times a factor."""
        return Limits(self.connections * factor, self.requests * factor, self.uptime * factor, self.memory * factor)


@dataclass(frozen=True, slots=True)
class Vitals:
    """What is known of a worker.

    Attributes:
        connections: accepted so far.
        requests: answered so far; -1: not known.
        uptime: seconds.
        memory: bytes; None: not measured.
        heartbeat: monotonic deadline of the next heartbeat; 0: none was promised yet.
        request_deadline: monotonic deadline of the oldest request; 0: none.
    """

    connections: int
    requests: int
    uptime: float
    memory: int | None
    heartbeat: float
    request_deadline: float


@dataclass(slots=True)
class Promise:
    """What a worker promises with its heartbeat: a deadline by which the next one will have come.

    A worker could promise anything, and hang. So a heartbeat counts for `PROMISED_HEARTBEAT_S` seconds after it was seen first, whatever it
    says; what comes later than that must say something else. Since a worker promises what is `PROMISED_HEARTBEAT_S` seconds ahead, and is seen
    afterwards, this changes nothing for one that is well.
    """

    _said: int | None = None
    _since: float = 0.0

    def deadline(self, said: int, value: float, now: float) -> float:
        """Return the deadline that holds now, on the monotonic clock.

        Args:
            said: the cell as it is, by which another heartbeat is told from the same one.
            value: the cell as a reader gets it; 0: no heartbeat has come yet.
            now: on the same clock.
        """
        if said != self._said:
            self._said, self._since = said, now
        bound = self._since + PROMISED_HEARTBEAT_S
        return min(value, bound) if value > 0 else bound


def serves(deadline: float, now: float) -> bool:
    """Return whether a heartbeat is one of a worker that is well.

    Args:
        deadline: that it promises, on the monotonic clock; 0: none has come yet. One that is too far ahead isn't believed.
        now: on the same clock.
    """
    return not deadline or now - STUCK_OVERDUE_S <= deadline <= now + PROMISED_HEARTBEAT_S + STUCK_OVERDUE_S


def seen_state(code: int, deadline: float, now: float) -> str:
    """Return the name of a worker's state, for all that show it. One that should serve and gives no sign of life is stuck.

    Args:
        code: of its state, from the scoreboard.
        deadline, now: see `serves`.
    """
    return STUCK_STATE if code == WorkerState.READY and not serves(deadline, now) else state_label(code)


class Trouble(Enum):
    """Ways to be stuck."""

    LOOP = "its loop is stuck"
    REQUEST = "a request is older than request_timeout"


def threshold_passed(limits: Limits, vitals: Vitals) -> str | None:
    """The first threshold that the worker has passed, as text for the log; None if it has passed none."""
    for name, limit, value in (
        ("conn_threshold", limits.connections, vitals.connections),
        ("request_threshold", limits.requests, vitals.requests),
        ("uptime_threshold", limits.uptime, vitals.uptime),
        ("memory_threshold", limits.memory, vitals.memory or 0),
    ):
        if limit and value >= limit:
            return f"{name}: {value:.0f}"
    return None


def trouble(vitals: Vitals, now: float, *, max_delay: float, request_timeout: float) -> Trouble | None:
    """Whether the worker is stuck.

    Args:
        now: on the monotonic clock.
        max_delay: seconds by which a heartbeat may be late.
        request_timeout: seconds; 0: no limit. A loop that is stuck for so long is stuck in a request of that age.
    """
    late = now - vitals.heartbeat if vitals.heartbeat else 0.0
    if late > min(max_delay, request_timeout or max_delay):
        return Trouble.LOOP
    if request_timeout and vitals.request_deadline and now > vitals.request_deadline:
        return Trouble.REQUEST
    return None
