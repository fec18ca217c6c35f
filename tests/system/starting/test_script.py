"""Script mode and the Python API, from the process that is the master and from others."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.system.clients import get
from tests.system.harness import EXAMPLES, ROOT, Running, sample, wait_until

Start = Callable[..., Running]
ENV = {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def script(start: Start, tmp_path: Path) -> Callable[[str], Running]:
    """Start a script of the given text."""

    def script(text: str) -> Running:
        (tmp_path / "main.py").write_text(textwrap.dedent(text))
        return start([sys.executable, "main.py"], directory=tmp_path, env=ENV)

    return script


def python(running: Running, path: Path) -> int:
    """Run another script in a cluster's directory; its exit code."""
    other = Running([sys.executable, str(path)], running.directory)
    try:
        return other.wait()
    finally:
        other.close()


@pytest.mark.parametrize("ending", ["stop.py", "shutdown.py"])
def test_seed_scripts(start: Start, ending: str) -> None:
    """The seed's scripts: start serves, stop and shutdown end it from another process and return when all are gone."""
    running = start([sys.executable, str(EXAMPLES / "start.py"), "0"]).ready()
    assert get(running.address).body == b"hello"
    assert python(running, EXAMPLES / ending) == 0, running.stderr
    assert running.process.poll() is not None, "it returned before the master was gone"
    running.assert_gone()


def test_events_example(start: Start) -> None:
    """The seed's example of events: forks, deaths and signals stand in the file."""
    running = start([sys.executable, str(EXAMPLES / "events.py"), "0"]).ready()
    log = running.directory / "events.log"
    pids = [row["pid"] for row in running.workers()]
    wait_until(lambda: all(f"Worker {pid} forked" in log.read_text() for pid in pids), "both forks are logged")
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: f"Worker {pids[0]} died" in log.read_text(), "the death is logged")
    wait_until(lambda: len(running.workers()) == 2, "the successor is ready")
    assert running.shutdown() == 0
    assert "Got SIGTERM - shutting down" in log.read_text()


def test_a_script_without_a_guard(script: Callable[[str], Running]) -> None:
    """A child of multiprocessing that executes the script again doesn't serve: it ends, and says what is missing."""
    running = script(
        """
        import multiprocessing
        from cluster2 import Cluster

        def app(environ, start_response):
            child = multiprocessing.get_context("spawn").Process(target=print)
            child.start()
            child.join()
            start_response("200 OK", [])
            return [b"%d" % child.exitcode]

        Cluster(bind=["127.0.0.1:0"], workers=1, monitor_port=0).listen(app)
        """
    ).ready(1)
    assert get(running.address).body == b"5"
    assert """put what serves below `if __name__ == "__main__":`""" in running.stderr
    assert running.shutdown() == 0


def test_code_around_listen(script: Callable[[str], Running]) -> None:
    """Code before `listen` runs in master and zygote, code after it only in the master, when all is over."""
    running = script(
        """
        import os
        from pathlib import Path
        from cluster2 import Cluster
        from tests.system.apps.sample_apps import plain

        Path(f"before.{os.getpid()}").touch()
        Cluster(host="127.0.0.1", port=0, workers=2, monitor_port=0).listen(plain)
        Path(f"after.{os.getpid()}").touch()
        """
    ).ready()
    assert get(running.address).body == b"hello"
    assert len(list(running.directory.glob("before.*"))) == 2
    assert running.shutdown() == 0
    assert [path.name for path in running.directory.glob("after.*")] == [f"after.{running.process.pid}"]


def test_a_script_that_configures_its_logging(script: Callable[[str], Running]) -> None:
    """A script's `dictConfig`, which disables existing loggers, silences neither the master nor what the app raises."""
    running = script(
        """
        import logging.config
        from cluster2 import Cluster

        logging.config.dictConfig({"version": 1, "root": {"level": "INFO"}})

        async def app(scope, receive, send):
            raise LookupError("no such thing")

        Cluster(host="127.0.0.1", port=0, workers=1, monitor_port=0, lifespan="off").listen(app)
        """
    ).ready(1)
    assert get(running.address).status == 500
    wait_until(lambda: "LookupError: no such thing" in running.stderr, lambda: running.stderr)
    assert "serving on 127.0.0.1" in running.stderr


def test_local_app(script: Callable[[str], Running]) -> None:
    """An app that has no name in a module, a closure, is served: the script itself makes it again."""
    running = script(
        """
        from cluster2 import Cluster
        from tests.system.apps import sample_apps

        def make(greeting):
            async def app(scope, receive, send):
                if scope["type"] == "http":
                    await sample_apps.answer(send, greeting)
            return app

        if __name__ == "__main__":
            Cluster(host="127.0.0.1", port=0, workers=2, monitor_port=0).listen(make(b"from a closure"))
        """
    ).ready()
    assert get(running.address).body == b"from a closure"
    assert running.shutdown() == 0


def test_handlers(script: Callable[[str], Running]) -> None:
    """Sync and async handlers receive typed events in order; one that raises is logged and hurts nobody."""
    running = script(
        """
        from pathlib import Path
        from cluster2 import Cluster

        cluster = Cluster(host="127.0.0.1", port=0, workers=1, monitor_port=0)

        def note(line):
            with open("notes", "a") as file:
                print(line, file=file)

        @cluster.on("forked")
        def forked(event):
            note(f"forked {event.pid} {event.slot} {event.generation}")

        @cluster.on("listening")
        async def listening(event):
            note(f"listening {event.pid}")

        @cluster.on("died")
        def broken(event):
            raise RuntimeError("the handler is broken")

        @cluster.on("died")
        async def died(event):
            note(f"died {event.pid} {event.signal} {event.reason}")

        @cluster.on("shutdown")
        def shutdown(event):
            note(f"shutdown {event.graceful}")

        @cluster.on("stopped")
        def stopped(event):
            note(f"stopped {event.code}")

        cluster.listen("tests.system.apps.sample_apps:plain")
        """
    ).ready(1)
    first = running.workers()[0]["pid"]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: [row for row in running.workers() if row["pid"] != first], "the successor is ready")
    second = running.workers()[0]["pid"]
    assert running.shutdown() == 0
    notes = (running.directory / "notes").read_text().splitlines()
    assert notes[:2] == [f"forked {first} 0 1", f"listening {first}"]
    assert f"died {first} SIGKILL crash" in notes
    assert notes[-3:] == ["shutdown True", f"died {second} None shutdown", "stopped 0"]
    assert "the handler is broken" in running.stderr


def test_unknown_event(script: Callable[[str], Running]) -> None:
    """A handler for the wrong kind of thing is refused where it is registered: an option that doesn't exist."""
    running = script("from cluster2 import Cluster\nCluster(prot=3000)\n")
    assert running.wait() == 1
    assert "prot" in running.stderr
    assert "port" in running.stderr


@pytest.mark.parametrize("ending", ["shutdown", "cancel"])
def test_serve_in_a_loop(script: Callable[[str], Running], ending: str) -> None:
    """`await cluster.serve(app)` serves from a running event loop, whose signals stay its own, until told to or cancelled."""
    running = script(
        """
        import asyncio
        from cluster2 import Cluster

        async def main():
            cluster = Cluster(host="127.0.0.1", port=0, workers=2, monitor_port=0)
            try:
                await cluster.serve("tests.system.apps.sample_apps:plain")
            finally:
                print("left", flush=True)

        asyncio.run(main())
        """
    ).ready()
    assert get(running.address).body == b"hello"
    if ending == "shutdown":
        assert running.cli("shutdown").returncode == 0
        assert running.wait() == 0
    else:
        running.signal(signal.SIGINT)  # asyncio.run cancels its task
        running.wait()
    assert "left" in (running.directory / "stdout").read_text()
    running.assert_gone()


def test_running(script: Callable[[str], Running]) -> None:
    """`async with cluster.running(app)`: the workers are ready inside, and all is gone behind it."""
    running = script(
        """
        import asyncio, urllib.request
        from cluster2 import Cluster

        async def main():
            cluster = Cluster(host="127.0.0.1", port=0, workers=2, monitor_port=0)
            async with cluster.running("tests.system.apps.sample_apps:plain"):
                status = await asyncio.to_thread(Cluster().status)
                url = f"http://{status['addresses'][0]}/"
                print(await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode()))
                print(sorted(row["state"] for row in status["workers"]))

        asyncio.run(main())
        """
    )
    assert running.wait() == 0, running.stderr
    assert (running.directory / "stdout").read_text().splitlines() == ["hello", "['ready', 'ready']"]


def test_errors_of_other_processes(start: Start, tmp_path: Path) -> None:
    """`Cluster().stop()` where nothing runs raises NotRunning, which names the directory."""
    (tmp_path / "main.py").write_text(
        "from cluster2 import Cluster\nfrom cluster2.errors import NotRunning\n"
        "try:\n    Cluster(pids='nowhere').stop()\nexcept NotRunning as error:\n    print(error)\n"
    )
    running = start([sys.executable, "main.py"], directory=tmp_path)
    assert running.wait() == 0, running.stderr
    assert "nowhere" in (tmp_path / "stdout").read_text()


def test_script_that_fails(script: Callable[[str], Running]) -> None:
    """In script mode, too, an app that can't be imported ends with 3 and its own traceback."""
    running = script(
        f"""
        from cluster2 import Cluster
        Cluster(host="127.0.0.1", port=0, workers=2, monitor_port=0).listen({sample("absent")!r})
        """
    )
    assert running.wait() == 3
    assert "absent" in running.stderr
    assert "src/cluster2/" not in running.stderr


CHANGING = """
    from cluster2 import Cluster
    from tests.system.apps import sample_apps

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await sample_apps.answer(send, scope["root_path"].encode())

    Cluster(host="127.0.0.1", port=0, monitor_port=0, env_file="variables", {}).listen(app)
    """


def edit(running: Running, options: str) -> None:
    """Change the options that the script gives."""
    (running.directory / "main.py").write_text(textwrap.dedent(CHANGING.format(options)))


def bodies(running: Running, count: int = 6) -> set[bytes]:
    """What is answered to some requests."""
    return {get(running.address).body for _ in range(count)}


@pytest.mark.parametrize("preload", [True, False])
def test_options_of_a_script(script: Callable[[str], Running], tmp_path: Path, preload: bool) -> None:
    """A reload takes the options that the script gives by then, in master and workers; a generation keeps what it began with."""
    (tmp_path / "variables").write_text("ONE=1\n")
    last = f"preload={preload}"
    running = script(CHANGING.format(f"workers=2, root_path='/one', {last}")).ready(2)
    assert bodies(running) == {b"/one"}

    edit(
        running, f"workers=3, root_path='/early', {last}"
    )  # nobody has asked for a reload: the generation keeps its own
    for title in ("zygote g1",) if preload else ():
        kill(running, title)
    kill_worker(running)
    running.ready(2)
    assert bodies(running) == {b"/one"}

    edit(running, f"workers=3, root_path='/two', backlog=77, {last}")
    done = running.cli("reload")
    assert done.returncode == 0, done.stderr
    assert "backlog has changed (code): that takes effect only by a restart" in done.stdout + done.stderr
    running.ready(3)
    assert bodies(running) == {b"/two"}

    edit(running, f"workers=1, root_path='/three', {last}")
    for title in ("zygote g2",) if preload else ():
        kill(running, title)
    kill_worker(running)
    running.ready(3)
    assert bodies(running) == {b"/two"}
    assert running.shutdown() == 0


def kill(running: Running, title: str) -> None:
    """Kill the process below the master that has this title."""
    (found,) = [child for child in psutil.Process(running.process.pid).children() if title in " ".join(child.cmdline())]
    found.kill()


def kill_worker(running: Running) -> None:
    """Kill a worker, and wait until another serves in its place."""
    before = running.workers()
    os.kill(before[0]["pid"], signal.SIGKILL)
    wait_until(
        lambda: {row["pid"] for row in running.workers()} - {row["pid"] for row in before}, "its successor serves"
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("workers='many'", "workers = 'many' (code): expected a whole number"),
        ("env_file='absent'", "can't be read: No such file or directory"),
        ("recycle_when='absent:function'", "recycle_when = 'absent:function': can't be imported"),
        ("request_timeout=-1", "request_timeout = -1 (code)"),
    ],
)
def test_bad_options_of_a_script(script: Callable[[str], Running], tmp_path: Path, options: str, told: str) -> None:
    """A reload whose script gives an option that can't be used is abandoned, and says which."""
    (tmp_path / "variables").write_text("ONE=1\n")
    running = script(CHANGING.format("workers=1, root_path='/one'")).ready(1)
    text = CHANGING if "env_file" not in options else CHANGING.replace('env_file="variables", ', "")
    (tmp_path / "main.py").write_text(textwrap.dedent(text.format(f"root_path='/two', {options}")))
    done = running.cli("reload")
    assert done.returncode == 1
    assert told in done.stderr
    assert bodies(running, 1) == {b"/one"}
    edit(running, "workers=1, root_path='/two'")
    assert running.cli("reload").returncode == 0
    assert bodies(running, 1) == {b"/two"}
    assert running.shutdown() == 0
