"""For how long do the app's handlers hold the loop? Measured on few requests, so that the others pay nothing.

A handler's awaitable is wrapped only when a sample is due: one request in a tick (10 ms while there is work), and 64 in a row
after a pause or when a tick came late, so that blocking is found within a few requests of its beginning. The wrapper times
each step: what the handler does between two returns to the loop.

A step that is long by the wall clock may only have been preempted; then it held nothing that another worker could use. So it
counts for the CPU time that its thread used, or in full if the thread gave up the processor by itself (`ru_nvcsw`): then it
slept, or waited for something. Where other threads are busy, during the step or lately, a voluntary switch may be no more
than waiting for the GIL: then only CPU time counts. CPU time is read from the thread's clock: getrusage(2) knows it only as
of the kernel's last tick or switch, up to 4 ms ago, and by that any step that was preempted looked long.

Two kinds of long steps are no evidence. The first requests of a worker pay for what happens only once (late imports, caches:
15–20 ms with FastAPI), in all workers at the same time. And a collection of the garbage collector's older generations takes
2–9 ms in an app of some size: under load that happened often enough, in enough workers, to look like handlers that block.

Threads that compute (FastAPI's `def` endpoints) hold the GIL and make the loop late in a way that no step shows. A tick
sees them: CPU time of the process less that of the loop's thread, if it is more than a tenth of the time, and more than 0.5 ms
for each voluntary switch of those threads (short work in threads stays below that even when it saturates the processor).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from resource import RUSAGE_SELF, RUSAGE_THREAD, getrusage
from typing import Any, NamedTuple

from ....engines.base import TimedAwaitable
from ....engines.wsgi.thread_pool import collections
from .accept_mode import LONG_STEP_S

UNMEASURED_REQUESTS = 2
"""Requests of a worker's life that aren't measured."""
REQUESTS_PER_BURST = 64
"""Requests in a row that are measured after a pause, or when a tick came late."""
MAX_OTHER_THREADS_CPU_S = 0.00002
"""Seconds of CPU time that other threads may use during a step without being in its way."""
LONG_SHARE = 0.1
BUSY_SHARE = 0.05
"""Shares of a processor that other threads use: above the first they may be long, above the second they are in the way."""

_now = time.monotonic
_cpu = time.thread_time
_whole = time.process_time


class StepStart(NamedTuple):
    """What was known when a step began.

    Attributes:
        cpu: CPU time of the thread.
        whole: CPU time of the process.
        switches: voluntary switches of the thread.
        collections: of the garbage collector's older generations.
    """

    cpu: float
    whole: float
    switches: int
    collections: int


class StepSampler:
    """Decides which requests are measured, and reports long steps.

    Attributes:
        due: how many of the next requests are to be measured. The wrapper around the app reads it for each request.
        report: takes the length of a long step in seconds, and the time.
        took: takes how long a measured request took in all, in seconds.
    """

    def __init__(
        self,
        report: Callable[[float, float], None],
        proof: float,
        took: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Measure the first requests.

        Args:
            proof: seconds: what to report for threads that compute for long, since no step tells.
        """
        self.due = REQUESTS_PER_BURST
        self.report = report
        self.took = took
        self._proof = proof
        self._first = UNMEASURED_REQUESTS
        self._crowded = False
        self._others = 0.0
        self._switches = 0
        self._at = 0.0
        self._quiet_until = 0.0

    def measured(self, awaitable: Awaitable[Any]) -> Awaitable[Any]:
        """The handler's awaitable, timed."""
        self.due -= 1
        if self._first:
            self._first -= 1
            return awaitable
        return TimedSteps(awaitable, self)

    def claim(self) -> bool:
        """Use up a sample from a thread other than the loop's; return whether the caller is to measure its request.

        Two threads that come at once may both get the last sample. None makes a count negative, which would never end.
        """
        self.due = max(0, self.due - 1)
        if self._first:
            self._first = max(0, self._first - 1)
            return False
        return True

    def stream(self, awaitable: Awaitable[Any]) -> Awaitable[Any]:
        """The awaitable of a handler that lives as long as its connection: of its steps, those that are due are timed."""
        return TimedStreamSteps(awaitable, self)

    def on_late_tick(self, now: float) -> None:
        """A tick came late: is the loop held, or only busy? Look closely, once a second at most."""
        if now >= self._quiet_until:
            self.due = REQUESTS_PER_BURST
            self._quiet_until = now + 1.0

    def on_idle(self) -> None:
        """Nothing has happened for a while: look at the first ones that come."""
        self.due = REQUESTS_PER_BURST

    def tick(self, now: float, *, pooled: bool = False) -> None:
        """Have one request measured before the next tick, and look at what other threads do.

        Args:
            pooled: they are an engine's, which accounts for them itself (`holds`).
        """
        self.due = self.due or 1
        others = _whole() - _cpu()
        switches = getrusage(RUSAGE_SELF).ru_nvcsw - getrusage(RUSAGE_THREAD).ru_nvcsw
        passed, used, switched = now - self._at, others - self._others, switches - self._switches
        if not pooled and passed < 1.0 and used > LONG_SHARE * passed and used > LONG_STEP_S * switched:
            self.report(self._proof, now)
        self._crowded = used > BUSY_SHARE * passed
        self._at, self._others, self._switches = now, others, switches

    def long_step(self, wall: float, now: float, before: StepStart) -> None:
        """A step was long by the wall clock."""
        if collections() != before.collections:
            return
        cpu, whole, switches, _ = before
        # Before the thread's own, as after it at the beginning: what passes between the two is nobody else's.
        whole_now = _whole()
        used = min(_cpu() - cpu, wall)  # an interrupt may have come between the two clocks
        others = whole_now - whole - used
        slept = getrusage(RUSAGE_THREAD).ru_nvcsw != switches and others < MAX_OTHER_THREADS_CPU_S
        held = wall if slept and not self._crowded else used
        if held > LONG_STEP_S:
            self.report(held, now)


class TimedSteps(TimedAwaitable):
    """Awaits a handler and times each of its steps, and the whole."""

    __slots__ = ("_began", "_watch")

    def __init__(self, awaitable: Awaitable[Any], watch: StepSampler) -> None:
        self.inner = awaitable.__await__()
        self._watch = watch
        self._began = _now()

    def __await__(self) -> TimedSteps:
        return self

    def __iter__(self) -> TimedSteps:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        """One step."""
        before = StepStart(_cpu(), _whole(), getrusage(RUSAGE_THREAD).ru_nvcsw, collections())
        began = _now()
        try:
            return self.inner.send(value)
        except BaseException:  # its return value, too, comes as an exception
            self._ended()
            raise
        finally:
            now = _now()
            if now - began > LONG_STEP_S:
                self._watch.long_step(now - began, now, before)

    def throw(self, *error: Any) -> Any:
        """A cancellation, usually; as a step it isn't timed."""
        try:
            return self.inner.throw(*error)
        except BaseException:
            self._ended()
            raise

    def close(self) -> None:
        """End the handler."""
        self.inner.close()

    def _ended(self) -> None:
        self._watch.took(_now() - self._began)


class TimedStreamSteps(TimedSteps):
    """The same, but what is sampled is a step: one that was, because its connection was, would be timed for ever."""

    __slots__ = ()

    def send(self, value: Any) -> Any:
        """One step."""
        watch = self._watch
        if not watch.due:
            return self.inner.send(value)
        watch.due -= 1
        return super().send(value)

    def _ended(self) -> None:
        """A connection is no request: how long it took says nothing."""
