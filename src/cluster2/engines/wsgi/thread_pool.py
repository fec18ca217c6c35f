"""A pool of threads beside a loop: for calls that block.

The standard library's executor makes a future with a lock and a condition for each call and wakes the loop for each that
ends. Here a call goes through one queue in C; what threads have to say goes into a deque that the loop empties in one turn,
woken once for all that came meanwhile. (A WSGI request costs less than half of what it does over `run_in_executor`.)

*Who is woken.* Calls come in batches, as the loop turns. A thread that is woken while the loop still reads fights with it for
the GIL, and so do eight threads for calls that one of them makes sooner than the second is awake: a change of threads costs as
much as a short call. So the pool is patient, as long as calls are short: one thread is woken, when the loop has read all that
there is; it takes calls until there are none, and the loop has nothing to do meanwhile. If calls have waited for 5 ms and none
was begun, the one that is being made blocks: then all threads that are needed are woken, and the pool is eager for a while:
whoever is woken wakes one more before each call if others wait. (An empty handler under wrk, eight threads: 0.1 futex calls a
request instead of 3.6.)

Invariant: while calls wait, a bell is unheard, or a thread is about to look, or (patient) one is at work and a look is due.

*Room.* A pool says whether a thread is free, and calls back when one is again. If calls of its own keep it full, it invites
one from outside now and then (`OUTSIDE_CALL_WAIT_S`), at the end of a call: never while all threads are held.

*For how long do calls hold a thread?* Each call's wall time is known; it costs two readings of a clock that needs no system
call. CPU time needs one (1.3 µs in a sandbox), so it is read for few calls: one a tick, and 64 in a row when a long one was
seen. Wall time alone says little, since whoever waits for the GIL looks busy: what it means is decided in `worker.holds`.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import Protocol

from ...errors import AppError
from ...linux.app_threads import AppThread
from ..base import ThreadHold

logger = logging.getLogger("cluster2.worker")

OUTSIDE_CALL_WAIT_S = 0.005
"""Seconds after which somebody from outside is let in, though the pool is full of its own."""
CALLS_PER_BURST = 64
"""Calls in a row whose CPU time is read when a long one was seen."""
LONG_CALL_S = 0.0005
"""Seconds by the wall clock from which on a call's CPU time is worth knowing."""
UNMEASURED_CALLS = 2
"""Calls of a worker's life that tell nothing, unless they take longer than `_FIRST_CALL_ALLOWANCE_S`: they pay for what happens only once."""
_FIRST_CALL_ALLOWANCE_S = 0.25
"""Seconds that late imports and the like may take."""
PATIENT_POLL_INTERVAL_S = 0.005
"""Seconds after which a patient pool looks whether the calls that wait are being made."""
FIRST_EAGER_S = 1.0
_MAX_EAGER_S = 32.0
"""Seconds for which a pool is eager after a call has blocked: the first time, and at most; doubled each time."""
BLOCKED_AGAIN_S = 0.5
"""Seconds after which a call that still holds its thread counts again; sooner when it is twice as old."""

_now = time.monotonic
_cpu = time.thread_time


class ThreadJob(Protocol):
    """A call to be made in a thread."""

    context: Context

    def work(self) -> None:
        """In a thread: make it. Raises nothing."""

    def process_messages(self) -> None:
        """On the loop: the thread has said something (`Pool.notify_loop`)."""


class ThreadPool:
    """Threads that make calls. All methods are the loop's, but for `notify_loop`.

    Attributes:
        size: how many threads.
        busy: calls that have a thread or wait for one.
        failures: counts calls that failed when their response was complete, or their client gone; a step is one under the GIL.
        freed: called when there is room again after `has_capacity` has denied it.
        loop: on which it was started.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, size: int) -> None:
        self.size = size
        self.busy = 0
        self.failures = itertools.count()
        self.freed: Callable[[], None] | None = None
        self._jobs: deque[ThreadJob | None] = deque()
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._ringing = False
        self._patient = True
        self._eager_for = FIRST_EAGER_S
        self._begun = 0
        self._looked_at = -1
        self._said: deque[ThreadJob | None] = deque()
        self._waking = False
        self._context = copy_context()
        self._since = [0.0] * size
        self._counted = [0.0] * size
        self._ages = [0.0] * size
        self._wall = 0.0
        self._used = 0.0
        self._full = False
        self._due = 0
        self._done = 0
        self._quiet_until = 0.0
        self._denied_at = 0.0

    def start(self) -> None:
        """Start the threads, on the running loop. They don't keep a process from ending.

        Where the system has fewer (RLIMIT_NPROC, a control group's bound) it has to do with those.

        Raises:
            AppError: there isn't one.
        """
        self.loop = asyncio.get_running_loop()
        self._context = copy_context()
        for seat in range(self.size):
            try:
                AppThread(self._serve, seat, name=f"wsgi-{seat}").start()
            except RuntimeError as error:
                if not seat:
                    raise AppError(f"no thread can be started for the app's calls: {error}") from error
                logger.warning("threads = %d: only %d can be started: %s", self.size, seat, error)
                self.size = seat
                return

    def stop(self) -> None:
        """Let threads go, each as soon as it is free."""
        self._jobs.extend([None] * self.size)
        self._wake(self.size)

    def run(self, job: ThreadJob) -> None:
        """Have a call made by the next thread that is free."""
        self.busy += 1
        if self.busy >= self.size:
            self._full = True
        self._jobs.append(job)
        if not self._patient:
            if not self._ringing:
                self._ring()
        elif not self._ringing:
            self._ringing = True
            self.loop.call_soon(self._bell.put, None)  # when the loop has read all that there is
        elif self._looked_at < 0:
            self._look_later()

    def drop_waiting(self) -> None:
        """Forget the calls that no thread has begun yet."""
        try:
            while True:
                if self._jobs.popleft() is not None:
                    self.busy -= 1
        except IndexError:
            pass

    def notify_loop(self, job: ThreadJob | None) -> None:
        """In a thread: have the loop call `job.process_messages`."""
        self._said.append(job)
        if not self._waking:  # the loop clears this before it empties the deque, so nothing is overlooked
            self._waking = True
            try:
                # Not in the context of the call: what is heard may let other requests and connections begin.
                self.loop.call_soon_threadsafe(self._process_messages, context=self._context)
            except RuntimeError:
                pass  # the loop has ended: a thread that was stuck comes too late to say anything

    def has_capacity(self) -> bool:
        """Whether a thread is free. If not, `freed` will be called."""
        if self.busy < self.size:
            return True
        if not self._denied_at:
            self._denied_at = _now()
        return False

    def longest_hold(self, now: float, above: float) -> ThreadHold:
        """See `Engine.longest_hold`."""
        wall = self._wall
        for seat, since in enumerate(self._since):
            age, counted = now - since, self._ages[seat]
            if (
                since
                and age > above
                and (self._counted[seat] != since or age > min(2 * counted, counted + BLOCKED_AGAIN_S))
            ):
                self._counted[seat], self._ages[seat] = since, age
                wall = max(wall, age)
        counts = self._done > UNMEASURED_CALLS or wall > _FIRST_CALL_ALLOWANCE_S
        hold = ThreadHold(wall, self._used, self._full) if counts else ThreadHold(0.0, 0.0, False)
        if wall > LONG_CALL_S and now >= self._quiet_until:
            self._due, self._quiet_until = CALLS_PER_BURST, now + 1.0
        self._due = self._due or 1
        self._wall = self._used = 0.0
        self._full = self.busy >= self.size
        return hold

    def under_way(self) -> list[float]:
        """Since when, on the monotonic clock, each of the calls under way has had its thread."""
        return [since for since in self._since if since]

    def _process_messages(self) -> None:
        """What threads have said since the last time."""
        self._waking = False
        said = self._said
        while said:
            job = said.popleft()
            if job is not None:
                job.process_messages()
            else:
                self.busy -= 1
                self._done += 1
        if self._denied_at and (self.busy < self.size or _now() - self._denied_at > OUTSIDE_CALL_WAIT_S):
            self._denied_at = 0.0
            if self.freed is not None:
                self.freed()

    def _look_later(self) -> None:
        self._looked_at = self._begun
        self.loop.call_later(PATIENT_POLL_INTERVAL_S, self._wake_more_threads)

    def _wake_more_threads(self) -> None:
        """Wake more threads if no call that waits has been begun since."""
        begun, self._looked_at = self._looked_at, -1
        waiting = len(self._jobs)
        if not waiting or not self._patient:
            return
        if self._begun != begun:
            self._look_later()
            return
        self._patient = False
        self.loop.call_later(self._eager_for, self._calm)
        self._eager_for = min(2 * self._eager_for, _MAX_EAGER_S)
        self._wake(min(waiting, self.size))

    def _calm(self) -> None:
        """Try patience again; a while later, without a call that has blocked, all is forgotten."""
        self._patient = True
        self.loop.call_later(FIRST_EAGER_S, self._forget)
        if self._jobs:
            self._look_later()

    def _forget(self) -> None:
        if self._patient:
            self._eager_for = FIRST_EAGER_S

    def _serve(self, seat: int) -> None:
        """A thread's life."""
        jobs, since = self._jobs, self._since
        while True:
            try:
                job = jobs.popleft()
            except IndexError:
                self._ringing = False
                if jobs:  # one has come before we said so
                    continue
                self._bell.get()
                self._ringing = self._patient
                continue
            self._begun += 1
            if jobs and not self._patient and not self._ringing:
                self._ring()
            if job is None:
                return
            # Threads may overwrite each other's counts here; what is lost is one observation of many.
            began = since[seat] = _now()
            if self._due:
                self._due -= 1
                self._measured(job)
            else:
                job.context.run(job.work)
            wall = _now() - began
            since[seat] = 0.0
            if wall > self._wall and self._counted[seat] != began:
                self._wall = wall
            del job
            self.notify_loop(None)

    def _ring(self) -> None:
        self._ringing = True
        self._bell.put(None)

    def _wake(self, count: int) -> None:
        for _ in range(count):
            self._bell.put(None)

    def _measured(self, job: ThreadJob) -> None:
        collected, before = collections(), _cpu()
        job.context.run(job.work)
        used = _cpu() - before
        if used > self._used and collections() == collected:
            self._used = used


def collections() -> int:
    """Of the garbage collector's older generations, so far: what falls on one is no property of the call."""
    _, middle, old = gc.get_stats()
    return int(middle["collections"]) + int(old["collections"])
