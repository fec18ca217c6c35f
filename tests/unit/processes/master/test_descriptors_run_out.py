"""The master without descriptors: what can't be done now is undone whole, reported once, and tried again."""

from __future__ import annotations

import asyncio
import errno
import itertools
import math
import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster2 import events
from cluster2.errors import ClusterError
from cluster2.linux import processes
from cluster2.processes.master.descriptor_budget import RESERVED_DESCRIPTORS
from cluster2.processes.master.master import Master
from tests.linux.leaks import descriptors, descriptors_left
from tests.unit.clusters import APP, Observed, observed
from tests.unit.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("own_process")]

THREADED = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
SPARE_SLOT = 7


def emfile(*_: object, **__: object) -> Any:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def master_of(cluster: Observed) -> Master:
    master = cluster.running._master
    assert master is not None
    return master


@pytest.mark.parametrize("executed", [False, True], ids=["forked", "executed"])
async def test_a_worker_that_can_not_be_afforded(tmp_path: Path, executed: bool) -> None:
    """Whichever descriptor of a new worker is the one too many: nothing is left of the attempt, and the next one works."""
    async with observed(tmp_path, APP + THREADED if executed else APP, workers=1, log_to="files") as cluster:
        master = master_of(cluster)
        refusals = 0
        for left in itertools.count():
            before, rows = descriptors(), list(master.resources.board._free or [])
            with descriptors_left(left):
                await master.supervisor.spawn(SPARE_SLOT, 1)
                made = any(each.slot == SPARE_SLOT for each in master.state.registry)
            if made:
                break
            refusals += 1
            await until(lambda: descriptors() == before, lambda: f"{descriptors() ^ before}")  # noqa: B023
            assert sorted(master.resources.board._free or []) == sorted(rows)
        assert refusals >= 3
        warned = [each.text for each in cluster.of(events.Warned) if each.text.startswith("no worker can be made")]
        assert warned == ["no worker can be made: Too many open files; it is tried again"]
        assert not master.state.restarts.crashes(0.0)
        # That slot isn't wanted: the worker that was made leaves again.
        await until(lambda: not any(each.slot == SPARE_SLOT for each in master.state.registry), "it is retired")
        assert not master.state.restarts.degraded


@pytest.mark.parametrize("killed", ["before it is watched", "after it is watched"])
async def test_a_worker_that_can_not_be_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str) -> None:
    """Without a descriptor for its end a worker serves all the same; it is watched as soon as there is one."""
    async with observed(tmp_path, workers=1) as cluster:
        master = master_of(cluster)
        (first,) = (await cluster.workers()).values()
        with monkeypatch.context() as patched:
            patched.setattr(processes, "open_pidfd", emfile)
            os.kill(first, signal.SIGKILL)
            (second,) = (await cluster.whole(without=[first], wanted=1)).values()
            await cluster.event(events.Warned, text="workers can't be watched: Too many open files; it is tried again")
            assert await cluster.get() == b"%d" % second
            if killed == "before it is watched":
                os.kill(second, signal.SIGKILL)
        await until(lambda: all(each.pidfd is not None for each in master.state.registry), "it is watched")
        if killed == "after it is watched":
            os.kill(second, signal.SIGKILL)
        await cluster.whole(without=[first, second], wanted=1)
        assert (await cluster.event(events.Died, pid=second)).signal == "SIGKILL"


async def test_an_unwatched_worker_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop kills also workers for whose end there is no descriptor, and the master leaves."""
    async with observed(tmp_path, workers=1) as cluster:
        (first,) = (await cluster.workers()).values()
        with monkeypatch.context() as patched:
            patched.setattr(processes, "open_pidfd", emfile)
            os.kill(first, signal.SIGKILL)
            await cluster.whole(without=[first], wanted=1)
            stopping = asyncio.ensure_future(asyncio.to_thread(cluster.cluster.stop))
            await cluster.event(events.ShuttingDown)
        assert await cluster.running.ended() == 0
        await stopping


LOOKS = (
    *(
        "health_monitor.check_all",
        "_periodic._heartbeats.event_if_due",
        "loader.load_if_due",
        "steering.steer",
        "steering.has_stranded_clients",
    ),
    *("keeper.kill_if_stuck", "_periodic._watch_unwatched"),
)


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("a fault of ours")])
@pytest.mark.parametrize("steps", [LOOKS, *(pytest.param((step,), marks=pytest.mark.soak) for step in LOOKS)])
async def test_a_look_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[str, ...], error: Exception
) -> None:
    """A periodic step that fails is reported once; it is tried again, and workers are replaced."""
    async with observed(tmp_path, workers=1) as cluster:
        tried = Counter[str]()

        def fail(step: str) -> None:
            tried[step] += 1
            raise error

        with monkeypatch.context() as patched:
            for step in steps:
                *path, method = step.split(".")
                part: Any = master_of(cluster)
                for name in path:
                    part = getattr(part, name)
                patched.setattr(part, method, lambda *_, step=step: fail(step))
            await until(lambda: all(tried[step] >= 2 for step in steps), lambda: f"all are tried again: {tried}")
            (first,) = (await cluster.workers()).values()
            os.kill(first, signal.SIGKILL)
            await cluster.whole(without=[first], wanted=1)
        told = [each.text for each in cluster.of(events.Warned) if str(error).partition("] ")[2] in each.text]
        assert len(told) == len(set(told)) == len(steps), told


def followed(directory: Path) -> int:
    """Count the log files of workers below a directory that this process has open."""
    return sum(str(directory) in each and "worker." in each for each in descriptors())


@pytest.mark.parametrize("kind", ["forked", "executed", "steered", "relayed"])
async def test_what_workers_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The descriptors that are computed for more workers suffice for a master, and aren't much more than it has in the end."""
    options = {"engine": "granian"} if kind == "steered" else {}
    log_to = "both" if kind == "relayed" else "files"
    text = APP + THREADED if kind == "executed" else APP
    async with observed(tmp_path, text, workers=1, log_to=log_to, **options) as cluster:
        master = master_of(cluster)
        if kind == "relayed":
            await until(lambda: followed(tmp_path) == 1, "the first file is followed")
        before, opened, surge = descriptors(), processes.open_descriptors(), master.state.wanted.surge

        def added() -> int:
            return len(descriptors() - before)  # what earlier tests have left may be closed meanwhile

        with monkeypatch.context() as limited:
            limited.setattr(processes, "file_limit", lambda: 0)
            refused = master.loader.scale_refusal(4)
            assert refused is not None
            need = int(re.findall(r"need (\d+) descriptors", refused)[0])
            limited.setattr(processes, "file_limit", lambda: need)
            assert master.loader.scale_refusal(4) is None
            assert "ask for at most 4" in str(master.loader.scale_refusal(5))
        scaling = asyncio.ensure_future(asyncio.to_thread(cluster.cluster.scale, 4))
        peak = opened
        while not scaling.done():
            peak = max(peak, processes.open_descriptors())
            await asyncio.sleep(0)
        await scaling
        if kind == "relayed":
            await until(lambda: followed(tmp_path) == 4, lambda: f"all files are followed: {descriptors()}")
        # The connection of the command may still be open, and so may one of the steered places from before.
        rest = (0, 2) if kind == "steered" else (0,)
        await until(lambda: added() % 3 in rest, lambda: f"only workers have been added: {descriptors() - before}")
        each = math.ceil(added() / 3)
        assert peak <= need
        spare = need - RESERVED_DESCRIPTORS - opened - (3 + surge) * each
        assert 0 <= spare <= (3 + surge) * (10 if kind == "executed" else 1)


async def test_a_scale_that_can_not_be_afforded(tmp_path: Path) -> None:
    """A scale that can't be afforded is refused with one line, and nothing has changed."""
    async with observed(tmp_path, workers=1) as cluster:
        before = await cluster.workers()
        with descriptors_left(RESERVED_DESCRIPTORS + 8), pytest.raises(ClusterError) as raised:
            await asyncio.to_thread(cluster.cluster.scale, 30)
        assert re.fullmatch(
            r"30 workers \(and 1 more while some are replaced\) need \d+ descriptors in the master, and RLIMIT_NOFILE is \d+: "
            r"raise it \(ulimit -Hn, LimitNOFILE= in a systemd unit\), or ask for at most \d",
            raised.value.message,
        ), raised.value.message
        assert master_of(cluster).state.wanted.slots == 1
        assert await cluster.workers() == before
