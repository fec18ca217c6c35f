"""Samples of how long handlers hold the loop: which requests are measured, and which steps are long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any

import pytest

from cluster2.processes.worker.sampling import steps
from cluster2.processes.worker.sampling.accept_mode import LONG_STEP_S
from cluster2.processes.worker.sampling.steps import BUSY_SHARE, LONG_SHARE, REQUESTS_PER_BURST, StepSampler, TimedSteps

PROOF = 0.0123


class Reports:
    """A sampler, and its reports."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.watch = StepSampler(lambda step, now: self.steps.append(step), PROOF)
        for _ in range(steps.UNMEASURED_REQUESTS):  # the first requests of a worker aren't measured
            self.run(_idle)

    def run(self, handler: Callable[[], Awaitable[Any]]) -> Any:
        """Return the result of a handler that is measured."""

        async def measured() -> Any:
            return await self.watch.measured(handler())

        return asyncio.run(measured())


async def _idle() -> None:
    """Do nothing, as a handler."""


@dataclass
class Usage:
    ru_nvcsw: int


class Clocks:
    """The clocks and counters that `steps` reads, under the test's control."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = 100.0
        self.cpu = 5.0
        self.cpu_of_others = 0.0
        self.switches = 10
        self.switches_of_others = 0
        monkeypatch.setattr(steps, "_now", lambda: self.wall)
        monkeypatch.setattr(steps, "_cpu", lambda: self.cpu)
        self.collections = 0
        monkeypatch.setattr(steps, "_whole", self.process_time)
        monkeypatch.setattr(steps, "collections", lambda: self.collections)
        monkeypatch.setattr(steps, "getrusage", self._usage)

    def process_time(self) -> float:
        return self.cpu + self.cpu_of_others

    def _usage(self, who: int) -> Usage:
        return Usage(self.switches + (self.switches_of_others if who == steps.RUSAGE_SELF else 0))

    def step(self, wall: float, cpu: float, switches: int) -> Callable[[], Awaitable[None]]:
        """Return a handler of one step that takes so much."""

        async def handler() -> None:
            self.wall += wall
            self.cpu += cpu
            self.switches += switches

        return handler

    def crowd(self, watch: StepSampler, *, used: float, switches: int, passed: float = 0.01) -> None:
        """Tick after other threads have used so many seconds of CPU, with so many voluntary switches."""
        self.wall += passed
        self.cpu_of_others += used
        self.switches_of_others += switches
        watch.tick(self.wall)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


# What a step is, by real clocks


def test_a_handler_that_sleeps_holds_the_loop() -> None:
    """Count a blocking sleep in full, although it uses no CPU time."""

    async def handler() -> str:
        time.sleep(0.003)
        return "done"

    reports = Reports()
    assert reports.run(handler) == "done"
    assert len(reports.steps) == 1
    assert reports.steps[0] >= 0.003


def test_a_handler_that_computes_holds_the_loop() -> None:
    """Count as much CPU time as was used."""

    async def handler() -> None:
        end = time.thread_time() + 0.003
        while time.thread_time() < end:
            pass

    reports = Reports()
    reports.run(handler)
    assert len(reports.steps) == 1
    assert reports.steps[0] >= 0.003


def test_each_step_counts_for_itself(clocks: Clocks) -> None:
    """Take many short steps for no long one, whatever happens between them."""

    async def handler() -> None:
        for _ in range(20):
            clocks.wall += LONG_STEP_S * 0.9
            clocks.cpu += LONG_STEP_S * 0.9
            await asyncio.sleep(0)

    reports = Reports()
    reports.run(handler)
    assert reports.steps == []


def test_what_passes_between_steps_does_not_count(clocks: Clocks) -> None:
    """Count nothing for a handler that waits."""

    async def handler() -> None:
        loop = asyncio.get_running_loop()
        waited = loop.create_future()

        def elapse() -> None:
            clocks.wall += 10
            clocks.cpu += 10
            waited.set_result(None)

        loop.call_soon(elapse)
        await waited

    reports = Reports()
    reports.run(handler)
    assert reports.steps == []


# What counts as long


@pytest.mark.parametrize(
    ("wall", "cpu", "switches", "held"),
    [
        (0.0004, 0.0004, 0, []),
        (0.03, 0.03, 0, [0.03]),  # computed
        (0.03, 0.0, 1, [0.03]),  # slept
        (0.03, 0.02, 1, [0.03]),  # both
        (0.03, 0.0001, 0, []),  # preempted: another process had the processor
        (0.03, 0.01, 0, [0.01]),  # computed, and was preempted
    ],
)
def test_what_a_step_held(clocks: Clocks, wall: float, cpu: float, switches: int, held: list[float]) -> None:
    """Count wall time if the thread gave up the processor by itself, else its CPU time: a preempted step held nothing."""
    reports = Reports()
    reports.run(clocks.step(wall, cpu, switches))
    assert reports.steps == pytest.approx(held)


@pytest.mark.parametrize(("cpu", "held"), [(0.0001, []), (0.02, [0.02])])
def test_beside_busy_threads_cpu_time_counts(clocks: Clocks, cpu: float, held: list[float]) -> None:
    """Count only CPU time where other threads are busy: a voluntary switch may be a wait for the GIL."""
    reports = Reports()
    clocks.crowd(reports.watch, used=0.0, switches=0)
    clocks.crowd(reports.watch, used=1.5 * BUSY_SHARE * 0.01, switches=100)
    reports.run(clocks.step(0.03, cpu, 1))
    assert reports.steps == pytest.approx(held)
    clocks.crowd(reports.watch, used=0.0, switches=0)
    reports.run(clocks.step(0.03, cpu, 1))
    assert reports.steps[len(held) :] == pytest.approx([0.03]), "the crowd has gone"


def test_the_first_requests_are_no_evidence(clocks: Clocks) -> None:
    """Don't measure the first requests, which pay for what happens once; measure the next one."""
    seen: list[float] = []
    watch = StepSampler(lambda step, now: seen.append(step), PROOF)

    async def serve() -> None:
        for _ in range(steps.UNMEASURED_REQUESTS + 1):
            await watch.measured(clocks.step(0.02, 0.02, 0)())

    asyncio.run(serve())
    assert seen == pytest.approx([0.02])


def test_a_collection_is_no_evidence(clocks: Clocks) -> None:
    """Ignore a step into which a collection of the older generations fell."""
    reports = Reports()

    async def collected() -> None:
        await clocks.step(0.02, 0.02, 0)()
        clocks.collections += 1

    reports.run(collected)
    assert reports.steps == []


# Threads that compute


def test_threads_that_compute_are_proof(clocks: Clocks) -> None:
    """Report other threads that use much of the processor, for long at a time, as proof."""
    reports = Reports()
    clocks.crowd(reports.watch, used=0.0, switches=0)
    clocks.crowd(reports.watch, used=0.006, switches=3)
    assert reports.steps == [PROOF]


def test_short_work_in_threads_is_no_proof(clocks: Clocks) -> None:
    """Ignore short work in threads, even where it saturates the processor: the threads switch too often."""
    reports = Reports()
    clocks.crowd(reports.watch, used=0.0, switches=0)
    clocks.crowd(reports.watch, used=0.009, switches=int(0.009 / LONG_STEP_S) + 1)
    assert reports.steps == []


def test_a_little_work_in_threads_is_no_proof(clocks: Clocks) -> None:
    """Ignore threads that use less than a tenth of the processor."""
    reports = Reports()
    clocks.crowd(reports.watch, used=0.0, switches=0)
    clocks.crowd(reports.watch, used=0.9 * LONG_SHARE * 0.01, switches=0)
    assert reports.steps == []


def test_what_threads_did_long_ago(clocks: Clocks) -> None:
    """Ignore the CPU time of threads after a pause of more than a second: its moment is unknown."""
    reports = Reports()
    clocks.crowd(reports.watch, used=0.0, switches=0)
    clocks.crowd(reports.watch, used=3.0, switches=0, passed=5.0)
    assert reports.steps == []


# Which requests are measured


def test_how_many_are_due(clocks: Clocks) -> None:
    """Sample the first 64 requests, then one a tick. Sample 64 after a pause, and once a second at most after a late tick."""
    watch = StepSampler(lambda step, now: None, PROOF)

    def measure() -> int:
        count = 0
        while watch.due:
            measured: Any = watch.measured(_nothing())
            if isinstance(measured, TimedSteps):  # the first ones aren't
                measured.close()
            count += 1
        return count

    assert measure() == REQUESTS_PER_BURST
    watch.tick(100.0)
    assert measure() == 1
    watch.tick(100.01)
    watch.tick(100.02)
    assert measure() == 1
    watch.on_late_tick(200.0)
    assert measure() == REQUESTS_PER_BURST
    watch.on_late_tick(200.5)
    assert measure() == 0
    watch.on_late_tick(201.0)
    assert measure() == REQUESTS_PER_BURST
    watch.on_idle()
    assert measure() == REQUESTS_PER_BURST


def test_a_tick_does_not_lessen_what_is_due(clocks: Clocks) -> None:
    """Go on after a tick with a burst that isn't through."""
    watch = StepSampler(lambda step, now: None, PROOF)
    watch.tick(100.0)
    assert watch.due == REQUESTS_PER_BURST


class _nothing:
    def __await__(self) -> Generator[None, None, None]:
        yield


# Nothing else changes


def test_the_result_passes() -> None:
    """Pass through what the handler returns, and what it is sent."""

    async def handler() -> int:
        return await asyncio.wait_for(asyncio.sleep(0, 7), 10)

    assert Reports().run(handler) == 7


def test_an_error_passes(clocks: Clocks) -> None:
    """Pass through what the handler raises, and measure its step all the same."""

    async def handler() -> None:
        clocks.wall += 0.03
        clocks.cpu += 0.03
        raise LookupError("no such thing")

    reports = Reports()
    with pytest.raises(LookupError, match="no such thing"):
        reports.run(handler)
    assert reports.steps == pytest.approx([0.03])


def test_a_cancellation_reaches_the_handler() -> None:
    """Cancel the handler where it waits when the task is cancelled; let it clean up for a while."""
    seen: list[str] = []

    async def handler() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0)
            seen.append("cleaned up")
            raise

    async def main() -> None:
        watch = StepSampler(lambda step, now: None, PROOF)

        async def measured() -> None:
            await watch.measured(handler())

        task = asyncio.create_task(measured())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert seen == ["cancelled", "cleaned up"]


def test_a_swallowed_cancellation() -> None:
    """Let a handler that swallows its cancellation go on and return."""

    async def handler() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "went on"
        return "never"

    async def main() -> str:
        watch = StepSampler(lambda step, now: None, PROOF)

        async def measured() -> str:
            result: str = await watch.measured(handler())
            return result

        task = asyncio.create_task(measured())
        await asyncio.sleep(0)
        task.cancel()
        return await task

    assert asyncio.run(main()) == "went on"


def test_close_reaches_the_handler() -> None:
    """Close a handler that is given up in the middle: its `finally` runs."""
    seen: list[str] = []

    class Sleepless:
        def __await__(self) -> Generator[None, None, None]:
            try:
                yield
            finally:
                seen.append("closed")

    measured: Any = TimedSteps(Sleepless(), StepSampler(lambda step, now: None, PROOF))
    next(iter(measured))
    measured.close()
    assert seen == ["closed"]


def test_a_measured_request_is_timed_as_a_whole(clocks: Clocks) -> None:
    """Measure a request from its beginning to its end, waits included, once, also if it raises or is cancelled."""
    took: list[float] = []

    async def handler(end: BaseException | None) -> None:
        clocks.wall += 0.5
        await asyncio.sleep(0)
        clocks.wall += 0.25
        if end is not None:
            raise end

    async def main() -> None:
        watch = StepSampler(lambda step, now: None, PROOF, took.append)

        async def measured(end: BaseException | None = None) -> None:
            await watch.measured(handler(end))

        for _ in range(steps.UNMEASURED_REQUESTS + 1):
            await measured()
        assert took == pytest.approx([0.75])
        with pytest.raises(ZeroDivisionError):
            await measured(ZeroDivisionError())
        task = asyncio.create_task(measured())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert took == pytest.approx([0.75, 0.75, 0.5])


def test_a_connection_is_no_request(clocks: Clocks) -> None:
    """Report no duration for a handler of connections, though its steps are timed."""
    took: list[float] = []

    async def main() -> None:
        watch = StepSampler(lambda step, now: None, PROOF, took.append)

        async def streamed() -> None:
            await watch.stream(clocks.step(0.5, 0.5, 0)())

        await streamed()
        assert watch.due == REQUESTS_PER_BURST - 1

    asyncio.run(main())
    assert took == []
