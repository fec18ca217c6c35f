"""The commands, as a user types them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.clients import Connection, get
from tests.system.conftest import Serve
from tests.system.harness import Running, command, sample, wait_until

Start = Callable[..., Running]
OPTIONS = ("--workers", "2", "--bind", "127.0.0.1:0", "--monitor-port", "0")
WORKER = {"pid", "slot", "generation", "state", "requests", "connections", "in_flight", "uptime", "memory"}


def test_start_status_shutdown(start: Start) -> None:
    """`start` returns 0 when the workers serve; `status` shows them; `shutdown` returns 0 when all are gone."""
    running = start(command("start", sample("plain"), *OPTIONS))
    assert running.wait() == 0, running.stderr
    assert len(running.workers()) == 2, "start returned before the workers were ready"
    running.ready(background=True)
    assert get(running.address).body == b"hello"
    told = running.cli("status", "--json")
    assert told.returncode == 0, told.stderr
    shown = running.cli("status")
    assert shown.returncode == 0
    for row in json.loads(told.stdout)["workers"]:
        assert str(row["pid"]) in shown.stdout
    ended = running.cli("shutdown")
    assert (ended.returncode, ended.stderr) == (0, "")
    running.assert_gone()


@pytest.mark.parametrize("form", ["text", "json"])
def test_start_shows_warnings(start: Start, tmp_path: Path, form: str) -> None:
    """What the master warns of while it starts is shown by `start`, too, whatever the format of its log."""
    (tmp_path / "chatty.py").write_text(
        "import threading\n"
        "async def app(scope, receive, send): ...\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    argv = command("start", "chatty:app", *OPTIONS, "--log-format", form)
    running = start(argv, directory=tmp_path)
    assert running.wait() == 0, running.stderr
    (line,) = running.stderr.splitlines()
    assert line.startswith("cluster2: warning: importing the app"), line
    assert running.cli("shutdown").returncode == 0
    running.assert_gone()


def test_status_fields(run: Serve) -> None:
    """`status --json` tells the agreed facts of each worker, and they move."""
    running = run(sample("plain")).ready()
    with Connection(running.address) as idle, Connection(running.address) as busy:
        for _ in range(5):
            idle.get()
        busy.send("/held/a")
        pid = running.held("a")

        def seen() -> bool:
            rows = json.loads(running.cli("status", "--json").stdout)["workers"]
            assert all(row.keys() >= WORKER for row in rows)
            of_busy = next(row for row in rows if row["pid"] == pid)
            requests = sum(row["requests"] for row in rows)
            connections = sum(row["connections"] for row in rows)
            return of_busy["in_flight"] == 1 and requests >= 5 and connections == 2

        wait_until(seen, lambda: f"the facts arrive: {running.status()}")
    for row in running.workers():
        assert row["memory"] > 1 << 20
        assert row["uptime"] > 0
        assert row["generation"] == 1
    assert [row["slot"] for row in running.workers()] == [0, 1]
    running.close()


def test_stop_is_at_once(start: Start) -> None:
    """`stop` doesn't wait for a request in flight, and returns when all are gone."""
    running = start(command("start", sample("plain"), *OPTIONS))
    assert running.wait() == 0, running.stderr
    running.ready(background=True)
    with Connection(running.address) as connection:
        connection.send("/held/a")
        running.held("a")
        ended = running.cli("stop")
        assert (ended.returncode, ended.stderr) == (0, "")
        assert connection.closed()
    running.assert_gone()


def test_shutdown_waits_for_requests(run: Serve) -> None:
    """`shutdown` returns only when a request in flight was finished and the master is gone."""
    running = run(sample("plain")).ready()
    with Connection(running.address) as connection:
        connection.send("/held/a")
        running.held("a")
        asking = Running(command("shutdown"), running.directory)
        wait_until(lambda: running.workers("draining"), "the shutdown has begun")
        assert asking.process.poll() is None
        running.release()
        assert connection.receive().body == b"released"
    assert asking.wait() == 0
    assert running.wait() == 0
    asking.close()


@pytest.mark.parametrize("verb", ["status", "stop", "shutdown"])
def test_no_master(start: Start, verb: str) -> None:
    """Without a master a command ends with 6 and a line that names the directory it looked in."""
    running = start(command(verb, "--pids", "nowhere"))
    assert running.wait() == 6
    assert_one_line(running.stderr, "nowhere")


def test_no_master_after_a_kill(run: Serve) -> None:
    """The socket file of a killed master is no master: 6."""
    running = run(sample("plain")).ready()
    running.process.kill()
    running.wait()
    assert running.cli("status").returncode == 6
    successor = run(sample("plain"), directory=running.directory).ready()
    assert successor.shutdown() == 0


@pytest.mark.parametrize("verb", ["run", "start"])
def test_second_master(run: Serve, verb: str) -> None:
    """A second master on the same pids directory is refused with 7; the first serves on."""
    running = run(sample("plain")).ready()
    second = running.cli(verb, sample("plain"), *OPTIONS)
    assert second.returncode == 7
    assert_one_line(second.stderr, str(running.process.pid))
    assert get(running.address).body == b"hello"
    assert running.shutdown() == 0


def test_start_passes_a_failure_on(start: Start) -> None:
    """When the app can't be imported `start` ends with the code and message that `run` would give."""
    running = start(command("start", "nowhere_to_be_found:app", *OPTIONS))
    assert running.wait() == 3
    assert "nowhere_to_be_found" in running.stderr


def test_start_passes_a_failing_lifespan_on(start: Start) -> None:
    """When no worker becomes ready `start` says why and ends with 3."""
    running = start(command("start", sample("failing_lifespan"), *OPTIONS))
    assert running.wait() == 3
    assert "the database is away" in running.stderr


def test_check(start: Start) -> None:
    """`check` imports the app, serves nothing and ends with 0, or says what is wrong."""
    good = start(command("check", sample("plain"), *OPTIONS))
    assert good.wait() == 0, good.stderr
    assert not (good.directory / "pids").exists()
    bad = start(command("check", sample("absent"), *OPTIONS))
    assert bad.wait() == 3
    assert_one_line(bad.stderr, "absent")


def test_config(start: Start, tmp_path: Path) -> None:
    """`config --json` tells each option's value and where it came from."""
    (tmp_path / "cluster2.toml").write_text('drain_timeout = "7s"\nworkers = 3\n')
    running = start(
        command("config", "--json", "--workers", "4"), directory=tmp_path, env={"CLUSTER2_DRAIN_IDLE": "250ms"}
    )
    assert running.wait() == 0, running.stderr
    told = json.loads((tmp_path / "stdout").read_text())
    assert told["workers"]["value"] == 4
    assert told["drain_timeout"]["value"] == 7
    assert "cluster2.toml" in told["drain_timeout"]["source"]
    assert told["drain_idle"]["value"] == 0.25
    assert "CLUSTER2_DRAIN_IDLE" in told["drain_idle"]["source"]


def test_config_beside_a_running_cluster(run: Serve) -> None:
    """`config` shows what a start would use here. If a cluster runs here, it names the options that this one has instead."""
    running = run(sample("plain"), "--drain-idle", "250ms", "--monitor-token", "hush-hush").ready()
    shown = running.cli("config", "--backlog", "7")
    assert shown.returncode == 0
    assert "hush" not in shown.stdout + shown.stderr
    (line,) = shown.stderr.splitlines()
    assert line.startswith(f"cluster2: note: the cluster that runs on {running.pids} has other options: ")
    for option in (
        "drain_idle = 0.25 (flag --drain-idle)",
        "monitor_token = *** (flag --monitor-token)",
        "backlog = 2048 (default)",
    ):
        assert option in line
    assert " app = " not in line


@pytest.mark.parametrize("words", [("run",), ("no-such-command",), ("run", sample("plain"), "--no-such-flag")])
def test_usage(start: Start, words: tuple[str, ...]) -> None:
    """A command line that can't be understood ends with 2."""
    running = start(command(*words))
    assert running.wait() == 2
    assert "Traceback" not in running.stderr


def test_help(start: Start) -> None:
    """`--help` lists the commands that there are."""
    running = start(command("--help"))
    assert running.wait() == 0
    text = (running.directory / "stdout").read_text()
    for name in ("run", "start", "status", "stop", "shutdown", "check", "config"):
        assert name in text


def test_pids_directory(run: Serve) -> None:
    """While it runs the pids directory names the master and each worker, and follows a replacement."""
    running = run(sample("plain")).ready()

    def named() -> set[str]:
        return {path.name for path in running.pids.glob("*.pid")}

    def expected() -> set[str]:
        return {f"master.{running.process.pid}.pid"} | {f"worker.{row['pid']}.pid" for row in running.workers()}

    wait_until(lambda: named() == expected(), lambda: f"{named()} is {expected()}")
    os.kill(running.workers()[0]["pid"], signal.SIGKILL)
    wait_until(lambda: len(expected()) == 3 and named() == expected(), lambda: f"{named()} is {expected()}")
    assert (running.pids / "master.sock").stat().st_mode & 0o777 == 0o600
    assert running.shutdown() == 0


@pytest.mark.parametrize("what", ["directory", "files"])
def test_the_pids_directory_is_removed(run: Serve, what: str) -> None:
    """It is there again within a moment, complete; all the time a second start is refused with 7, and then commands work."""
    running = run(sample("plain")).ready()
    address, before = running.address, {path.name for path in running.pids.iterdir()}
    assert len(before) == 5, before
    if what == "directory":
        shutil.rmtree(running.pids)
    else:
        for path in running.pids.iterdir():
            path.unlink()
    assert running.cli("run", sample("plain"), *OPTIONS).returncode == 7
    wait_until(
        lambda: running.pids.exists() and {path.name for path in running.pids.iterdir()} == before,
        lambda: f"it is restored:\n{running.stderr}",
    )
    assert running.cli("run", sample("plain"), *OPTIONS).returncode == 7
    assert running.cli("status").returncode == 0
    assert get(address).body == b"hello"
    assert running.cli("shutdown").returncode == 0
    assert running.wait() == 0


def test_relative_target(start: Start, tmp_path: Path) -> None:
    """The installed command does what `python -m cluster2` does."""
    script = Path(sys.executable).with_name("cluster2")
    (tmp_path / "app.py").write_text(Path(sample("plain").rpartition(":")[0]).read_text())
    running = start([str(script), "run", "app.py:plain", *OPTIONS], directory=tmp_path).ready()
    assert get(running.address).body == b"hello"
    assert running.shutdown() == 0


def assert_one_line(text: str, *names: str) -> None:
    """A message is one line that names the thing."""
    assert len(text.strip().splitlines()) == 1, text
    for name in names:
        assert name in text
