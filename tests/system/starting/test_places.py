"""Where a cluster is found, and what gives way: the monitor's default port, ./pids and ./logs, the platform's variables."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.clients import get
from tests.system.conftest import Serve
from tests.system.harness import Running, command, free_port, sample, wait_until

Start = Callable[..., Running]
PAGE = re.compile(r"the monitor's page is (http://127\.0\.0\.1:(\d+)/)")


def page_of(running: Running) -> tuple[str, int]:
    """URL and port of the page, as the log tells them."""
    found = wait_until(lambda: PAGE.search(running.stderr), lambda: f"a page's address in {running.stderr}")
    return found[1], int(found[2])


def test_the_monitors_default_port_gives_way(start: Start) -> None:
    """Services that name no monitor's port serve beside each other, one process or many; each says where its page is."""
    app_port, ports = free_port(), []
    for mode in (("--workers", "1"), ("--workers", "1"), ("--no-cluster",)):
        # The last one asks for the port that the monitor of one that is alone would have.
        running = start(command("run", sample("plain"), "--host", "127.0.0.1", "--port", str(app_port), *mode))
        url, port = page_of(running)
        ports.append(port)
        with urllib.request.urlopen(f"{url}livez", timeout=30) as answer:
            assert answer.status == 200
        assert f"logs in {running.directory}/logs" in running.stderr
        assert (f"pids in {running.pids}" in running.stderr) == ("--no-cluster" not in mode)
        app_port = free_port()
    assert len(set(ports)) == 3
    assert all(3001 <= port < 3101 for port in ports)
    assert "(monitor_port isn't set, and 3001 is taken)" in running.stderr


@pytest.mark.parametrize("mode", ["cluster", "alone"])
def test_variables_of_a_hosting_platform(start: Start, mode: str) -> None:
    """PORT and WEB_CONCURRENCY count where nothing else is said; `cluster2 config` shows them as the source."""
    port = free_port()
    env = {"PORT": str(port), "WEB_CONCURRENCY": "1"}
    more = ("--no-cluster",) if mode == "alone" else ()
    argv = command("run", sample("plain"), "--host", "127.0.0.1", "--monitor-port", "0", *more)
    running = start(argv, env=env)
    wait_until(lambda: "logs in" in running.stderr, lambda: running.stderr)
    assert get(("127.0.0.1", port)).status == 200
    shown = running.cli("config").stdout
    assert re.search(rf"^port +{port} +PORT$", shown, re.M)
    assert re.search(r"^workers +1 +WEB_CONCURRENCY$", shown, re.M)


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A working directory in which neither pids nor logs can be made, also not by root."""
    place = tmp_path / "closed"
    place.mkdir()
    for name in ("pids", "logs"):
        (place / name).write_text("a file\n")
    return place


def test_directories_that_cannot_be_written(run: Serve, closed: Path) -> None:
    """In the foreground defaults give way: pids to a temporary directory that goes with the master, log files to none."""
    running = run(sample("plain"), directory=closed)
    said = wait_until(lambda: re.search(r"so pids are in (\S+): give --pids", running.stderr), lambda: running.stderr)
    running.pids = Path(said[1])
    running.ready()
    assert "no log files: " in running.stderr
    assert running.cli("status", "--pids", str(running.pids)).returncode == 0
    assert running.shutdown() == 0
    assert not running.pids.exists()


@pytest.mark.parametrize("name", ["pids", "logs"])
@pytest.mark.parametrize("verb", ["start", "run"])
def test_directories_that_were_asked_for(start: Start, closed: Path, verb: str, name: str) -> None:
    """Named on purpose, or in the background, they are an error of one line that names them, and nothing is started."""
    named = (f"--{name}", name) if verb == "run" else ()
    if verb == "start" or name == "pids":
        (closed / {"pids": "logs", "logs": "pids"}[name]).unlink()
    argv = command(verb, sample("plain"), "--bind", "127.0.0.1:0", "--monitor-port", "0", *named)
    running = start(argv, directory=closed)
    running.pids = closed / "none"
    assert running.wait() == 5
    assert len(running.stderr.strip().splitlines()) == 1
    assert f"{closed}/{name}" in running.stderr


def test_start_says_where_everything_is(start: Start, tmp_path: Path) -> None:
    """On a terminal; in a pipe it says nothing."""
    argv = ("start", sample("plain"), "--bind", "127.0.0.1:0", "--workers", "1")
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        child = subprocess.run(command(*argv), cwd=tmp_path, stderr=theirs, stdin=subprocess.DEVNULL, timeout=60)
        os.close(theirs)
        said = terminal.read(65536).decode()
    running = start(command("status"), directory=tmp_path)
    assert child.returncode == 0
    running.wait()
    (address,) = running.addresses()
    monitor = running.status()["monitor"]["address"]
    assert f"serving on {address}\r\n" in said
    assert f"the monitor's page is http://{monitor}/\r\n" in said
    assert f"logs in {tmp_path}/logs, pids in {tmp_path}/pids\r\n" in said
    assert running.cli("shutdown").returncode == 0
