"""Decide which worker is replaced and why: it has passed a threshold, or it is stuck.

All functions are pure; they decide from a worker's `Vitals`. Each worker's thresholds are multiplied once by a random factor, so
that workers that were started together don't leave together. (The Node.js cluster2 of 2012 used a factor of 1 to 1.5.)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .lifecycle import WorkerState, state_label

STUCK_OVERDUE_S = 3.0
"""Seconds that a heartbeat may be overdue before its worker is shown as stuck. A busy machine delays heartbeats by less than that.
The worker is replaced much later (`max_heartbeat_delay`)."""
STUCK_STATE = "stuck"
"""The state that `status` shows for such a worker."""
PROMISED_HEARTBEAT_S = 2.0
"""Seconds from a heartbeat to the deadline of the next one. A healthy worker's next heartbeat comes after half of them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The thresholds at which a worker is recycled. 0: no threshold.

    Attributes:
        uptime: seconds.
        memory: bytes.
    """

    connections: float = 0.0
    requests: float = 0.0
    uptime: float = 0.0
    memory: float = 0.0

    def stretched(self, factor: float) -> Limits:
        """Return these limits multiplied by a factor."""
        return Limits(self.connections * factor, self.requests * factor, self.uptime * factor, self.memory * factor)


@dataclass(frozen=True, slots=True)
class Vitals:
    """The figures of a worker that the decisions here need.

    Attributes:
        connections: connections accepted so far.
        requests: requests completed so far; -1: not known.
        uptime: seconds.
        memory: bytes; None: not measured.
        heartbeat: monotonic deadline of the next heartbeat; 0: no heartbeat has come yet.
        request_deadline: monotonic deadline of the oldest request; 0: no request is under way.
    """

    connections: int
    requests: int
    uptime: float
    memory: int | None
    heartbeat: float
    request_deadline: float


@dataclass(slots=True)
class Promise:
    """The bounded deadline of a worker's next heartbeat.

    A worker writes that deadline itself, and could write one that is years ahead and then hang. So a heartbeat counts for at most
    `PROMISED_HEARTBEAT_S` after a reader first saw it. A healthy worker isn't affected: it writes a deadline that is
    `PROMISED_HEARTBEAT_S` ahead, and the reader sees it later than that moment.
    """

    _said: int | None = None
    _since: float = 0.0

    def deadline(self, said: int, value: float, now: float) -> float:
        """Return the deadline that applies now, on the monotonic clock.

        Args:
            said: the raw integer of the scoreboard cell. It changes with each heartbeat, so it identifies one.
            value: the cell's value in seconds; 0: no heartbeat has come yet.
            now: the time on the same clock.
        """
        if said != self._said:
            self._said, self._since = said, now
        bound = self._since + PROMISED_HEARTBEAT_S
        return min(value, bound) if value > 0 else bound


def serves(deadline: float, now: float) -> bool:
    """Return whether a worker with this heartbeat counts as healthy.

    Args:
        deadline: the deadline of the next heartbeat, on the monotonic clock; 0: no heartbeat has come yet. A deadline that is too
            far ahead isn't believed.
        now: the time on the same clock.
    """
    return not deadline or now - STUCK_OVERDUE_S <= deadline <= now + PROMISED_HEARTBEAT_S + STUCK_OVERDUE_S


def seen_state(code: int, deadline: float, now: float) -> str:
    """Return the name of a worker's state that users see. A ready worker whose heartbeat is overdue is `stuck`.

    Args:
        code: the state's code in the scoreboard.
        deadline, now: see `serves`.
    """
    return STUCK_STATE if code == WorkerState.READY and not serves(deadline, now) else state_label(code)


class Trouble(Enum):
    """The ways in which a worker can be stuck; the value is the text for the log."""

    LOOP = "its loop is stuck"
    REQUEST = "a request is older than request_timeout"


def threshold_passed(limits: Limits, vitals: Vitals) -> str | None:
    """Return the first threshold that the worker has passed, as text for the log; None: it has passed none."""
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
    """Return in which way the worker is stuck; None: it isn't.

    Args:
        now: the time on the monotonic clock.
        max_delay: seconds that a heartbeat may be late.
        request_timeout: seconds that a request may take; 0: no limit. A loop that is blocked for longer is blocked by a request
            of that age, so this bounds late heartbeats too.
    """
    late = now - vitals.heartbeat if vitals.heartbeat else 0.0
    if late > min(max_delay, request_timeout or max_delay):
        return Trouble.LOOP
    if request_timeout and vitals.request_deadline and now > vitals.request_deadline:
        return Trouble.REQUEST
    return None
