"""The worker's identity and state, and the app's hooks."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cluster2 import worker
from cluster2.processes.worker import worker_process
from cluster2.processes.worker.info import WorkerHooks, WorkerInfo
from cluster2.processes.worker.messaging import api
from cluster2.runtime.event_emitter import described
from tests.unit.waiting import PATIENCE, until


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> WorkerHooks:
    """Return the process's hooks, without those of other tests."""
    found = WorkerHooks()
    monkeypatch.setattr(api, "hooks", found)
    return found


@pytest.mark.parametrize("fact", ["pid", "slot", "generation"])
def test_outside_of_a_worker(fact: str) -> None:
    """Refuse attributes of the worker outside of one, with the reason; `draining` is false there."""
    with pytest.raises(RuntimeError, match=rf"worker\.{fact}: this process is no worker"):
        getattr(worker, fact)
    assert worker.draining is False


def test_inside_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return the worker's own attributes inside of one; `draining` follows its state."""
    monkeypatch.setattr(api, "_info", None)  # so that it is undone
    life = WorkerInfo(pid=7, slot=3, generation=2)
    api.bind_worker(life)
    assert (worker.pid, worker.slot, worker.generation, worker.draining) == (7, 3, 2, False)
    life.draining = True
    assert worker.draining is True


def test_no_such_fact() -> None:
    """Treat any other name as an ordinary missing attribute."""
    with pytest.raises(AttributeError, match="no attribute 'pod'"):
        worker.pod  # noqa: B018


@pytest.mark.anyio
async def test_hooks_in_order(hooks: WorkerHooks) -> None:
    """Run hooks of the start in order of registration and those of the end in reverse, sync and async alike."""
    called: list[str] = []

    @worker.on_start
    def pool() -> None:
        called.append("pool")

    @worker.on_start
    async def threads() -> None:
        called.append("threads")

    @worker.on_stop
    def close_pool() -> None:
        called.append("close pool")

    @worker.on_stop
    async def end_threads() -> None:
        called.append("end threads")

    await hooks.run_start()
    await hooks.run_stop()
    assert called == ["pool", "threads", "end threads", "close pool"]
    assert callable(pool), "a decorated function stays what it is"


@pytest.mark.anyio
async def test_a_hook_of_the_start_that_raises(hooks: WorkerHooks) -> None:
    """Don't serve after a hook of the start has raised: the error passes, and later hooks don't run."""
    called: list[str] = []

    @worker.on_start
    async def broken() -> None:
        raise LookupError("no database")

    worker.on_start(lambda: called.append("later"))
    with pytest.raises(LookupError, match="no database"):
        await hooks.run_start()
    assert called == []


@pytest.mark.anyio
async def test_a_hook_of_the_end_that_raises(hooks: WorkerHooks, caplog: pytest.LogCaptureFixture) -> None:
    """Log an exception of a hook at the end, and run the other hooks all the same."""
    called: list[str] = []
    worker.on_stop(lambda: called.append("first"))
    worker.on_stop(lambda: 1 // 0)
    worker.on_stop(sys.exit)
    failed = await hooks.run_stop()
    assert called == ["first"]
    assert failed is not None
    exits, divides = failed.split("; ")
    assert exits == "the hook exit of worker.on_stop raised SystemExit"
    assert re.fullmatch(
        r"the hook test_.*<lambda> \(.*test_info\.py:\d+\) of worker\.on_stop raised Zero.*by zero", divides
    )
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert all("of worker.on_stop raised" in record.getMessage() for record in caplog.records)
    assert f'File "{inspect.getsourcefile(WorkerHooks)}"' not in caplog.text, "the frames are the hook's own"


@pytest.mark.anyio
async def test_a_hook_of_the_drain_that_raises(hooks: WorkerHooks, caplog: pytest.LogCaptureFixture) -> None:
    """Log an exception of a hook at the drain, and run the other hooks all the same, in order."""
    called: list[str] = []
    worker.on_drain(lambda: called.append("first"))

    @worker.on_drain
    def broken() -> None:
        1 // 0  # noqa: B018

    @worker.on_drain
    async def last() -> None:
        called.append("last")

    assert await hooks.run_drain() is False
    assert called == ["first", "last"]
    assert [record.getMessage() for record in caplog.records] == [
        f"the hook {described(broken)} of worker.on_drain raised"
    ]


@pytest.mark.anyio
async def test_a_hook_of_the_drain_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    """Cancel a hook of the drain when its time is over."""
    hook = asyncio.ensure_future(asyncio.Event().wait())
    await worker_process.finish_drain_hooks(hook, 0.01)
    assert hook.cancelled()
    assert "hasn't ended within drain_timeout" in caplog.text


@pytest.mark.anyio
async def test_drained() -> None:
    """Wake all that waits for the drain, on each loop of the process; forget a wait that is cancelled."""
    life = WorkerInfo(pid=7, slot=3, generation=2)
    elsewhere = asyncio.ensure_future(
        asyncio.to_thread(lambda: asyncio.run(asyncio.wait_for(life.drained(), PATIENCE)))
    )
    here, cancelled = asyncio.ensure_future(life.drained()), asyncio.ensure_future(life.drained())
    await until(lambda: len(life._waiting) == 3)
    cancelled.cancel()
    await until(lambda: len(life._waiting) == 2)
    assert not here.done()
    assert not elsewhere.done()
    life.draining = True
    await asyncio.wait_for(asyncio.gather(here, elsewhere), PATIENCE)
    await asyncio.wait_for(life.drained(), PATIENCE)
    assert not life._waiting


@pytest.mark.anyio
async def test_drained_in_an_app(hooks: WorkerHooks) -> None:
    """Never drain outside of a worker; drain a simulated one when the test says so, and run its hooks."""
    called: list[bool] = []
    worker.on_drain(lambda: called.append(worker.draining))
    outside = asyncio.ensure_future(worker.drained())
    await asyncio.sleep(0)
    with worker.simulated() as me:
        inside = asyncio.ensure_future(worker.drained())
        await asyncio.sleep(0)
        await me.drain()
        await asyncio.wait_for(inside, PATIENCE)
    assert called == [True]
    assert not outside.done()
    outside.cancel()


@pytest.mark.anyio
async def test_the_end_goes_on_after_a_step_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """Run each step of a worker's end, even if one before it raises, exits or cancels the task; log that, and report it."""
    taken: list[str] = []

    async def good() -> None:
        taken.append("good")

    async def raises() -> None:
        raise LookupError

    async def exits() -> None:
        raise SystemExit(3)

    async def cancels() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async def tells() -> str:
        taken.append("good")
        return "tells: what was wrong"

    steps: list[tuple[str, Callable[[], Coroutine[Any, Any, str | None]]]]
    steps = [("raises", raises), ("exits", exits), ("cancels", cancels), ("tells", tells), ("good", good)]
    assert await worker_process.run_steps(*steps) == [
        "raises failed: LookupError",
        "exits failed: SystemExit: 3",
        "cancels failed: CancelledError",
        "tells: what was wrong",
    ]
    assert taken == ["good", "good"]
    assert [record.getMessage().split()[0] for record in caplog.records] == ["raises", "exits", "cancels"]
    assert await worker_process.run_steps(("good", good)) == []
