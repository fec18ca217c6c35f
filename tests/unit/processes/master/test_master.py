"""The master with real processes on tiny apps: what dies comes back, what is broken is said, nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import signal
import socket
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster2 import events
from cluster2.core.lifecycle import WorkerState
from cluster2.errors import AppError, ClusterError, UsageError
from cluster2.processes import launch
from cluster2.processes.master.generations.generations import GenerationTable
from cluster2.processes.master.generations.worker_factory import default_argv
from cluster2.processes.master.master import Master
from cluster2.processes.master.messaging.hub import MessageHub
from cluster2.processes.master.state import inbox
from cluster2.processes.master.workers import lifecycle_actions
from cluster2.protocol import codec, messages
from cluster2.runtime import option_sources
from tests.unit.clusters import APP, nobody_is_left, observed, options_for, processes
from tests.unit.waiting import PATIENCE, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("own_process")]


# Workers that die


async def test_a_killed_worker_comes_back(tmp_path: Path) -> None:
    """A killed worker's successor has the same slot, and the other is untouched. Events and pid files agree."""
    async with observed(tmp_path) as cluster:
        before = await cluster.workers()
        assert sorted(before) == [0, 1]
        os.kill(before[1], signal.SIGKILL)
        died = await cluster.event(events.Died)
        assert (died.pid, died.slot, died.generation) == (before[1], 1, 1)
        assert (died.code, died.signal, died.reason) == (None, "SIGKILL", "crash")
        after = await cluster.whole(without=[before[1]])
        assert after[0] == before[0]
        assert [event.slot for event in cluster.of(events.Listening)][2:] == [1]
        assert await cluster.get() in {b"%d" % pid for pid in after.values()}
        files = {path.name for path in (tmp_path / "pids").glob("worker.*")}
        assert files == {f"worker.{pid}.pid" for pid in after.values()}


async def test_a_worker_that_exits_by_itself(tmp_path: Path) -> None:
    """One that leaves with 0 is replaced as well; its reason is that it left."""
    async with observed(tmp_path) as cluster:
        assert await cluster.get("/exit") == b""
        died = await cluster.event(events.Died)
        assert (died.code, died.signal, died.reason) == (0, None, "exit")
        await cluster.whole(without=[died.pid])


async def test_a_state_that_has_ended(tmp_path: Path) -> None:
    """A worker leaves while the end of its time as a young one waits in the queue: that isn't taken for the end of its drain."""
    async with observed(tmp_path) as cluster:
        master = cluster.running._master
        assert master is not None
        handle = next(iter(master.state.registry))
        master.post(inbox.WorkerMessage(handle, messages.SelfDraining("SIGTERM")))
        master.post(inbox.StateTimeout(handle, WorkerState.READY))
        died = await cluster.event(events.Died)
        assert (died.pid, died.code, died.signal) == (handle.pid, 0, None)
        assert not cluster.of(events.Warned)


async def test_a_generation_that_is_ready_but_not_admitted(tmp_path: Path) -> None:
    """No worker is ordered before the master has handled `Prepared`, since it would lack the keeper."""
    async with observed(tmp_path) as cluster:
        master = cluster.running._master
        assert master is not None
        heard: list[inbox.InboxMessage] = []
        generations = GenerationTable(master.resources, heard.append)
        generations.load(1)
        await until(lambda: heard, "the zygote has said that it is ready")
        assert generations.factory(1) is None
        generations.on_ready(1)
        assert generations.factory(1) is not None
        generations.load(1)
        assert generations.factory(1) is None
        await generations.wait_closed(10)


async def test_all_workers_killed_at_once(tmp_path: Path) -> None:
    """Four workers killed in one moment are four successors."""
    async with observed(tmp_path, workers=4) as cluster:
        before = (await cluster.workers()).values()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert sorted(await cluster.whole(without=before, wanted=4)) == [0, 1, 2, 3]
        assert await cluster.get() != b""


async def test_a_killed_zygote(tmp_path: Path) -> None:
    """Without its zygote a cluster serves on; another one is made, and a worker killed meanwhile comes back."""
    async with observed(tmp_path) as cluster:
        before = await cluster.workers()
        zygote = cluster.zygote()
        os.kill(zygote, signal.SIGKILL)
        os.kill(before[0], signal.SIGKILL)
        assert await cluster.get() == b"%d" % before[1]
        await cluster.whole(without=[before[0]])
        assert cluster.zygote() != zygote
        assert any(event.text.startswith("no new worker can be made now: ") for event in cluster.of(events.Warned))


THREAD = "import threading\nthreading.Thread(target=threading.Event().wait, name='poller', daemon=True).start()\n"
CONNECT = "import socket\nupstream = socket.socket(getattr(socket, {family!r}))\nupstream.connect({address!r})\n"


@contextlib.contextmanager
def server(family: str, directory: Path) -> Iterator[tuple[str, str]]:
    """Yield a server to connect to: the text of an app that connects, and the form of its address."""
    with socket.socket(getattr(socket, family)) as listener:
        listener.bind({"AF_INET": ("127.0.0.1", 0), "AF_INET6": ("::1", 0)}.get(family, str(directory / "db.sock")))
        listener.listen()
        address = listener.getsockname()
        shown = f"unix:{address}" if family == "AF_UNIX" else f"{address[0]}:{address[1]}".replace("::1", "[::1]")
        yield APP + CONNECT.format(family=family, address=address), shown


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNIX"])
async def test_a_connection_at_import(tmp_path: Path, family: str) -> None:
    """A connection that the import has opened is warned of before the fork, with its peer and the ways out."""
    with server(family, tmp_path) as (text, shown):
        async with observed(tmp_path, text) as cluster:
            (warned,) = cluster.of(events.Warned)
            assert f"importing the app opened connections ({shown}), which all workers would share" in warned.text
            assert "worker.on_start" in warned.text
            assert "preload = false" in warned.text


@pytest.mark.parametrize("made", ["a thread", "a connection"])
async def test_without_preload_nothing_is_inherited(tmp_path: Path, made: str) -> None:
    """With `preload = false` there is nothing to warn of."""
    with server("AF_INET", tmp_path) as (text, _):
        async with observed(tmp_path, text if made == "a connection" else APP + THREAD, preload=False) as cluster:
            assert not cluster.of(events.Warned)


async def test_threads_at_import(tmp_path: Path) -> None:
    """An app whose import leaves a thread is not forked: a warning says so, workers are executed, and come back."""
    async with observed(tmp_path, APP + THREAD) as cluster:
        (warned,) = cluster.of(events.Warned)
        assert "importing the app started threads (poller)" in warned.text
        before = await cluster.workers()
        os.kill(before[0], signal.SIGKILL)
        await cluster.whole(without=[before[0]])
        assert not any("zygote" in title for title in processes().values())


# Workers that don't become ready


async def test_workers_that_crash_at_boot(tmp_path: Path) -> None:
    """At the first boot, workers that die before they are ready again and again end the attempt."""
    (tmp_path / "crashing").touch()
    told = r"workers end before they are ready \(crash: exit code 9 during startup\); their log says why"
    with pytest.raises(AppError, match=told):
        async with observed(tmp_path, restart_limit=2):
            pass


async def test_workers_that_can_not_serve(tmp_path: Path) -> None:
    """At the first boot, a worker that says why it can't serve ends the attempt with its reason."""
    (tmp_path / "broken").touch()
    with pytest.raises(AppError, match="the app's lifespan failed at startup: the database is away"):
        async with observed(tmp_path):
            pass


@pytest.mark.parametrize("preload", [True, False])
async def test_an_app_that_can_not_be_imported(tmp_path: Path, preload: bool) -> None:
    """At the first boot, a broken import ends the attempt with the app's own traceback."""
    with pytest.raises(AppError, match="it raised ZeroDivisionError") as raised:
        async with observed(tmp_path, "import os\n1 / 0\n", preload=preload):
            pass
    assert "line 2, in <module>" in raised.value.detail


async def test_a_worker_that_hangs_at_the_first_boot(tmp_path: Path) -> None:
    """At the first boot, a worker that isn't ready within boot_timeout ends the attempt."""
    (tmp_path / "hanging").touch()
    for bound in (2.0, 10.0, 50.0):
        with pytest.raises(AppError, match=rf"within boot_timeout \({bound:g} s\)") as raised:
            async with observed(tmp_path, boot_timeout=bound):
                pass
        if (
            "the app wasn't imported" not in raised.value.message
        ):  # the import has that bound, too, and the machine is busy
            break
    assert "wasn't ready" in raised.value.message
    assert "most recent call first" in raised.value.detail


async def test_a_worker_that_hangs_at_a_later_boot(tmp_path: Path) -> None:
    """Later, it is killed and replaced, with a warning, while the others serve on."""
    async with observed(tmp_path) as cluster:
        before = await cluster.workers()
        master = cluster.running._master
        assert master is not None
        settings = master.state.settings
        master.state.settings = replace(settings, boot_timeout=1.0)
        (tmp_path / "hanging").touch()
        os.kill(before[0], signal.SIGKILL)
        warned = await cluster.event(events.Warned)
        assert "wasn't ready within boot_timeout" in warned.text
        died = await cluster.event(events.Died, phase="startup")
        assert "most recent call first" in (died.stacks or "")
        master.state.settings = settings
        (tmp_path / "hanging").unlink()
        assert await cluster.get() == b"%d" % before[1]
        await cluster.whole(without=[before[0]])


@pytest.mark.slow
async def test_degraded_and_recovered(tmp_path: Path) -> None:
    """Later, workers that keep failing make the cluster degraded, which serves on with what it has; then it recovers."""
    async with observed(tmp_path, restart_limit=2, restart_window=1.5) as cluster:
        before = await cluster.workers()
        (tmp_path / "broken").touch()
        os.kill(before[0], signal.SIGKILL)
        degraded = await cluster.event(events.Degraded)
        assert (degraded.crashes, degraded.ready, degraded.wanted) == (3, 1, 2)
        assert (await cluster.status())["master"]["state"] == "degraded"
        assert (
            "can't serve: the app's lifespan failed at startup: the database is away"
            in cluster.of(events.Warned)[0].text
        )
        assert await cluster.get() == b"%d" % before[1]
        (tmp_path / "broken").unlink()
        await cluster.whole(without=[before[0]])
        recovered = await cluster.event(events.Recovered)
        assert recovered.ready == 2
        assert (await cluster.status())["master"]["state"] == "serving"


# What a worker may say


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x02\xc1\xc1",
        b"\x00\x04\x00\x00" + b"\x91" * 8 + b"\xc1",
        b"GET / HTTP/1.1\r\n",
    ],
    ids=["too long", "not MessagePack", "half a message", "HTTP"],
)
async def test_garbage_from_a_worker(tmp_path: Path, said: bytes) -> None:
    """A worker that says what is no message is replaced; half a message is only waited for. The others serve on."""
    async with observed(tmp_path) as cluster:
        before = await cluster.workers()
        culprit = int(await cluster.get(f"/say/{said.hex()}") or 0)
        if said.startswith(b"\x00\x04"):
            assert culprit in before.values()
            assert await cluster.workers() == before
            return
        died = await cluster.event(events.Died)
        assert died.reason == "crash"  # by SIGKILL, if it wasn't faster to leave when its channel was closed
        after = await cluster.whole(without=[died.pid])
        assert len(set(after.values()) & set(before.values())) == 1


@pytest.mark.parametrize(
    "message",
    [
        messages.Ready(),
        messages.Drain(True),
        messages.Started(1, messages.PROTOCOL_VERSION),
        messages.Note("look"),
        messages.BootFailed("late", "", 3),
    ],
    ids=lambda message: type(message).__name__,
)
async def test_messages_out_of_turn(tmp_path: Path, message: messages.ChannelMessage) -> None:
    """A message at the wrong time, or one that only a master sends, changes nothing; a note becomes a warning."""
    async with observed(tmp_path) as cluster:
        before = await cluster.workers()
        assert int(await cluster.get(f"/say/{codec.pack(message).hex()}")) in before.values()
        if isinstance(message, messages.Note):
            assert (await cluster.event(events.Warned)).text.endswith("look")
        assert await cluster.workers() == before
        assert cluster.of(events.Died) == []


# The end


async def test_a_graceful_end(tmp_path: Path) -> None:
    """The last events are the shutdown, the deaths that it means, the end of the zygote, and the stop with the exit code."""
    async with observed(tmp_path) as cluster:
        pids = set((await cluster.workers()).values())
    shutdown, *died, unloaded, stopped = cluster.events[-5:]
    assert isinstance(shutdown, events.ShuttingDown)
    assert shutdown.graceful
    assert {(e.pid, e.code, e.reason) for e in died if isinstance(e, events.Died)} == {(p, 0, "shutdown") for p in pids}
    assert isinstance(unloaded, events.Unloaded)
    assert isinstance(stopped, events.Stopped)
    assert stopped.code == 0


@pytest.mark.parametrize(
    ("path", "exit_code", "killed_by"), [("/held", 0, None), ("/stuck", None, "SIGKILL")], ids=["waiting", "stuck"]
)
async def test_a_request_that_outlasts_the_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, exit_code: int | None, killed_by: str | None
) -> None:
    """Beyond drain_timeout a worker cuts what is under way and leaves; one whose loop is stuck is killed. Both are said."""
    monkeypatch.setattr(lifecycle_actions, "DRAIN_MARGIN_S", 0.5)
    async with observed(tmp_path, drain_timeout=0.2, drain_idle=0.1, keeper=False) as cluster:
        request = asyncio.ensure_future(cluster.get(path))
        pid = await cluster.held()
        cluster.running.shut_down()
        assert await cluster.running.ended() == 0
        assert await request in (b"", b"Internal Server Error")
    (died,) = (event for event in cluster.of(events.Died) if event.pid == pid)
    assert (died.code, died.signal, died.reason, died.phase) == (exit_code, killed_by, "shutdown", "drain")
    assert ("site_of_test.py" in (died.stacks or "")) == (killed_by is not None)
    assert "drain_timeout" in cluster.of(events.Warned)[-1].text


async def test_stop(tmp_path: Path) -> None:
    """`stop` waits for no request, and returns when the master is gone."""
    async with observed(tmp_path) as cluster:
        request = asyncio.ensure_future(cluster.get("/held"))
        pid = await cluster.held()
        await asyncio.to_thread(cluster.cluster.stop)
        assert await cluster.running.ended() == 0
        assert await request == b""
    assert (await cluster.event(events.Died, pid=pid)).reason == "stop"
    assert not cluster.of(events.ShuttingDown)[0].graceful


async def test_shutdown_by_command(tmp_path: Path) -> None:
    """`shutdown` from another process does the same as the end of the block; an unknown verb is refused."""
    async with observed(tmp_path) as cluster:
        with pytest.raises(UsageError, match="the master knows no command 'explode'"):
            await asyncio.to_thread(cluster.cluster._client().call, "explode")
        await asyncio.to_thread(cluster.cluster.shutdown)
        assert await cluster.running.ended() == 0


async def test_a_shutdown_in_the_middle_of_the_boot(tmp_path: Path) -> None:
    """A cluster whose app is still being imported ends when it is asked to."""
    text = (
        f"import pathlib, threading\npathlib.Path({str(tmp_path)!r}, 'importing').touch()\nthreading.Event().wait()\n"
    )

    async def serve() -> None:
        async with observed(tmp_path, text):
            pytest.fail("it can't have become ready")

    serving = asyncio.ensure_future(serve())
    await until((tmp_path / "importing").exists)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(serving, PATIENCE)


async def test_a_shutdown_while_a_worker_boots(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A worker that is asked to leave while its app still starts leaves, and doesn't wait for the app."""
    async with observed(tmp_path) as cluster:
        (tmp_path / "hanging").touch()
        os.kill((await cluster.workers())[0], signal.SIGKILL)
        await until(lambda: len(cluster.of(events.Forked)) == 3)
        cluster.running.shut_down()
        await until(lambda: len(cluster.of(events.Died)) == 3, "both workers have left")
        assert await cluster.running.ended() == 0
    assert [(event.code, event.reason) for event in cluster.of(events.Died)][1:] == [(0, "shutdown")] * 2
    assert "Traceback" not in capfd.readouterr().err


async def test_a_shutdown_between_two_spawns(tmp_path: Path) -> None:
    """A program that ends its cluster while workers are being made leaves none of them behind, and doesn't wait for one."""
    (tmp_path / "site_of_test.py").write_text(APP)
    options = options_for(tmp_path, app=f"{tmp_path}/site_of_test.py:app", workers=12)
    before, made = set(processes()), list[Master]()
    configured = option_sources.load(options, environ={})
    launch.prepare(configured)
    with launch.acquire_resources(configured, default_argv()) as owned:
        running = asyncio.ensure_future(launch.supervise(owned, MessageHub(), lambda: None, started=made.append))
        while not made or not len(made[0].state.registry):
            await asyncio.sleep(0)
        made[0].shutdown.shut_down()
        ended, _ = await asyncio.wait({running}, timeout=5)
        made[0].shutdown.stop()
        assert await running == 0
    await nobody_is_left(before)
    assert ended


# cluster2 itself is another one

UPGRADED = f"import cluster2.protocol.messages\ncluster2.protocol.messages.PROTOCOL_VERSION += 1\n{APP}"
VERSION = messages.PROTOCOL_VERSION
OTHER = f"are of version {VERSION + 1}, the master's of version {VERSION}: .*; restart the cluster"


async def test_a_reload_after_an_upgrade(tmp_path: Path) -> None:
    """Workers of another version end the reload: the reason names both versions and the way out; the old ones serve on."""
    async with observed(tmp_path) as cluster:
        before = await cluster.workers()
        (tmp_path / "site_of_test.py").write_text(UPGRADED)
        with pytest.raises(ClusterError, match=f"the old generation goes on: .*{OTHER}"):
            await asyncio.to_thread(cluster.cluster.reload)
        (failed,) = cluster.of(events.ReloadFailed)
        assert re.search(OTHER, failed.reason)
        assert await cluster.workers() == before
        assert await cluster.get() in {b"%d" % pid for pid in before.values()}


async def test_a_crash_after_an_upgrade(tmp_path: Path) -> None:
    """Where each worker is executed, a successor that speaks another version is refused with a warning; the others serve on."""
    async with observed(tmp_path, preload=False) as cluster:
        before = await cluster.workers()
        (tmp_path / "site_of_test.py").write_text(UPGRADED)
        os.kill(before[1], signal.SIGKILL)
        await until(lambda: any(re.search(OTHER, event.text) for event in cluster.of(events.Warned)), "it warns")
        assert await cluster.get() == b"%d" % before[0]
        (tmp_path / "site_of_test.py").write_text(APP)
        assert (await cluster.whole(without=[before[1]]))[0] == before[0]


async def test_a_start_while_it_is_upgraded(tmp_path: Path) -> None:
    """A first worker that speaks another version ends the start."""
    with pytest.raises(ClusterError, match=OTHER):
        async with observed(tmp_path, UPGRADED):
            pass


# What is left


async def test_the_end_leaves_no_descriptor(tmp_path: Path) -> None:
    """A cluster that has come and gone, with crashes on the way, leaves the program's descriptors as they were."""

    async def once(name: str) -> None:
        (tmp_path / name).mkdir()
        async with observed(tmp_path / name) as cluster:
            pid = (await cluster.workers())[0]
            os.kill(pid, signal.SIGKILL)
            await cluster.whole(without=[pid])

    await once("first")  # what stays open for good is open after it
    before = _descriptors()
    await once("second")
    assert _descriptors() == before


def _descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def test_the_end_leaves_no_timer(tmp_path: Path) -> None:
    """A cluster that has ended keeps nothing going in the program's event loop."""
    async with observed(tmp_path) as cluster:
        master = weakref.ref(cluster.running._master)  # type: ignore[arg-type,type-var]
    del cluster
    for _ in range(20):  # the thread that has stopped it lets go of it a moment later
        await asyncio.sleep(0.01)
        gc.collect()
    assert master() is None
