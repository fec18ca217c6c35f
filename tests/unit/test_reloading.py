"""Reloads of a real cluster in this process: when they begin, what they clear, what they say of workers that were lost."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cluster2 import events
from cluster2.errors import ClusterError
from cluster2.master.facts import Command, Signal
from cluster2.master.loop import Master
from tests.unit.clusters import APP, Observed, observed
from tests.unit.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("own_process")]

Answers = list[dict[str, Any] | ClusterError]


async def reload(cluster: Observed) -> dict[str, Any]:
    """The answer of `Cluster.reload`."""
    return await asyncio.to_thread(cluster.cluster.reload)


@pytest.mark.parametrize("fails", [False, True])
async def test_asked_for_before_the_cluster_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """A reload by command or HUP while the first workers start is carried out when they serve, or answered when they can't."""
    answers: Answers = []
    ready = Master.run

    async def run(master: Master) -> int:
        master.put(Command("reload", {}, answers.append))
        master.put(Signal(signal.SIGHUP))
        return await ready(master)

    monkeypatch.setattr(Master, "run", run)
    if fails:
        (tmp_path / "broken").touch()
        with pytest.raises(ClusterError, match="the database is away"):
            async with observed(tmp_path):
                pass
        assert [str(each) for each in answers] == ["the cluster stops"]
        return
    async with observed(tmp_path) as cluster:
        await cluster.event(events.Reloaded, generation=2)
        assert [each["generation"] for each in answers if isinstance(each, dict)] == [2]
        assert len(cluster.of(events.Reloading)) == 1, "both asked for the same"
        assert not cluster.of(events.Warned)


async def test_good_code_ends_the_back_off(tmp_path: Path) -> None:
    """A reload out of a degraded cluster is tried at once, and clears what the old code has brought about."""
    async with observed(tmp_path, restart_limit=2, restart_window="1h") as cluster:
        (tmp_path / "crashing").touch()
        for pid in (await cluster.workers()).values():
            os.kill(pid, signal.SIGKILL)
        await cluster.event(events.Degraded)
        (tmp_path / "site_of_test.py").write_text(APP.replace('"crashing"', '"no longer"'))
        assert (await reload(cluster))["generation"] == 2
        assert (await cluster.event(events.Recovered)).ready == 2
        assert (await cluster.status())["master"]["state"] == "serving"
        victim = (await cluster.whole())[0]
        os.kill(victim, signal.SIGKILL)
        await cluster.whole(without=[victim])
        assert len(cluster.of(events.Degraded)) == 1
