"""Delegated work between real workers and a master in this process: answers, errors, deadlines, deaths, single flight."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cluster2 import events
from cluster2.protocol import codec, messages
from tests.unit.talking import talking
from tests.unit.waiting import PATIENCE, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("own_process")]


async def test_answers(tmp_path: Path) -> None:
    """The result is the return value of a handler: async or sync, called from the loop, a thread, a loop in a thread."""
    async with talking(tmp_path) as site:
        threads = []

        @site.cluster.on_delegate("async")
        async def work(message: Any) -> Any:
            await asyncio.sleep(0)
            return {"got": message}

        @site.cluster.on_delegate("sync")
        def work_sync(message: Any) -> Any:
            threads.append(threading.current_thread())
            return {"got": message}

        for how in ("delegate", "threaded", "other-loop"):
            for name in ("async", "sync"):
                message = {"how": how, "list": [1, None, 2.5, "ü"]}
                assert await site.result(how, name=name, message=message) == {"got": message}
        assert threading.main_thread() not in threads


async def test_errors_travel(tmp_path: Path) -> None:
    """An exception of a handler is a DelegateError at the caller, with type, text and traceback; nothing else is harmed."""
    async with talking(tmp_path) as site:

        @site.cluster.on_delegate("broken")
        async def broken(message: Any) -> Any:
            raise LookupError(f"no {message}")

        @site.cluster.on_delegate("leaves")
        async def leaves(message: Any) -> Any:
            raise SystemExit(3)

        site.cluster.on_delegate("plain", lambda message: object())
        site.cluster.on_delegate("long", lambda message: "x" * (1 << 20))
        error = (await site.ask("delegate", name="broken", message="db"))["error"]
        assert error[:3] == ["DelegateError", "'broken' failed in the master: LookupError: no db", "LookupError"]
        assert 'raise LookupError(f"no {message}")' in error[3]
        error = (await site.ask("delegate", name="leaves"))["error"]
        assert error[:3] == ["DelegateError", "'leaves' failed in the master: SystemExit: 3", "SystemExit"]
        error = (await site.ask("delegate", name="plain"))["error"]
        assert error[2] == "TypeError"
        error = (await site.ask("delegate", name="long"))["error"]
        assert "at most" in error[1]
        error = (await site.ask("delegate", name="nobody"))["error"]
        assert "register one by cluster.on_delegate('nobody')" in error[1]
        error = (await site.ask("sync-on-loop", name="broken"))["error"]
        assert error[0] == "ClusterError"
        assert "thread that runs an event loop" in error[1]


async def test_deadlines(tmp_path: Path) -> None:
    """No answer in time is a DelegateTimeout; the handler is cancelled, and its place is free for the next."""
    async with talking(tmp_path) as site:
        cancelled = asyncio.Event()

        @site.cluster.on_delegate("endless", limit=1)
        async def endless(message: Any) -> Any:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        for how in ("delegate", "threaded", "other-loop"):
            cancelled.clear()
            error = (await site.ask(how, name="endless", message=how, timeout=0.05))["error"]
            assert error[0] == "DelegateTimeout"
            assert "'endless' had no result within 0.05 s" in error[1] or "in time" in error[1]
            await asyncio.wait_for(cancelled.wait(), PATIENCE)


async def test_single_flight(tmp_path: Path) -> None:
    """Equal requests of all workers while one is under way run the handler once; others, and later ones, again."""
    async with talking(tmp_path) as site:
        runs, gate = [], asyncio.Event()

        @site.cluster.on_delegate("config")
        async def config(message: Any) -> Any:
            runs.append(message)
            await gate.wait()
            return len(runs)

        board = site.cluster._switchboard
        asking = [asyncio.ensure_future(site.result("many", name="config", message="db", times=50)) for _ in range(8)]
        await until(lambda: sum(len(link.open_calls) for link in board._links) == 400, "all have asked")
        gate.set()
        assert {answer for answers in await asyncio.gather(*asking) for answer in answers} == {1}
        assert runs == ["db"]
        assert await site.result("delegate", name="config", message="db") == 2
        assert await site.result("delegate", name="config", message="other") == 3


async def test_a_worker_killed_while_it_waits(tmp_path: Path) -> None:
    """The handler of a killed worker's call is cancelled if no other worker waits; equal calls of others get the result."""
    async with talking(tmp_path) as site:
        runs, gate, over = [], asyncio.Event(), []

        @site.cluster.on_delegate("slow")
        async def slow(message: Any) -> Any:
            runs.append(message)
            try:
                await gate.wait()
            finally:
                over.append(message)
            return message

        board = site.cluster._switchboard
        first = asyncio.ensure_future(site.ask("delegate", name="slow", message="mine", timeout=60))
        await until(lambda: runs, "it has begun")
        victim = next(link for link in board._links if link.open_calls)
        os.kill(victim.pid, signal.SIGKILL)
        await site.observed.event(events.Died, pid=victim.pid)
        await until(lambda: over == ["mine"], "it was cancelled")
        assert await first == {}
        gate.set()
        assert await site.result("delegate", name="slow", message="mine") == "mine"
        assert board.delegates.unfinished() == 0


async def test_supervision_goes_on(tmp_path: Path) -> None:
    """While sync handlers hang in all their threads, a killed worker is back at once, and the status is available."""
    async with talking(tmp_path) as site:
        gate = threading.Event()

        @site.cluster.on_delegate("hang")
        def hang(message: Any) -> Any:
            gate.wait(PATIENCE)
            return message

        asking = [
            asyncio.ensure_future(site.ask("delegate", name="hang", message=number, timeout=60)) for number in range(40)
        ]
        board = site.cluster._switchboard
        await until(lambda: sum(len(link.open_calls) for link in board._links) == 40, "all hang")
        before = await site.observed.workers()
        victim = next(iter(before.values()))
        os.kill(victim, signal.SIGKILL)
        begun = time.monotonic()
        await site.observed.whole(without=[victim])
        assert time.monotonic() - begun < PATIENCE
        gate.set()
        await asyncio.gather(*asking)


@pytest.mark.parametrize(
    ("how", "times"),
    [("ffffffff00", 1), ("00000001c1", 1), (codec.pack(messages.Note("look")).hex(), 20_000), ("deaf", 1)],
    ids=["4 GiB", "noise", "flood", "deaf"],
)
async def test_a_mad_worker(tmp_path: Path, how: str, times: int) -> None:
    """One that sends garbage, floods, or doesn't read is replaced; the others delegate on, and nothing they ask fails."""
    async with talking(tmp_path, max_heartbeat_delay=0.5) as site:

        @site.cluster.on_delegate("echo")
        async def echo(message: Any) -> Any:
            return message

        mad = (await site.ask("mad", how=how, times=times)).get("pid")  # it may be killed before it answers
        while not site.observed.of(events.Died):
            if how == "deaf":
                site.cluster.emit("flood", "x" * 500_000, targets=[mad])
            answer = await site.ask("delegate", name="echo", message=1)
            assert not answer or answer["pid"] == mad or answer["result"] == 1
        died = await site.observed.event(events.Died)
        assert mad in (None, died.pid)
        assert died.reason == "crash"
        await site.observed.whole(without=[died.pid])
        assert await site.result("delegate", name="echo", message=2) == 2
