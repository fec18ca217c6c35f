"""Component status between real workers and a master in this process."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from cluster2 import Cluster
from cluster2.errors import ClusterError
from cluster2.processes.master.messaging import component_status
from tests.unit.talking import talking
from tests.unit.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("own_process")]


async def test_reduced(tmp_path: Path) -> None:
    """All workers are asked; the component's reducer, or the asker's, makes one value of the answers."""
    async with talking(tmp_path) as site:
        pids = sorted(await site.call_servers())
        names = ["broken", "depth", "echo", "pids", "slow", "spread"]
        await until(lambda: site.cluster.statuses() == names, "all components are known")
        cluster = site.cluster
        found = await cluster.status("pids")
        assert sorted(found.value) == pids
        assert sorted(found.workers) == pids
        assert not found.partial
        assert (await cluster.status("echo", params={"a": [1]})).value == {"a": [1]}
        assert sorted((await cluster.status("pids", reducer="array")).value) == sorted([[pid] for pid in pids])
        assert (await cluster.status("pids", reducer=len)).value == 2
        assert (await cluster.status("spread")).value == pids[1] - pids[0], "reduced by the app's own function"
        one = await cluster.status("pids", worker=pids[0])
        assert one.value == [pids[0]]
        assert (await cluster.status("pids", worker=0)).value == [(await site.observed.workers())[0]]
        broken = await cluster.status("broken")
        assert (broken.value, broken.workers) == ([], {})
        assert broken.errors == dict.fromkeys(pids, "ZeroDivisionError: division by zero")
        assert (await cluster.status("echo", reducer="sum", params="x")).errors.keys() == {0}
        with pytest.raises(ClusterError, match="no worker has a component 'nothing'"):
            await cluster.status("nothing")
        with pytest.raises(ValueError, match="expected sum, concat, avg, array, first"):
            await cluster.status("pids", reducer="max")


async def test_from_another_process(tmp_path: Path) -> None:
    """A client of the control socket can ask, set, list and emit as well."""
    async with talking(tmp_path) as site:
        pids = sorted(await site.call_servers())
        await until(lambda: len(site.cluster.statuses()) == 6, "all components are known")
        other = Cluster(pids=str(tmp_path / "pids"))
        assert "depth" in await asyncio.to_thread(other.statuses)
        await asyncio.to_thread(other.set_status, "depth", 4)
        assert (await other.status("depth")).value == 8
        assert (
            await other.status("pids", reducer=lambda values: sorted(pid for each in values for pid in each))
        ).value == pids
        assert (await other.status("pids", worker=pids[1])).workers == {pids[1]: [pids[1]]}
        with pytest.raises(ClusterError, match="no worker has a component 'nothing'"):
            await other.status("nothing")
        await asyncio.to_thread(other.emit, "news", "from outside", pids)
        answer = await site.ask("heard")
        while not answer["result"]:
            answer = await site.ask("heard")
        assert answer["result"] == [["news", "from outside", 0]]


async def test_set(tmp_path: Path) -> None:
    """A value is set in all workers, or in one; those that come later get what was set for all."""
    async with talking(tmp_path) as site:
        await until(lambda: len(site.cluster.statuses()) == 6, "all components are known")
        site.cluster.set_status("depth", 5)
        assert (await site.cluster.status("depth")).value == 10
        site.cluster.set_status("depth", 7, worker=0)
        assert (await site.cluster.status("depth")).value == 12
        await asyncio.to_thread(site.cluster.recycle)
        assert (await site.cluster.status("depth")).value == 10
        with pytest.raises(ClusterError, match="the value of component 'depth' can't travel"):
            site.cluster.set_status("depth", object())


async def test_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that doesn't respond in time is missing, and one that dies meanwhile is not waited for."""
    monkeypatch.setattr(component_status, "STATUS_TIMEOUT_S", 0.3)
    async with talking(tmp_path) as site:
        pids = await site.observed.workers()
        await until(lambda: len(site.cluster.statuses()) == 6, "all components are known")
        site.cluster.set_status("depth", 600, worker=0)  # for so long it takes to answer
        found = await site.cluster.status("slow")
        assert (found.value, found.missing, found.partial) == ([pids[1]], [pids[0]], True)
        monkeypatch.setattr(component_status, "STATUS_TIMEOUT_S", 600)
        asking = asyncio.ensure_future(site.cluster.status("slow"))
        await asyncio.sleep(0)
        os.kill(pids[0], signal.SIGKILL)
        found = await asyncio.wait_for(asking, 60)
        assert (found.value, found.missing) == ([pids[1]], [pids[0]])
