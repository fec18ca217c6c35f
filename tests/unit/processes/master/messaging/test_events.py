"""Events both ways between real workers and a master in this process, and heartbeats."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster2 import events
from tests.unit.talking import talking
from tests.unit.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("own_process")]


async def test_from_a_worker(tmp_path: Path) -> None:
    """An event of a worker reaches the handlers of its name, the handlers of all events, and `once` a single time."""
    async with talking(tmp_path) as site:
        named, first = [], []
        site.cluster.on("cold", named.append)
        site.cluster.once("cold", first.append)
        sent = [(await site.result("emit", event="cold", data=data), data) for data in ({"n": [1]}, None)]
        await until(lambda: len(named) == 2, "both have come")
        # Two workers may have emitted them, and nothing orders one worker's events with another's.
        assert sorted(((event.pid, event.data) for event in named), key=repr) == sorted(sent, key=repr)
        assert first == named[:1]
        assert [event for event in site.observed.events if isinstance(event, events.Emitted)] == named
        site.cluster.off("cold", named.append)
        await site.result("emit", event="cold")
        await until(lambda: len(site.observed.of(events.Emitted)) == 3, "the third has come")
        assert len(named) == 2
        answer = await site.ask("emit", event="died")
        assert answer["error"] == ["ValueError", "event 'died' is the master's: choose another name"]


async def test_the_order_is_kept(tmp_path: Path) -> None:
    """All of a worker's events arrive, in the order in which it has emitted them."""
    async with talking(tmp_path) as site:
        seen: dict[int, list[int]] = {}
        site.cluster.on("tick", lambda event: seen.setdefault(event.pid, []).append(event.data))
        asked = [site.result("burst", event="tick", times=5000) for _ in range(4)]
        pids = await asyncio.gather(*asked)
        await until(lambda: sum(map(len, seen.values())) == 20_000, "all have come")
        assert set(seen) == set(pids)
        for numbers in seen.values():
            assert numbers == list(range(5000)) * (len(numbers) // 5000)


async def test_to_workers(tmp_path: Path) -> None:
    """An event of the master reaches all workers, or those that are named; other workers get one that is for all."""
    async with talking(tmp_path) as site:
        pids = sorted(await site.call_servers())

        async def heard() -> dict[int, list[Any]]:
            """Return the events of each worker: both are asked until both have responded."""
            found: dict[int, list[Any]] = {}
            while set(found) != set(pids):
                answer = await site.ask("heard")
                found[answer["pid"]] = answer["result"]
            return found

        site.cluster.emit("news", "all")
        site.cluster.emit("news", "one", targets=pids[:1])
        site.cluster.notify("once", 1)
        site.cluster.notify("once", 2)
        await asyncio.to_thread(site.cluster.emit, "news", "thread")
        one, other = await _when(heard, lambda found: all(len(each) >= 3 for each in found.values()), pids)
        assert sorted(map(str, one)) == sorted(
            map(str, [["news", "all", 0], ["news", "one", 0], ["once", 1, 0], ["news", "thread", 0]])
        )
        assert sorted(map(str, other)) == sorted(map(str, [["news", "all", 0], ["once", 1, 0], ["news", "thread", 0]]))
        sender = await site.result("emit", event="news", data="mine", targets="all")
        one, other = await _when(heard, lambda found: all(["news", "mine", sender] in e for e in found.values()), pids)
        await site.result("emit", event="news", data="his", targets=pids[1:])
        one, other = await _when(heard, lambda found: any("his" in e[-1] for e in found.values()), pids)
        assert "his" in other[-1]
        assert "his" not in one[-1]


async def _when(ask: Any, true: Any, pids: list[int]) -> list[Any]:
    while not true(found := await ask()):
        await asyncio.sleep(0.01)
    return [found[pid] for pid in pids]


async def test_heartbeats(tmp_path: Path) -> None:
    """Heartbeat events have totals and averages; totals go on when a worker is replaced."""
    async with talking(tmp_path, heartbeat_interval=0.5) as site:
        for error in (False, True):
            await site.result("transaction", duration=1.5, error=error)
        await _beat(site, lambda beat: beat.transactions == 2 and beat.requests >= 2)
        before = await site.call_servers()
        await asyncio.to_thread(site.cluster.recycle)
        beat = await _beat(
            site, lambda beat: len(beat.each) == 2 and all(row["pid"] not in before for row in beat.each)
        )
        assert (beat.workers, beat.transactions, beat.errors, beat.duration) == (2, 2, 1, 3.0)
        assert beat.requests >= 2
        assert beat.memory > 1 << 20
        assert beat.interval >= 0.5
        assert {row["slot"] for row in beat.each} == {0, 1}


async def _beat(site: Any, true: Any) -> events.Heartbeat:
    found = await until(
        lambda: next((beat for beat in reversed(site.observed.of(events.Heartbeat)) if true(beat)), None),
        lambda: f"a heartbeat; so far {site.observed.of(events.Heartbeat)[-3:]}",
    )
    assert found is not None
    return found


async def test_followers(tmp_path: Path) -> None:
    """`cluster2 events --json` shows each event as a line, from its start until the master leaves."""
    async with talking(tmp_path) as site:
        command = [sys.executable, "-m", "cluster2", "events", "--json", "--pids", str(tmp_path / "pids")]
        follower = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        master = site.observed.running._master
        assert master is not None
        await until(lambda: master.subscribers, "it follows")
        await site.result("emit", event="cold", data={"bytes": "ü"})
        assert follower.stdout is not None
        told = json.loads(await follower.stdout.readline())
        assert (told["event"], told["data"]) == ("cold", {"bytes": "ü"})
        site.observed.running.shut_down()
        rest = [json.loads(line) for line in (await follower.stdout.read()).splitlines()]
        assert "shutdown" in [each["event"] for each in rest]
        assert await follower.wait() == 0
