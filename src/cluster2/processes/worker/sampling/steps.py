"""Samples for how long the app's handlers hold the loop: on few requests, so that the others pay nothing.

*Which requests.* A handler's awaitable is wrapped only when a sample is due: one request in a tick (10 ms while there is work),
and 64 in a row after a pause or a late tick. So blocking is found within a few requests of its beginning. The wrapper times each
step: what the handler does between two returns to the loop.

*Which time.* A step that is long by the wall clock may only have been preempted. Then it held nothing that another worker could
use. So it counts for the CPU time of its thread. It counts in full if the thread gave up the processor by itself (`ru_nvcsw`):
then the thread slept, or waited for something. Where other threads are busy, during the step or lately, a voluntary switch may
only be a wait for the GIL: then only CPU time counts. CPU time comes from the thread's clock. getrusage(2) knows it only as of
the kernel's last tick or switch, up to 4 ms ago, and by that any step that was preempted looked long.

*Which long steps are no evidence.* The first requests of a worker pay for what happens only once (late imports, caches: 15–20 ms
with FastAPI), in all workers at the same time. And a collection of the garbage collector's older generations takes 2–9 ms in an
app of some size. Under load that happened often enough, in enough workers, to look like handlers that block.

*Threads that compute* (FastAPI's `def` endpoints) hold the GIL and make the loop late in a way that no step shows. A tick detects
them by the CPU time of the process less that of the loop's thread. They count if that is more than a tenth of the time, and more
than 0.5 ms for each voluntary switch of those threads. Short work in threads stays below that even when it saturates the
processor.
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
"""Requests at the start of a worker that aren't measured."""
REQUESTS_PER_BURST = 64
"""Requests in a row that are measured after a pause, or when a tick came late."""
_MAX_OTHER_THREADS_CPU_S = 0.00002
"""Seconds of CPU time that other threads may use during a step without delaying it."""
LONG_SHARE = 0.1
BUSY_SHARE = 0.05
"""Shares of a processor that other threads use: above the first they may compute for long, above the second they are a delay."""

_now = time.monotonic
_cpu = time.thread_time
_whole = time.process_time


class _StepStart(NamedTuple):
    """The counters at the beginning of a step.

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
    """Selects the requests to measure, and reports long steps.

    Attributes:
        due: how many of the next requests are to be measured. The worker's layer around the app reads it for each request.
        report: receives the length of a long step in seconds, and the time.
        took: receives the duration of a measured request in seconds.
    """

    def __init__(
        self,
        report: Callable[[float, float], None],
        proof: float,
        took: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Begin with a burst.

        Args:
            proof: the seconds to report for threads that compute for long, since no step measures them.
        """
        self.due = REQUESTS_PER_BURST
        self.report = report
        self.took = took
        self._proof = proof
        self._first = UNMEASURED_REQUESTS
        self._threads_busy = False
        self._others_cpu = 0.0
        self._switches = 0
        self._ticked_at = 0.0
        self._next_burst_at = 0.0

    def measured(self, awaitable: Awaitable[Any]) -> Awaitable[Any]:
        """Return the handler's awaitable, with its steps timed."""
        self.due -= 1
        if self._first:  # late imports and caches make the first ones long
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
        """Return the awaitable of a handler that lives as long as its connection. Those of its steps that are due are timed."""
        return _TimedStreamSteps(awaitable, self)

    def on_late_tick(self, now: float) -> None:
        """Begin a burst after a late tick, once a second at most: the loop may be held, or only busy."""
        if now >= self._next_burst_at:
            self.due = REQUESTS_PER_BURST
            self._next_burst_at = now + 1.0

    def on_idle(self) -> None:
        """Begin a burst after a pause, with the next requests."""
        self.due = REQUESTS_PER_BURST

    def tick(self, now: float, *, pooled: bool = False) -> None:
        """Have one request measured before the next tick, and check the CPU time of other threads.

        Args:
            pooled: the threads are an engine's, which measures them itself (`thread_holds`).
        """
        self.due = self.due or 1  # a burst goes on
        others = _whole() - _cpu()
        switches = getrusage(RUSAGE_SELF).ru_nvcsw - getrusage(RUSAGE_THREAD).ru_nvcsw
        passed, used, switched = now - self._ticked_at, others - self._others_cpu, switches - self._switches
        if not pooled and passed < 1.0 and used > LONG_SHARE * passed and used > LONG_STEP_S * switched:
            self.report(self._proof, now)
        self._threads_busy = used > BUSY_SHARE * passed
        self._ticked_at, self._others_cpu, self._switches = now, others, switches

    def long_step(self, wall: float, now: float, before: _StepStart) -> None:
        """Report a step that was long by the wall clock, if it held the loop."""
        if collections() != before.collections:
            return
        cpu, whole, switches, _ = before
        # The process clock is read before the thread's, and after it at the beginning of the step: so the time between the two
        # readings isn't attributed to other threads.
        whole_now = _whole()
        used = min(_cpu() - cpu, wall)  # an interrupt may have come between the two clocks
        others = whole_now - whole - used
        slept = getrusage(RUSAGE_THREAD).ru_nvcsw != switches and others < _MAX_OTHER_THREADS_CPU_S
        held = wall if slept and not self._threads_busy else used
        if held > LONG_STEP_S:
            self.report(held, now)


class TimedSteps(TimedAwaitable):
    """The awaitable of a handler that times each of its steps, and the whole."""

    __slots__ = ("_began", "_sampler")

    def __init__(self, awaitable: Awaitable[Any], sampler: StepSampler) -> None:
        self.inner = awaitable.__await__()
        self._sampler = sampler
        self._began = _now()

    def __await__(self) -> TimedSteps:
        return self

    def __iter__(self) -> TimedSteps:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        """Run one step, and time it."""
        before = _StepStart(_cpu(), _whole(), getrusage(RUSAGE_THREAD).ru_nvcsw, collections())
        began = _now()
        try:
            return self.inner.send(value)
        except BaseException:  # the return value, too, comes as an exception: StopIteration
            self._ended()
            raise
        finally:
            now = _now()
            if now - began > LONG_STEP_S:
                self._sampler.long_step(now - began, now, before)

    def throw(self, *error: Any) -> Any:
        """Run a step that begins with an exception, usually a cancellation. It isn't timed."""
        try:
            return self.inner.throw(*error)
        except BaseException:
            self._ended()
            raise

    def close(self) -> None:
        """End the handler."""
        self.inner.close()

    def _ended(self) -> None:
        self._sampler.took(_now() - self._began)


class _TimedStreamSteps(TimedSteps):
    """The awaitable of a stream's handler. It samples steps, not the handler, which would be timed as long as its connection."""

    __slots__ = ()

    def send(self, value: Any) -> Any:
        """Run one step, and time it if a sample is due."""
        sampler = self._sampler
        if not sampler.due:
            return self.inner.send(value)
        sampler.due -= 1
        return super().send(value)

    def _ended(self) -> None:
        """Do nothing: the duration of a connection is no duration of a request."""
