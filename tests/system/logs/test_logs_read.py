"""Log files as others see them: over the monitor's port, and on the command line."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.system.harness import Running, command, free_port, sample, wait_until
from tests.system.health.test_ecv import own_address
from tests.system.monitor.test_monitor import MiB, Monitor

Serve = Callable[..., Running]
LARGE = 200 * MiB


@pytest.fixture
def watched(run: Serve) -> Monitor:
    """A cluster with log files and a monitor."""
    port = free_port()
    running = run(
        sample("plain"), "--log-to", "files", "--log-size", "0", "--monitor-port", str(port), workers=1
    ).ready(1)
    return Monitor(running, port)


def test_over_http(watched: Monitor) -> None:
    """The list, a file, its last lines, a part; and nothing that isn't a log file of the directory itself."""
    logs = watched.running.directory / "logs"
    (logs / "worker.7.log").write_text("one\ntwo\nthree\n")
    listed = json.loads(watched.answer("/logs", accept="application/json")[1])["logs"]
    assert [each["name"] for each in listed] == ["master.log", "worker.0.log", "worker.7.log"]
    assert "worker.7.log" in watched.answer("/logs")[1]
    assert watched.answer("/logs/worker.7.log")[:2] == (200, "one\ntwo\nthree\n")
    assert watched.answer("/logs/worker.7.log?tail=2")[:2] == (200, "two\nthree\n")
    status, body, headers = watched.answer("/logs/worker.7.log", Range="bytes=4-6")
    assert (status, body, headers["content-range"]) == (206, "two", "bytes 4-6/14")
    assert headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in headers["content-security-policy"]
    assert watched.status("/logs/worker.7.log?tail=x") == 400
    (watched.running.directory / "secret.log").write_text("secret")
    (logs / "other.txt").write_text("secret")
    (logs / "worker.8.log").symlink_to(watched.running.directory / "secret.log")
    os.mkfifo(logs / "worker.9.log")
    ways = ["../secret.log", "..%2fsecret.log", "%2e%2e/secret.log", "..%252fsecret.log", "%2e%2e%2fsecret.log"]
    ways += ["....//secret.log", "..\\secret.log", "other.txt", "worker.8.log", "worker.9.log", "master.log%00", "."]
    ways += [
        urllib.parse.quote(str(watched.running.directory / "secret.log"), safe=""),
        "/etc/passwd",
        "%2fetc%2fpasswd",
    ]
    for each in ways:
        status, body, _ = watched.answer("/logs/" + each)
        assert status == 404, each
        assert "secret" not in body
        assert "root:" not in body
    names = [each["name"] for each in json.loads(watched.answer("/logs", accept="application/json")[1])["logs"]]
    assert names == ["master.log", "worker.0.log", "worker.7.log"]


def test_a_large_file_is_streamed(watched: Monitor) -> None:
    """200 MB pass through the monitor, which grows by less than 10 MiB; so does one whose reader has left."""
    large = watched.running.directory / "logs" / "worker.7.log"
    with large.open("wb") as file:
        file.truncate(LARGE - 4)
        file.seek(LARGE - 4)
        file.write(b"end\n")
    assert watched.status("/logs") == 200
    monitor = psutil.Process(watched.pid)
    before = monitor.memory_full_info().pss
    connection = http.client.HTTPConnection(*watched.address, timeout=60)
    connection.request("GET", "/logs/worker.7.log")
    answer, got, most = connection.getresponse(), 0, 0
    while block := answer.read(4 * MiB):
        got += len(block)
        most = max(most, monitor.memory_full_info().pss)
        last = block
    connection.close()
    assert (got, last[-4:]) == (LARGE, b"end\n")
    assert most - before < 10 * MiB
    connection = http.client.HTTPConnection(*watched.address, timeout=60)
    connection.request("GET", "/logs/worker.7.log")
    connection.getresponse().read(1000)
    connection.close()

    def let_go() -> bool:
        return not any(each.path == str(large) for each in monitor.open_files())

    wait_until(let_go, "the monitor closes the file")
    assert watched.answer("/logs/worker.7.log?tail=1")[1].endswith("end\n")
    assert monitor.memory_full_info().pss - before < 10 * MiB


def test_the_gate(run: Serve) -> None:
    """Where others reach the monitor, list and files need the token."""
    host, port, token = own_address(), free_port(), "a-secret-token"
    options = ("--monitor-host", "0.0.0.0", "--monitor-port", str(port), "--monitor-token", token, "--log-to", "files")
    monitor = Monitor(run(sample("plain"), *options, workers=1).ready(1), port, host)
    for path in ("/logs", "/logs/master.log", "/logs/master.log?tail=1"):
        assert monitor.status(path) == 401
        assert monitor.status(path, Authorization="Bearer another-token") == 401
        assert monitor.status(path, Authorization=f"Bearer {token}") == 200


def test_on_the_command_line(watched: Monitor) -> None:
    """The ends of all, or of one, without colours in a pipe; as JSON; into a pipe whose reader leaves."""
    running = watched.running
    (running.directory / "logs" / "worker.7.log").write_text("one\ntwo\n\x1b[31mthree")
    shown = running.cli("logs")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "worker.7   | two" in shown.stdout
    assert "master     | " in shown.stdout
    assert running.cli("logs", "7", "-n", "2").stdout == "two\n\x1b[31mthree\n"
    assert "\x1b" not in running.cli("logs", "master").stdout
    parsed = [json.loads(line) for line in running.cli("logs", "--json", "worker.7").stdout.splitlines()]
    assert [(each["log"], each["line"]) for each in parsed][:2] == [("worker.7.log", "one"), ("worker.7.log", "two")]
    following = subprocess.Popen(command("logs", "-f"), cwd=running.directory, stdout=subprocess.PIPE)
    assert following.stdout is not None
    with following.stdout:
        assert following.stdout.readline()
    with (running.directory / "logs" / "worker.7.log").open("a") as file:
        file.write("\nfour\n")
    assert following.wait(30) == 0


def test_what_is_not_there(watched: Monitor, tmp_path: Path) -> None:
    """No files, no such file, no directory: one line that names the way out, and exit code 2."""
    for arguments, says in [
        (("logs", "--logs", str(tmp_path / "nowhere")), "there are no log files"),
        (("logs", "12"), "worker.12.log isn't there; there are: master.log, worker.0.log"),
        (("logs", "../stderr"), "isn't there"),
        (("logs", "--logs", "/etc/passwd"), "/etc/passwd: "),
    ]:
        shown = watched.running.cli(*arguments)
        assert (shown.returncode, shown.stdout) == (2, ""), (arguments, shown)
        assert says in shown.stderr
        assert shown.stderr.count("\n") == 1
