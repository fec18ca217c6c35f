"""The pool of threads: every call is made, free threads are announced, holds are measured."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context

import pytest

from cluster2.engines.wsgi import thread_pool
from cluster2.engines.wsgi.thread_pool import ThreadPool
from cluster2.errors import AppError
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio


class Task:
    """A call of a function."""

    def __init__(self, pool: ThreadPool, call: Callable[[], object]) -> None:
        self.context = copy_context()
        self.pool = pool
        self.call = call
        self.heard = 0

    def work(self) -> None:
        self.call()
        self.pool.notify_loop(self)

    def process_messages(self) -> None:
        self.heard += 1


@asynccontextmanager
async def pool_of(size: int) -> AsyncIterator[ThreadPool]:
    pool = ThreadPool(size)
    before = threading.active_count()
    pool.start()
    yield pool
    await until(lambda: not pool.busy, "calls are under way")
    pool.stop()
    await until(lambda: threading.active_count() <= before, "threads are left")


@pytest.mark.parametrize("size", [1, 3, 8])
async def test_every_call_is_made(size: int) -> None:
    """However calls come, each is made once and heard of once, and all threads leave when they are let go."""
    async with pool_of(size) as pool:
        tasks = []
        for number in range(500):
            tasks.append(Task(pool, (lambda: time.sleep(0.0005)) if number % 7 == 0 else (lambda: None)))
            pool.run(tasks[-1])
            if number % 50 == 0:
                await asyncio.sleep(0)
        await until(lambda: not pool.busy)
        assert [task.heard for task in tasks] == [1] * 500


async def test_all_threads_work_at_once() -> None:
    """Calls that block get a thread each, as many as there are, although they came in one batch."""
    barrier = threading.Barrier(4)
    async with pool_of(4) as pool:
        for _ in range(4):
            pool.run(Task(pool, lambda: barrier.wait(PATIENCE)))
        await until(lambda: not pool.busy)


async def test_short_calls_need_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as no call blocks all of them are made by one thread, batch after batch."""
    monkeypatch.setattr(thread_pool, "PATIENT_POLL_INTERVAL_S", 3600.0)
    made: list[str] = []
    async with pool_of(8) as pool:
        for _ in range(50):
            for _ in range(20):
                pool.run(Task(pool, lambda: made.append(threading.current_thread().name)))
            await until(lambda: not pool.busy)
        # Bells that are heard in any order: each batch has one thread, not all of them the same.
        assert all(len(set(made[first : first + 20])) == 1 for first in range(0, 1000, 20))
    assert len(made) == 1000


async def test_patience_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that blocks while others wait makes the pool eager: for longer each time, until all was quiet for a while."""
    monkeypatch.setattr(thread_pool, "FIRST_EAGER_S", 0.02)
    gate = threading.Event()
    async with pool_of(2) as pool:
        pool._eager_for = thread_pool.FIRST_EAGER_S
        forget = pool._forget
        pool._forget = lambda: None  # type: ignore[method-assign]
        for more in (1, 2):
            await until(lambda: pool._patient)
            gate.clear()
            for _ in range(2):
                pool.run(Task(pool, lambda: gate.wait(PATIENCE)))
            await until(lambda: not pool._patient)
            await until(lambda: sum(map(bool, pool.under_way())) == 2, "both have a thread")
            assert pool._eager_for == 2 * more * thread_pool.FIRST_EAGER_S
            gate.set()
            await until(lambda: not pool.busy)
        await until(lambda: pool._patient)
        forget()
        assert pool._eager_for == thread_pool.FIRST_EAGER_S


async def test_a_blocked_thread_holds_up_nobody() -> None:
    """While one call blocks the others are made, whichever thread was woken for them."""
    gate = threading.Event()
    async with pool_of(2) as pool:
        pool.run(Task(pool, lambda: gate.wait(PATIENCE)))
        for _ in range(20):
            task = Task(pool, lambda: None)
            pool.run(task)
            await until(lambda task=task: task.heard)  # type: ignore[misc]
        assert pool.busy == 1
        gate.set()


async def test_invitations() -> None:
    """After a denial the callback is called once when a thread is free, and without a denial it isn't called."""
    told: list[int] = []
    async with pool_of(1) as pool:
        pool.freed = lambda: told.append(pool.busy)
        pool.run(Task(pool, lambda: None))
        await until(lambda: not pool.busy)
        assert told == []
        pool.run(Task(pool, lambda: None))
        assert not pool.has_capacity()
        await until(lambda: not pool.busy)
        assert told == [0]
        assert pool.has_capacity()


async def test_a_pool_full_of_its_own_lets_in_one() -> None:
    """If its own calls keep the pool full, a call from outside is admitted now and then, at the end of a call."""
    told: list[int] = []
    async with pool_of(1) as pool:
        pool.freed = lambda: told.append(pool.busy)
        for _ in range(20):
            pool.run(Task(pool, lambda: time.sleep(0.002)))
        assert not pool.has_capacity()
        await until(lambda: told)
        assert told[0] > 0


async def test_holds() -> None:
    """A call that sleeps is seen once, while it holds its thread or afterwards; one that computes by its CPU time."""

    def compute() -> None:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass

    async with pool_of(2) as pool:
        for _ in range(3):
            pool.run(Task(pool, lambda: None))
            await until(lambda: not pool.busy)
        pool.longest_hold(time.monotonic(), 0.005)
        gate = threading.Event()
        pool.run(Task(pool, lambda: gate.wait(PATIENCE)))
        hold = await until(lambda: (found := pool.longest_hold(time.monotonic(), 0.005)).wall and found)
        assert hold.wall > 0.005
        assert not hold.full
        assert pool.longest_hold(time.monotonic(), 9.0).wall == 0.0
        assert pool.longest_hold(time.monotonic() + 9, 0.005).wall > 9, "it counts again when it is older"
        assert pool.longest_hold(time.monotonic() + 9, 0.005).wall == 0.0, "but no sooner"
        gate.set()
        await until(lambda: not pool.busy)
        assert pool.longest_hold(time.monotonic(), 0.005).wall < 0.005
        pool.run(Task(pool, compute))
        pool.run(Task(pool, lambda: None))
        await until(lambda: not pool.busy)
        hold = pool.longest_hold(time.monotonic(), 0.005)
        assert hold.used >= 0.02
        assert hold.full


async def test_a_thread_that_speaks_after_the_loop() -> None:
    """A thread that was stuck until its loop had ended says nothing, and raises nothing."""
    gate = threading.Event()
    ended: list[str] = []
    loop = asyncio.new_event_loop()
    pool = ThreadPool(1)

    async def begin() -> None:
        pool.start()
        pool.run(Task(pool, lambda: gate.wait(PATIENCE)))
        pool.stop()

    def run() -> None:
        loop.run_until_complete(begin())
        loop.close()
        ended.append("loop")

    await asyncio.to_thread(run)
    before = threading.active_count()
    gate.set()
    await until(
        lambda: threading.active_count() < before or "wsgi-0" not in {each.name for each in threading.enumerate()}
    )
    assert ended == ["loop"]


@pytest.mark.parametrize("can_be_started", [0, 2])
async def test_the_system_has_fewer_threads(monkeypatch: pytest.MonkeyPatch, can_be_started: int) -> None:
    """A pool does with the threads that can be started, and says that there are none if there are none."""
    begin, started = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if len(started) == can_be_started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    if not can_be_started:
        with pytest.raises(AppError, match="no thread can be started for the app's calls: can't start new thread"):
            ThreadPool(4).start()
        return
    async with pool_of(4) as pool:
        assert pool.size == 2
        tasks = [Task(pool, lambda: time.sleep(0.001)) for _ in range(20)]
        for task in tasks:
            pool.run(task)
        await until(lambda: not pool.busy)
        assert [task.heard for task in tasks] == [1] * 20
