"""A command for which workers leave fails, with the reason, if a worker did not leave in order."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster2 import events
from cluster2.core.lifecycle import WorkerState
from cluster2.errors import ClusterError
from cluster2.linux import processes
from cluster2.linux.processes import ExitStatus
from cluster2.processes.master.master import Master
from cluster2.processes.master.periodic import PeriodicTasks
from cluster2.processes.master.state.handle import WorkerHandle
from cluster2.processes.master.state.inbox import WorkerVanished
from cluster2.processes.master.workers import lifecycle_actions
from cluster2.processes.master.workers.supervisor import departure_fault
from tests.unit.clusters import Observed, observed
from tests.unit.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("own_process")]

LEAVE: dict[str, Callable[[Observed], Any]] = {
    "recycle": lambda cluster: cluster.cluster.recycle(),
    "scale": lambda cluster: cluster.cluster.scale(1),
    "reload": lambda cluster: cluster.cluster.reload(),
    "shutdown": lambda cluster: cluster.cluster.shutdown(),
}
"""Commands that have the worker of slot 1 leave."""

TOLD = {
    "cut": r"drain_timeout \(0\.3 s\) is over: reset 1 connection with 1 request under way",
    "stuck": r"it did not leave within drain_timeout \(0\.3 s\) and was killed",
    "killed": r"died while it drained \(SIGKILL\)",
}


def master_of(cluster: Observed) -> Master:
    master = cluster.running._master
    assert master is not None
    return master


async def hold_slot_1(cluster: Observed, path: str) -> int:
    """Have the worker of slot 1 hold a request; the other one is stopped until it does."""
    workers = await cluster.workers()
    os.kill(workers[0], signal.SIGSTOP)
    await until(lambda: Path(f"/proc/{workers[0]}/stat").read_text().rpartition(")")[2].split()[0] == "T", "it stands")
    held = asyncio.ensure_future(cluster.get(path))
    try:
        assert await cluster.held() == workers[1]
    finally:
        os.kill(workers[0], signal.SIGCONT)
    held.add_done_callback(lambda done: done.exception())
    return workers[1]


@pytest.mark.parametrize(
    ("verb", "fault"),
    [
        (verb, fault) if verb == "recycle" or fault == "killed" else pytest.param(verb, fault, marks=pytest.mark.soak)
        for verb in LEAVE
        for fault in TOLD
    ],
)
async def test_a_worker_that_does_not_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, fault: str
) -> None:
    """The error names the worker, and the signal or the bound; what was asked for has come true nevertheless."""
    if fault == "stuck":
        monkeypatch.setattr(lifecycle_actions, "DRAIN_MARGIN_S", 0.2)
    async with observed(tmp_path, drain_timeout=30 if fault == "killed" else 0.3, drain_idle=0.1) as cluster:
        pid = await hold_slot_1(cluster, "/stuck" if fault == "stuck" else "/held")
        command = asyncio.ensure_future(asyncio.to_thread(LEAVE[verb], cluster))
        if fault == "killed":
            roster = master_of(cluster).state.registry
            await until(
                lambda: any(each.pid == pid and each.state is WorkerState.DRAINING for each in roster), "it drains"
            )
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(ClusterError, match=TOLD[fault]) as raised:
            await command
        assert f"worker {pid} (slot 1, generation 1)" in raised.value.message
        assert raised.value.exit_code == 1
        if verb == "shutdown":
            assert await cluster.running.ended() == 0
        else:
            assert await cluster.whole(without=[pid], wanted=1 if verb == "scale" else 2)


ENDS = {
    "hook": (
        "ENDS = 'well'\n@worker.on_stop\ndef flush():\n    raise OSError('the disk is full')\n",
        r"the hook flush \(.*site_of_test\.py:\d+\) of worker\.on_stop raised OSError: the disk is full$",
    ),
    "lifespan raises": ("ENDS = 'raises'", r"the app's lifespan raised LookupError: no database$"),
    "lifespan fails": ("ENDS = 'fails'", r"the app's lifespan failed at shutdown: no database$"),
}  # fmt: skip
"""Failures at the end of a worker: the code that fails, and the report."""

ENDING_APP = """
from cluster2 import worker
{}
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({{"type": "lifespan.startup.complete"}})
        await receive()
        if ENDS == "raises":
            raise LookupError("no database")
        if ENDS == "fails":
            await send({{"type": "lifespan.shutdown.failed", "message": "no database"}})
        else:
            await send({{"type": "lifespan.shutdown.complete"}})
"""


@pytest.mark.parametrize("engine", ["http", "granian"])
@pytest.mark.parametrize("what", ENDS)
async def test_an_end_that_fails(tmp_path: Path, what: str, engine: str) -> None:
    """A failed hook or lifespan shutdown is reported as such: the worker has not died."""
    code, told = ENDS[what]
    async with observed(tmp_path, ENDING_APP.format(code), workers=1, engine=engine) as cluster:
        pid = (await cluster.workers())[0]
        with pytest.raises(ClusterError, match=told) as raised:
            await asyncio.to_thread(cluster.cluster.reload)
        assert f"generation 2 serves, but worker {pid} (slot 0, generation 1): the " in raised.value.message
        assert (await cluster.event(events.Died, pid=pid)).code == 1
        with pytest.raises(ClusterError, match=told):
            await asyncio.to_thread(cluster.cluster.shutdown)


@pytest.mark.parametrize("verb", LEAVE)
async def test_workers_that_leave(tmp_path: Path, verb: str) -> None:
    """Where all leave as they are to, the command says that it is done."""
    async with observed(tmp_path) as cluster:
        await asyncio.to_thread(LEAVE[verb], cluster)


async def test_a_worker_that_dies_before_its_successor_is_ready(tmp_path: Path) -> None:
    """A worker that was to be recycled, and dies by itself: that is a crash, and no recycle."""
    async with observed(tmp_path) as cluster:
        (tmp_path / "hanging").touch()
        before = await cluster.workers()
        recycling = asyncio.ensure_future(asyncio.to_thread(cluster.cluster.recycle, 1))
        await cluster.event(events.Forked, slot=1, generation=1)
        await until(lambda: len(master_of(cluster).state.registry) == 3, "its successor boots")
        os.kill(before[1], signal.SIGKILL)
        assert (await cluster.event(events.Died, pid=before[1])).reason == "crash"
        (tmp_path / "hanging").unlink()
        with pytest.raises(ClusterError, match=rf"worker {before[1]} .* died instead of draining \(SIGKILL\)"):
            await recycling
        await cluster.whole(without=[before[1]])


@pytest.mark.parametrize("verb", ["recycle", "scale up"])
async def test_workers_that_can_not_be_made(tmp_path: Path, verb: str) -> None:
    """A command whose new workers end before they are ready is answered after some attempts, which go on."""
    async with observed(tmp_path, restart_limit=50) as cluster:
        (tmp_path / "crashing").touch()
        ask = cluster.cluster.recycle if verb == "recycle" else lambda: cluster.cluster.scale(3)
        with pytest.raises(ClusterError, match=r"isn't done yet: worker .* exited before it was ready \(exit code 9\)"):
            await asyncio.to_thread(ask)
        (tmp_path / "crashing").unlink()
        await cluster.whole(wanted=2 if verb == "recycle" else 3)


async def test_a_scale_that_is_overtaken(tmp_path: Path) -> None:
    """If two commands want different numbers of workers, the first one says that it was overtaken."""
    async with observed(tmp_path) as cluster:
        (tmp_path / "hanging").touch()
        first = asyncio.ensure_future(asyncio.to_thread(cluster.cluster.scale, 4))
        await until(lambda: master_of(cluster).state.wanted.slots == 4, "it is wanted")
        second = asyncio.ensure_future(asyncio.to_thread(cluster.cluster.scale, 3))
        with pytest.raises(ClusterError, match="3 workers are wanted by now"):
            await first
        (tmp_path / "hanging").unlink()
        assert (await second)["workers"] == 3


async def test_a_shutdown_that_is_cut_short(tmp_path: Path) -> None:
    """A stop in the middle of a shutdown: the shutdown says that it did not come to its end."""
    async with observed(tmp_path) as cluster:
        await hold_slot_1(cluster, "/held")
        shutdown = asyncio.ensure_future(asyncio.to_thread(cluster.cluster.shutdown))
        await cluster.event(events.ShuttingDown, graceful=True)
        await asyncio.to_thread(cluster.cluster.stop)
        with pytest.raises(ClusterError, match="the cluster was stopped before it was shut down"):
            await shutdown


def handle(state: WorkerState, **fields: Any) -> WorkerHandle:
    return WorkerHandle(1, 0, 1, 0, 0.0, **{"state": state, "pid": 7, "ready_at": 1.0, **fields})


@pytest.mark.parametrize(
    ("worker", "status", "fault"),
    [
        (handle(WorkerState.DRAINING, reason="scale"), ExitStatus(code=0), None),
        (handle(WorkerState.DRAINING, reason="scale"), ExitStatus(code=3), r"exited while it drained \(exit code 3\)"),
        (handle(WorkerState.DRAINING, reason="scale"), None, r"died while it drained \(how isn't known\)"),
        (handle(WorkerState.DRAINING, reason="scale", cut="was cut"), ExitStatus(code=0), "generation 1\\): was cut"),
        (
            handle(WorkerState.DRAINING, reason="scale", end_failed="it raised"),
            ExitStatus(code=1),
            "generation 1\\): it raised$",
        ),
        (
            handle(WorkerState.DRAINING, cut="was cut", end_failed="it raised"),
            ExitStatus(code=1),
            "was cut; it raised$",
        ),
        (handle(WorkerState.READY, reason="recycle"), ExitStatus(signal=11), r"died instead of draining \(SIGSEGV\)"),
        (handle(WorkerState.READY, replace=1.0), ExitStatus(signal=11), r"died instead of draining \(SIGSEGV\)"),
        (handle(WorkerState.READY), ExitStatus(signal=11), r"died during the reload \(SIGSEGV\)"),
        (handle(WorkerState.READY), ExitStatus(code=0), r"exited during the reload \(exit code 0\)"),
        (handle(WorkerState.DYING, reason="hang", drain_first=False), ExitStatus(signal=9), "was stuck and was killed"),
        (handle(WorkerState.DYING, reason="stop"), ExitStatus(signal=9), None),
        (handle(WorkerState.DRAINING, pid=None), None, None),
        (handle(WorkerState.DRAINING, reason="scale", ready_at=None), None, None),
        (handle(WorkerState.DYING, reason="scale", ready_at=None, cut="was killed"), ExitStatus(signal=9), None),
    ],
)
async def test_what_is_a_fault(worker: WorkerHandle, status: ExitStatus | None, fault: str | None) -> None:
    """A worker that exits with 0 as ordered, and one that a stop has killed, are in order; all else is reported."""
    found = departure_fault(worker, status)
    assert found is None if fault is None else found is not None and re.search(fault, found)


async def test_an_end_counts_once(tmp_path: Path) -> None:
    """A worker whose end is posted several times has died once: in the events, and in the response to a command."""
    async with observed(tmp_path) as cluster:
        master = master_of(cluster)
        worker = next(iter(master.state.registry))
        for _ in range(3):
            master.post(WorkerVanished(worker))
        await cluster.event(events.Died, pid=worker.pid)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        await cluster.whole([worker.pid])
        assert master.state.restarts.crashes(time.monotonic()) == 1


@pytest.mark.parametrize(("pids", "reaps"), [([1, 2], True), ([1, None], False)])
async def test_strays_are_reaped_when_all_pids_are_known(
    pids: list[int | None], reaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a worker's pid is awaited, a child that has ended may be that worker: the master leaves it."""
    reaped: list[object] = []
    monkeypatch.setattr(processes, "reap_strays", reaped.append)
    tasks: Any = PeriodicTasks.__new__(PeriodicTasks)
    tasks._resources = SimpleNamespace(owns_process=True)
    tasks._state = SimpleNamespace(registry=[SimpleNamespace(pid=pid) for pid in pids])
    tasks._children = set
    tasks._reap_strays()
    assert bool(reaped) == reaps
