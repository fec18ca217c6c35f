"""What an app leaves behind at import: workers can do without it, or the cluster says so."""

from __future__ import annotations

import ctypes.util
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.system.clients import get
from tests.system.conftest import Serve
from tests.system.harness import ROOT, Running, free_port, wait_until
from tests.system.starting.test_docs import blocks

APP = "tests.system.apps.import_app:"


@pytest.mark.skipif(ctypes.util.find_library("gomp") is None, reason="there is no libgomp")
@pytest.mark.parametrize("options", [(), ("--no-preload",)], ids=["preload", "no preload"])
def test_openmp(run: Serve, options: tuple[str, ...]) -> None:
    """OpenMP that was used at import works in requests; a warning says what that costs, unless it was asked for."""
    running = run(APP + "openmp", *options, workers=1, env={"PYTHONPATH": str(ROOT), "AT_IMPORT": "openmp"}).ready(1)
    assert get(running.address).body == b"%d" % running.workers()[0]["pid"]
    assert ("importing the app started threads (OpenMP, libgomp" in running.stderr) == (not options)
    assert running.shutdown() == 0
    assert ("warning" in running.stderr) == (not options)


def numbers(running: Running, workers: int) -> dict[int, set[bytes]]:
    """The first random numbers of so many workers, by pid."""
    found: dict[int, set[bytes]] = {}

    def ask() -> bool:
        pid, *drawn = get(running.address).body.split()
        found.setdefault(int(pid), set(drawn))
        return len(found) >= workers

    wait_until(ask, "each worker answers")
    return found


def test_random_numbers(run: Serve) -> None:
    """NumPy's global generator and Python's draw other numbers in each worker, and in one that replaces another."""
    running = run(APP + "numpys", workers=2, env={"PYTHONPATH": str(ROOT), "AT_IMPORT": "numpy"}).ready(2)
    found = numbers(running, 2)
    os.kill(next(iter(found)), signal.SIGKILL)
    wait_until(lambda: len({row["pid"] for row in running.workers()} - set(found)) == 1, "there is another worker")
    running.ready(2)
    found |= numbers(running, 2)
    drawn = [number for each in found.values() for number in each]
    assert len(drawn) == len(set(drawn)) == 6, found
    assert running.shutdown() == 0


def sum_of(running: Running, name: str) -> float:
    """A metric of the app's, over all processes."""
    lines = get(running.address, "/metrics").body.decode().splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0.0)


def test_prometheus_client(run: Serve, tmp_path: Path) -> None:
    """The recipe of the docs: counters go on over a recycle and a reload, gauges of processes that are gone are forgotten."""
    files = tmp_path / "metrics"
    files.mkdir()
    (files / "counter_1.db").touch()  # of the last run
    directory = tmp_path / "site"
    directory.mkdir()
    for text in blocks("docs/at-import.md", "python"):
        if name := re.match(r"# (\w+\.py)", text):
            (directory / name[1]).write_text(text)
    (directory / "both.py").write_text(
        "import watch\n"
        "def setup(cluster):\n"
        "    watch.setup(cluster)\n"
        "    for name in ('loaded', 'unloaded'):\n"
        "        cluster.on(name, lambda event: print(event.name, event.pid, event.generation, flush=True))\n"
    )

    def told() -> list[tuple[str, int, int]]:
        lines = (running.directory / "stdout").read_text().split("\n")[:-1]
        return [(name, int(pid), int(generation)) for name, pid, generation in map(str.split, lines)]

    options = ("--setup", "both:setup", "--monitor-port", str(free_port()))
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(files)}
    running = run("shop:app", *options, directory=directory, env=environment).ready(2)
    for _ in range(10):
        assert get(running.address).body == b"thanks\n"
    assert (sum_of(running, "orders_total"), sum_of(running, "open_carts")) == (10, 10)
    before = {row["pid"] for row in running.workers()}
    for command in ("recycle", "reload"):
        assert running.cli(command).returncode == 0
        assert get(running.address).status == 200
    assert sum_of(running, "orders_total") == 12
    wait_until(lambda: sum_of(running, "open_carts") <= 1, "what has left is forgotten")
    living = {row["pid"] for row in running.workers()}
    assert not living & before

    def of_the_living() -> bool:
        found = {int(path.stem.rpartition("_")[2]) for path in files.glob("gauge_live*.db")}
        return found <= living | {[pid for name, pid, _ in told() if name == "loaded"][-1]}

    wait_until(of_the_living, lambda: f"no other files of gauges: {list(files.iterdir())}, {living}")
    (_, first, _), (_, second, _) = (each for each in told() if each[0] == "loaded")
    assert running.shutdown() == 0
    assert sorted(told()) == [
        *sorted([("loaded", first, 1), ("loaded", second, 2)]),
        *sorted([("unloaded", first, 1), ("unloaded", second, 2)]),
    ]
    assert "Traceback" not in running.stderr


def test_a_script_that_connects(start: Serve, tmp_path: Path) -> None:
    """A connection that a script opens before it calls `listen` is warned of, too."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (tmp_path / "main.py").write_text(
            "import socket\n"
            "from cluster2 import Cluster\n"
            "from tests.system.apps.sample_apps import plain\n"
            f"upstream = socket.create_connection(('127.0.0.1', {port}))\n"
            "Cluster(bind='unix:s', workers=1, monitor_port=0).listen(plain)\n"
        )
        running = start([sys.executable, "main.py"], directory=tmp_path, env={"PYTHONPATH": str(ROOT)}).ready(1)
        assert f"importing the app opened connections (127.0.0.1:{port})" in running.stderr
        assert running.shutdown() == 0
