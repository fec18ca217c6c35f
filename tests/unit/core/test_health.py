"""Which worker has done enough, and which is stuck: pure functions of what is known about it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.core.health import (
    PROMISED_HEARTBEAT_S,
    STUCK_OVERDUE_S,
    Limits,
    Trouble,
    Vitals,
    seen_state,
    threshold_passed,
    trouble,
)
from cluster2.core.lifecycle import WorkerState

CALM = Vitals(connections=0, requests=0, uptime=0.0, memory=0, heartbeat=0.0, request_deadline=0.0)
COUNTS = st.integers(0, 10**9)
TIMES = st.floats(0, 1e6)
VITALS = st.builds(
    Vitals, COUNTS, st.integers(-1, 10**9), TIMES, st.none() | COUNTS, st.floats(0, 1e6), st.floats(0, 1e6)
)
LIMITS = st.builds(Limits, st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0, 1e6), st.floats(0, 1e9))


@pytest.mark.parametrize(
    ("limits", "vitals", "name"),
    [
        (Limits(connections=10), replace(CALM, connections=10), "conn_threshold: 10"),
        (Limits(requests=10), replace(CALM, requests=10), "request_threshold: 10"),
        (Limits(uptime=60.0), replace(CALM, uptime=60.4), "uptime_threshold: 60"),
        (Limits(memory=2**20), replace(CALM, memory=2**20 + 1), "memory_threshold: 1048577"),
    ],
)
def test_each_threshold(limits: Limits, vitals: Vitals, name: str) -> None:
    """Who reaches a threshold has passed it, and the text names it; just below nothing is said."""
    assert threshold_passed(limits, vitals) == name
    assert threshold_passed(limits.stretched(1.1), vitals) is None


@given(VITALS)
def test_no_limits(vitals: Vitals) -> None:
    """0 is no limit, stretched or not, whatever a worker has done."""
    assert threshold_passed(Limits(), vitals) is None
    assert threshold_passed(Limits().stretched(1.5), vitals) is None


def test_what_is_not_known_passes_nothing() -> None:
    """An engine that doesn't count requests, and memory that wasn't measured, are below every threshold."""
    unknown = replace(CALM, requests=-1, memory=None)
    assert threshold_passed(Limits(requests=1, memory=1), unknown) is None


@given(LIMITS, VITALS, st.floats(1, 2), st.floats(1, 2))
def test_stretching_never_recycles_earlier(limits: Limits, vitals: Vitals, less: float, more: float) -> None:
    """Who has passed stretched limits has passed the limits themselves, and any that are stretched less."""
    less, more = sorted((less, more))
    if threshold_passed(limits.stretched(more), vitals) is not None:
        assert threshold_passed(limits.stretched(less), vitals) is not None
        assert threshold_passed(limits, vitals) is not None


@given(LIMITS, VITALS, COUNTS, COUNTS, TIMES)
def test_who_has_passed_stays_so(limits: Limits, vitals: Vitals, connections: int, requests: int, age: float) -> None:
    """With more done, the answer never goes back to no."""
    later = replace(
        vitals,
        connections=vitals.connections + connections,
        requests=vitals.requests + requests,
        uptime=vitals.uptime + age,
    )
    if threshold_passed(limits, vitals) is not None:
        assert threshold_passed(limits, later) is not None


@pytest.mark.parametrize(
    ("late", "request_timeout", "expected"),
    [
        (-2.0, 0.0, None),
        (29.9, 0.0, None),
        (30.1, 0.0, Trouble.LOOP),
        (4.9, 5.0, None),
        (5.1, 5.0, Trouble.LOOP),  # stuck in a request of that age
        (30.1, 90.0, Trouble.LOOP),
    ],
)
def test_a_late_heartbeat(late: float, request_timeout: float, expected: Trouble | None) -> None:
    """A heartbeat may be late by max_heartbeat_delay, or by request_timeout where that is less."""
    vitals = replace(CALM, heartbeat=1000.0 - late)
    assert trouble(vitals, 1000.0, max_delay=30.0, request_timeout=request_timeout) is expected


def test_no_heartbeat_was_promised_yet() -> None:
    """A worker that hasn't begun to beat isn't late: boot_timeout bounds that."""
    assert trouble(CALM, 1e6, max_delay=1.0, request_timeout=1.0) is None


@pytest.mark.parametrize(
    ("deadline", "request_timeout", "expected"),
    [(0.0, 5.0, None), (1000.0, 5.0, None), (999.9, 5.0, Trouble.REQUEST), (1.0, 0.0, None)],
)
def test_a_request_that_is_too_old(deadline: float, request_timeout: float, expected: Trouble | None) -> None:
    """Past its deadline a request means trouble; no request, or no request_timeout, means none."""
    vitals = replace(CALM, heartbeat=1000.0, request_deadline=deadline)
    assert trouble(vitals, 1000.0, max_delay=30.0, request_timeout=request_timeout) is expected


def test_a_stuck_loop_comes_first() -> None:
    """Where both are so, it is the loop: it wouldn't hear that it should drain."""
    vitals = replace(CALM, heartbeat=900.0, request_deadline=900.0)
    assert trouble(vitals, 1000.0, max_delay=30.0, request_timeout=5.0) is Trouble.LOOP


@given(VITALS, TIMES, st.floats(0.01, 1e5), st.floats(0, 1e5), st.floats(0, 1e5))
def test_trouble_does_not_pass_by_itself(
    vitals: Vitals, now: float, max_delay: float, request_timeout: float, later: float
) -> None:
    """If nothing is heard of a stuck worker, it stays stuck; and who beats in time with no old request never is."""
    if trouble(vitals, now, max_delay=max_delay, request_timeout=request_timeout) is not None:
        assert trouble(vitals, now + later, max_delay=max_delay, request_timeout=request_timeout) is not None
    fine = replace(vitals, heartbeat=now + 1.0, request_deadline=now + 1.0)
    assert trouble(fine, now, max_delay=max_delay, request_timeout=request_timeout) is None


@pytest.mark.parametrize(
    ("state", "deadline", "seen"),
    [
        (WorkerState.READY, 0.0, "ready"),
        (WorkerState.READY, 100.0, "ready"),
        (WorkerState.READY, 100.0 - STUCK_OVERDUE_S, "ready"),
        (WorkerState.READY, 99.9 - STUCK_OVERDUE_S, "stuck"),
        (WorkerState.READY, 100.1 + PROMISED_HEARTBEAT_S + STUCK_OVERDUE_S, "stuck"),
        (WorkerState.DRAINING, 1.0, "draining"),
        (WorkerState.BOOTING, 1.0, "booting"),
    ],
)
def test_the_state_that_is_shown(state: WorkerState, deadline: float, seen: str) -> None:
    """A worker that is ready and gives no sign of life is stuck; so is one that promises too much."""
    assert seen_state(state, deadline, 100.0) == seen
