"""A pool of threads beside an event loop, for calls that block.

The standard library's executor makes a future with a lock and a condition for each call, and wakes the loop for each end of a
call. Here a call goes through one queue in C. The messages of threads go into a deque, and the loop is woken once to process all
that have come. A WSGI request costs less than half of its cost over `run_in_executor`.

*Waking threads.* Calls come in batches, as the loop turns. A thread that wakes while the loop still reads competes with it for
the GIL. Eight woken threads compete for calls that one of them makes before the second is awake, and a switch of threads costs
as much as a short call. So the pool has two modes:

- *Patient*, as long as calls are short. When the loop has read all input, one thread is woken. It takes calls until there are
  none, and the loop has nothing to do meanwhile.
- *Eager*, for a while after a call has blocked: calls have waited for 5 ms, and none was begun. Then all threads that are needed
  are woken, and each woken thread wakes one more before each call if others wait.

An empty handler under wrk with eight threads costs 0.1 futex calls a request; without the patient mode it was 3.6.

Invariant: while calls wait, a wake-up is in the queue `_bell`, or a thread is about to check the calls, or (patient) one thread
is at work and a check is scheduled.

*Capacity.* The pool reports whether a thread is free, and calls `freed` when one becomes free. If its own calls keep it full, it
admits a call from outside now and then (`_OUTSIDE_CALL_WAIT_S`). That happens at the end of a call, so never while all threads
are held.

*Times.* The wall time of each call is known: it takes two readings of a clock that needs no system call. CPU time needs a system
call (1.3 µs in a sandbox), so it is read for few calls: one for each tick, and 64 in a row after a long call. Wall time alone
means little, since a thread that waits for the GIL looks busy. `worker.sampling.thread_holds` interprets the times.
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

_OUTSIDE_CALL_WAIT_S = 0.005
"""Seconds after which one call from outside is admitted, though the pool's own calls keep it full."""
_CALLS_PER_BURST = 64
"""Calls in a row whose CPU time is read after a long call."""
_LONG_CALL_S = 0.0005
"""Wall time in seconds above which a call's CPU time is worth a reading."""
_UNMEASURED_CALLS = 2
"""First calls of a worker that aren't measured unless they exceed `_FIRST_CALL_ALLOWANCE_S`: they pay for late imports."""
_FIRST_CALL_ALLOWANCE_S = 0.25
"""Seconds that late imports and the like may take."""
PATIENT_POLL_INTERVAL_S = 0.005
"""Seconds after which a patient pool checks whether the calls that wait are being made."""
FIRST_EAGER_S = 1.0
"""Seconds for which a pool is eager when a call has blocked for the first time. Doubled each time."""
_MAX_EAGER_S = 32.0
"""Seconds for which a pool is eager at most."""
_BLOCKED_AGAIN_S = 0.5
"""Seconds after which a call that still holds its thread counts again. It counts sooner if it is twice as old."""

_now = time.monotonic
_cpu = time.thread_time


class ThreadJob(Protocol):
    """A call to be made in a thread.

    Attributes:
        context: the context variables for it.
    """

    context: Context

    def work(self) -> None:
        """Make the call, in a thread. Raises nothing."""

    def process_messages(self) -> None:
        """Process the messages of the thread, on the loop (`ThreadPool.notify_loop`)."""


class ThreadPool:
    """A pool of threads that make calls. All methods run on the loop, except `notify_loop`.

    Attributes:
        size: the number of threads.
        busy: the number of calls that have a thread or wait for one.
        failures: counts calls that failed after their response was complete, or their client gone. A step is atomic (GIL).
        freed: called when a thread is free again, after `has_capacity` has returned False.
        loop: the loop on which the pool was started.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, size: int) -> None:
        self.size = size
        self.busy = 0
        self.failures = itertools.count()
        self.freed: Callable[[], None] | None = None
        self._jobs: deque[ThreadJob | None] = deque()  # None: one thread ends
        self._bell: SimpleQueue[None] = SimpleQueue()  # each item wakes one thread
        self._ringing = False  # a wake-up was sent, and no thread has found the jobs empty since
        self._patient = True
        self._eager_for = FIRST_EAGER_S
        self._begun = 0  # calls, ever
        self._begun_at_check = -1  # `_begun` when the check was scheduled; -1: no check is scheduled
        self._messages: deque[ThreadJob | None] = deque()  # None: a call has ended
        self._waking = False  # the loop was woken, and hasn't begun to process messages
        self._context = copy_context()
        # For each thread: when its call began (0: none), the begin of the call that was counted, and its age then.
        self._since = [0.0] * size
        self._counted = [0.0] * size
        self._ages = [0.0] * size
        # The longest times since the last `longest_hold`.
        self._wall = 0.0
        self._used = 0.0
        self._full = False
        self._due = 0  # calls whose CPU time is still to be read
        self._done = 0
        self._quiet_until = 0.0  # no burst of readings before this time
        self._denied_at = 0.0  # when `has_capacity` returned False first; 0: it hasn't

    def start(self) -> None:
        """Start the threads, on the running loop. They don't keep the process from ending.

        If the system allows fewer threads (RLIMIT_NPROC, the limit of a control group), the pool works with these.

        Raises:
            AppError: not one thread can be started.
        """
        self.loop = asyncio.get_running_loop()
        self._context = copy_context()
        for index in range(self.size):
            try:
                AppThread(self._serve, index, name=f"wsgi-{index}").start()
            except RuntimeError as error:
                if not index:
                    raise AppError(f"no thread can be started for the app's calls: {error}") from error
                logger.warning("threads = %d: only %d can be started: %s", self.size, index, error)
                self.size = index
                return

    def stop(self) -> None:
        """End the threads, each as soon as it is free."""
        self._jobs.extend([None] * self.size)
        self._wake(self.size)

    def run(self, job: ThreadJob) -> None:
        """Have the next free thread make a call."""
        self.busy += 1
        if self.busy >= self.size:
            self._full = True
        self._jobs.append(job)
        if not self._patient:
            if not self._ringing:
                self._ring()
        elif not self._ringing:
            self._ringing = True
            self.loop.call_soon(self._bell.put, None)  # after the loop has read all input of this turn
        elif self._begun_at_check < 0:
            self._check_later()

    def drop_waiting(self) -> None:
        """Drop the calls that no thread has begun yet."""
        try:
            while True:
                if self._jobs.popleft() is not None:
                    self.busy -= 1
        except IndexError:
            pass

    def notify_loop(self, job: ThreadJob | None) -> None:
        """Have the loop call `job.process_messages`. Called in threads.

        Args:
            job: the sender; None: a call has ended.
        """
        self._messages.append(job)
        if not self._waking:  # the loop clears this before it empties the deque, so nothing is overlooked
            self._waking = True
            try:
                # In the pool's context, not in the call's: processing may begin other requests and connections.
                self.loop.call_soon_threadsafe(self._process_messages, context=self._context)
            except RuntimeError:
                pass  # the loop is closed: the thread was stuck, and is too late

    def has_capacity(self) -> bool:
        """Return whether a thread is free. If not, `freed` will be called."""
        if self.busy < self.size:
            return True
        if not self._denied_at:
            self._denied_at = _now()
        return False

    def longest_hold(self, now: float, above: float) -> ThreadHold:
        """Return the longest times since the last call; see `ProtocolEngine.longest_hold`."""
        wall = self._wall
        for index, since in enumerate(self._since):
            age, counted = now - since, self._ages[index]
            if (
                since
                and age > above
                and (self._counted[index] != since or age > min(2 * counted, counted + _BLOCKED_AGAIN_S))
            ):
                self._counted[index], self._ages[index] = since, age
                wall = max(wall, age)
        counts = self._done > _UNMEASURED_CALLS or wall > _FIRST_CALL_ALLOWANCE_S
        hold = ThreadHold(wall, self._used, self._full) if counts else ThreadHold(0.0, 0.0, False)
        if wall > _LONG_CALL_S and now >= self._quiet_until:
            self._due, self._quiet_until = _CALLS_PER_BURST, now + 1.0
        self._due = self._due or 1
        self._wall = self._used = 0.0
        self._full = self.busy >= self.size
        return hold

    def under_way(self) -> list[float]:
        """Return the monotonic times since which the calls under way have had their threads."""
        return [since for since in self._since if since]

    def _process_messages(self) -> None:
        """Process the messages that threads have sent since the last call of this."""
        self._waking = False
        messages = self._messages
        while messages:
            job = messages.popleft()
            if job is not None:
                job.process_messages()
            else:
                self.busy -= 1
                self._done += 1
        if self._denied_at and (self.busy < self.size or _now() - self._denied_at > _OUTSIDE_CALL_WAIT_S):
            self._denied_at = 0.0
            if self.freed is not None:
                self.freed()

    def _check_later(self) -> None:
        self._begun_at_check = self._begun
        self.loop.call_later(PATIENT_POLL_INTERVAL_S, self._wake_more_threads)

    def _wake_more_threads(self) -> None:
        """Wake more threads if no call was begun since the check was scheduled: the running call blocks."""
        begun, self._begun_at_check = self._begun_at_check, -1
        waiting = len(self._jobs)
        if not waiting or not self._patient:
            return
        if self._begun != begun:
            self._check_later()
            return
        self._patient = False
        self.loop.call_later(self._eager_for, self._calm)
        self._eager_for = min(2 * self._eager_for, _MAX_EAGER_S)
        self._wake(min(waiting, self.size))

    def _calm(self) -> None:
        """Become patient again. If no call blocks for a while, the next eager time is short again."""
        self._patient = True
        self.loop.call_later(FIRST_EAGER_S, self._forget)
        if self._jobs:
            self._check_later()

    def _forget(self) -> None:
        if self._patient:
            self._eager_for = FIRST_EAGER_S

    def _serve(self, index: int) -> None:
        """Make calls until the pool ends: the function of a thread."""
        jobs, since = self._jobs, self._since
        while True:
            try:
                job = jobs.popleft()
            except IndexError:
                self._ringing = False
                if jobs:  # `run` has added a job, and seen `_ringing` still set: it has sent no wake-up
                    continue
                self._bell.get()
                self._ringing = self._patient
                continue
            self._begun += 1
            if jobs and not self._patient and not self._ringing:
                self._ring()
            if job is None:
                return
            # Threads may overwrite each other's values below. That loses one observation of many.
            began = since[index] = _now()
            if self._due:
                self._due -= 1
                self._measured(job)
            else:
                job.context.run(job.work)
            wall = _now() - began
            since[index] = 0.0
            if wall > self._wall and self._counted[index] != began:
                self._wall = wall
            del job  # while this thread waits for the next job it must not keep the request alive
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
        if used > self._used and collections() == collected:  # a collection isn't the call's own time
            self._used = used


def collections() -> int:
    """Return how many times the garbage collector has collected its older generations."""
    _, middle, old = gc.get_stats()
    return int(middle["collections"]) + int(old["collections"])
