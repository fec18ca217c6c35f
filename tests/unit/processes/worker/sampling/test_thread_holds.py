"""Estimates for how long requests really held threads: arithmetic on times, without threads or clocks."""

from __future__ import annotations

import pytest

from cluster2.engines.base import ThreadHold
from cluster2.processes.worker.sampling.thread_holds import HOLD_FADE, LATENESS_STRETCH, ThreadHoldEstimator


def test_computing_counts() -> None:
    """Count CPU time, whether there were other threads or not, and however late the tick was."""
    assert ThreadHoldEstimator().tick(ThreadHold(wall=0.05, used=0.03, full=False), late=0.02) == 0.03
    assert ThreadHoldEstimator().tick(ThreadHold(wall=0.05, used=0.03, full=True), late=1.0) == 0.03


def test_waiting_counts_while_no_thread_is_free() -> None:
    """Count a thread that sleeps only if it is the last one."""
    hold = ThreadHold(wall=0.03, used=0.0001, full=True)
    assert ThreadHoldEstimator().tick(hold, late=0.0) == 0.03
    assert ThreadHoldEstimator().tick(hold._replace(full=False), late=0.0) == 0.0001


@pytest.mark.parametrize("wall", [0.001, 0.008, 0.02])
def test_saturation_is_no_evidence(wall: float) -> None:
    """Count only CPU time where all wait for their turn: the tick waits as well."""
    holds = ThreadHoldEstimator()
    assert holds.tick(ThreadHold(wall, 0.0001, True), late=wall / 3) == 0.0001
    assert holds.tick(ThreadHold(wall, 0.0001, True), late=0.0) == 0.0001, (
        "a tick that happened to be on time doesn't undo that"
    )


def test_lateness_fades() -> None:
    """Ignore the wall clock for a while after one late tick, not for good."""
    holds = ThreadHoldEstimator()
    assert holds.tick(ThreadHold(0.03, 0.0, True), late=0.02) == 0.0
    ticks = 0
    while holds.tick(ThreadHold(0.03, 0.0, True), late=0.0) < 0.025:
        ticks += 1
    assert LATENESS_STRETCH * 0.02 * HOLD_FADE ** (ticks + 1) > 0.005 - 0.002
    assert 5 < ticks < 20


def test_what_was_late_is_taken_off() -> None:
    """Count what is left of the wall time of a request that sleeps on a loaded machine."""
    assert ThreadHoldEstimator().tick(ThreadHold(0.03, 0.0, True), late=0.002) == pytest.approx(
        0.03 - LATENESS_STRETCH * 0.002
    )


def test_early_ticks_add_nothing() -> None:
    """Accept a timer that is early by a fraction of a millisecond."""
    assert ThreadHoldEstimator().tick(ThreadHold(0.03, 0.0, True), late=-0.0005) == 0.03
