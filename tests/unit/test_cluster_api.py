"""The API: `running`, `serve`, `listen`, events, and what it refuses."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cluster2
from cluster2 import Cluster, ClusterError, events
from cluster2.errors import AddressInUse, AlreadyRunning, AppError, ConfigError, NotRunning
from tests.unit.clusters import APP, nobody_is_left, observed, options_for, processes
from tests.unit.waiting import PATIENCE, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("own_process")]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that can be imported here and by workers."""
    (tmp_path / "site_of_test.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)
    return "site_of_test:app"


@pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])
def test_running(tmp_path: Path, uvloop: bool) -> None:
    """Inside of the block the workers serve on real ports, whatever the loop; behind it all is gone."""

    async def main() -> None:
        async with observed(tmp_path) as cluster:
            workers = await cluster.workers()
            assert int(await cluster.get()) in workers.values()
            status = await cluster.status()
            assert status["master"]["pid"] == os.getpid()
            assert status["addresses"] == cluster.running.addresses
            assert cluster.running.ready.is_set()
            assert not cluster.running.task.done()
        assert cluster.running.task.result() == 0

    if uvloop:
        import uvloop as loops

        loops.run(main())
    else:
        asyncio.run(main())


async def test_an_object_as_the_app(tmp_path: Path, site: str) -> None:
    """An app that is an attribute of its module is found by the workers, be it declared or not."""
    import importlib

    app = importlib.import_module("site_of_test").app
    for each in (app, cluster2.asgi(app)):
        async with Cluster(**options_for(tmp_path)).running(each) as running:
            assert running.addresses


async def test_an_object_that_nobody_can_import(tmp_path: Path) -> None:
    """An app that is no attribute of a module is refused, and nothing is started."""

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    with pytest.raises(ConfigError, match="isn't an attribute of a module, so workers can't import it: name it as"):
        async with Cluster(**options_for(tmp_path)).running(app):
            pass
    assert not (tmp_path / "pids").exists()


async def test_an_error_in_the_block(tmp_path: Path) -> None:
    """What the block raises comes out of it, after the cluster has ended."""
    with pytest.raises(LookupError, match="mine"):
        async with observed(tmp_path):
            raise LookupError("mine")


async def test_serve(tmp_path: Path, site: str) -> None:
    """`serve` returns the exit code when the cluster was told to end, by whomever."""
    cluster = Cluster(**options_for(tmp_path))
    listening = []
    cluster.on("listening", listening.append)
    serving = asyncio.ensure_future(cluster.serve(site))
    await until(lambda: len(listening) == 2 or serving.done())
    await asyncio.to_thread(Cluster(pids=str(tmp_path / "pids")).shutdown)
    assert await asyncio.wait_for(serving, PATIENCE) == 0


async def test_serve_that_is_cancelled(tmp_path: Path, site: str) -> None:
    """Cancelling `serve` ends the cluster gracefully; when the task is done, all is gone."""
    before = set(processes())
    cluster = Cluster(**options_for(tmp_path))
    seen: list[events.Event] = []
    cluster.on("*", seen.append)
    serving = asyncio.ensure_future(cluster.serve(site))
    await until(lambda: sum(isinstance(event, events.Listening) for event in seen) == 2 or serving.done())
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(serving, PATIENCE)
    assert isinstance(seen[-1], events.Stopped)
    await nobody_is_left(before)


async def test_two_clusters_one_after_the_other(tmp_path: Path, site: str) -> None:
    """A cluster can be started again when it has ended: same object, same directory."""
    cluster = Cluster(**options_for(tmp_path))
    for _ in range(2):
        async with cluster.running(site):
            assert len((await asyncio.to_thread(cluster.status))["workers"]) == 2


async def test_on_and_off(tmp_path: Path, site: str) -> None:
    """Handlers by decorator and by call, for one event and for all, sync and async; those taken off aren't called."""
    cluster = Cluster(**options_for(tmp_path, workers=1))
    called: list[str] = []

    @cluster.on("listening")
    async def ready(event: events.Listening) -> None:
        called.append(f"async {event.name}")

    @cluster.on("forked")
    def broken(event: events.Forked) -> None:
        raise LookupError("mine")

    everything = cluster.on("*", lambda event: called.append(event.name))
    cluster.on("forked", everything)
    removed = cluster.on("listening", lambda event: called.append("removed"))
    cluster.off("listening", removed)
    with pytest.raises(ValueError):
        cluster.off("listening", removed)
    async with cluster.running(site):
        pass
    called = [name for name in called if name not in ("loaded", "unloaded")]  # the zygote's
    assert called[:2] == ["forked", "forked"]
    assert sorted(called[2:]) == ["async listening", "died", "listening", "shutdown", "stopped"]
    assert ready.__name__ == "ready"


async def test_misspelt_events_are_warned_of(tmp_path: Path, site: str, caplog: pytest.LogCaptureFixture) -> None:
    """A handler of a misspelt event is named in the log: at the start, or at once if the cluster serves already."""
    cluster = Cluster(**options_for(tmp_path, workers=1))
    logger = logging.getLogger("cluster2.master")

    @cluster.on("dyed")
    def late(event: events.Died) -> None: ...

    cluster.on("order-paid", late)
    logger.addHandler(caplog.handler)
    try:
        async with cluster.running(site):
            cluster.once("Listening", late)
    finally:
        logger.removeHandler(caplog.handler)
    said = [each.getMessage() for each in caplog.records if "no event of the master" in each.getMessage()]
    assert len(said) == 2, said
    assert said[0].startswith("test_misspelt_events_are_warned_of.<locals>.late (")
    assert said[0].endswith(") is registered for 'dyed', which is no event of the master; did you mean 'died'?")
    assert said[1].endswith("; did you mean 'listening'?")


async def test_what_can_not_be_started(tmp_path: Path, site: str) -> None:
    """A directory and an address that are taken are errors of their own; the cluster that has them serves on."""
    async with observed(tmp_path) as cluster:
        with pytest.raises(AlreadyRunning, match=str(os.getpid())):
            async with Cluster(**options_for(tmp_path)).running(site):
                pass
        port = int(cluster.running.addresses[0].rpartition(":")[2])
        (tmp_path / "other").mkdir()
        with pytest.raises(AddressInUse, match=str(port)):
            async with Cluster(**options_for(tmp_path / "other", port=port)).running(site):
                pass
        assert await cluster.get()
    with pytest.raises(AppError, match="there is no module 'no_such_module'"):
        async with Cluster(**options_for(tmp_path)).running("no_such_module:app"):
            pass


def test_from_another_process(tmp_path: Path) -> None:
    """Where no master runs, each command says so."""
    cluster = Cluster(pids=str(tmp_path / "pids"))
    for command in (cluster.status, cluster.shutdown, cluster.stop):
        with pytest.raises(NotRunning, match=str(tmp_path / "pids")):
            command()


def test_options() -> None:
    """Options are checked where they are given; their sources are known."""
    with pytest.raises(ConfigError, match="wrokers"):
        Cluster(wrokers=3)
    with pytest.raises(ClusterError, match="drain_timeout"):
        Cluster(drain_timeout="3 parsecs")
    configured = Cluster(workers=3).config
    assert configured.settings.workers == 3
    assert (configured.sources["workers"], configured.sources["backlog"]) == ("code", "default")


SCRIPT = """
import os, sys
from pathlib import Path
from cluster2 import Cluster

cluster = Cluster(host="127.0.0.1", port=0, workers=2, monitor_port=0)

def make(greeting):
    async def app(reader, writer):
        writer.write(greeting)
    return app

@cluster.on("listening")
def ready(event):
    print("ready", flush=True)

if len(sys.argv) > 1:
    cluster.listen(factory=lambda: make(b"made"))
else:
    cluster.listen(make(b"closure"))
print("after", flush=True)
"""


@pytest.mark.parametrize("arguments", [[], ["factory"]], ids=["closure", "factory"])
async def test_listen_in_a_script(tmp_path: Path, arguments: list[str]) -> None:
    """A script's app need not have a name: the script is run again where workers are forked, with its arguments."""
    (tmp_path / "main.py").write_text(SCRIPT)
    script = await asyncio.create_subprocess_exec(
        sys.executable, "main.py", *arguments, cwd=tmp_path, stdout=subprocess.PIPE
    )
    assert script.stdout is not None
    for _ in range(2):
        assert await asyncio.wait_for(script.stdout.readline(), PATIENCE) == b"ready\n"
    outside = Cluster(pids=str(tmp_path / "pids"))
    host, _, port = (await asyncio.to_thread(outside.status))["addresses"][0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    assert await asyncio.wait_for(reader.read(), PATIENCE) == (b"made" if arguments else b"closure")
    writer.close()
    await asyncio.to_thread(outside.shutdown)
    assert await asyncio.wait_for(script.stdout.read(), PATIENCE) == b"after\n"
    assert await script.wait() == 0


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("Cluster().listen()", 5, "no app is named: give one to listen(), or set `app`"),
        ("Cluster(port=0, monitor_port=0).listen('no_such_module:app')", 3, "there is no module"),
        ("Cluster(port=0, monitor_port=0).listen(factory=lambda: 1 // 0)", 3, "ZeroDivisionError"),
    ],
    ids=["no app", "missing module", "factory that raises"],
)
def test_scripts_that_fail(tmp_path: Path, text: str, code: int, says: str) -> None:
    """`listen` ends a script that can't serve with the error's exit code, and a line on standard error."""
    (tmp_path / "main.py").write_text(f"from cluster2 import Cluster\n{text}\n")
    ended = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert ended.returncode == code
    assert ended.stderr.startswith("cluster2: error: ")
    assert says in ended.stderr
    assert "src/cluster2/" not in ended.stderr


def test_an_object_without_a_script(tmp_path: Path) -> None:
    """Without a script (a program on standard input) an app object can't be made again by another process: that is said."""
    text = "from cluster2 import Cluster\nCluster(port=0, monitor_port=0).listen(lambda environ, start_response: [])\n"
    ended = subprocess.run([sys.executable], input=text, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 5, ended.stderr
    assert "an app object can be served from a script file only; here, name it as module:attr" in ended.stderr
