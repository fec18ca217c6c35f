"""The monitor's port: health checks for all kinds of apps, from a process that can't harm the cluster."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.system.clients import Connection, get
from tests.system.harness import Running, example, free_port, sample, wait_until
from tests.system.health.test_ecv import own_address

Serve = Callable[..., Running]
MiB = 2**20


class Monitor:
    """The monitor of a cluster, which the test queries over its port."""

    def __init__(self, running: Running, port: int, host: str = "127.0.0.1") -> None:
        self.running, self.address = running, (host, port)
        running._ports.add(port)

    def answer(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        connection.request(method, path, headers=headers)
        found = connection.getresponse()
        body = found.read().decode()
        connection.close()
        return found.status, body, {name.lower(): value for name, value in found.getheaders()}

    def status(self, path: str, method: str = "GET", **headers: str) -> int:
        return self.answer(path, method, **headers)[0]

    def facts(self) -> Any:
        return json.loads(self.answer("/readyz", accept="application/json")[1])

    @property
    def pid(self) -> int:
        pid: int = self.running.status()["monitor"]["pid"]
        return pid


@pytest.fixture
def watched(run: Serve) -> Callable[..., Monitor]:
    """Return a function that starts a cluster with its monitor."""

    def watched(target: str, *options: str, workers: int = 2, **more: Any) -> Monitor:
        port = free_port()
        running = run(target, *options, "--monitor-port", str(port), workers=workers, **more).ready(workers)
        return Monitor(running, port)

    return watched


def test_ecv_of_a_tcp_app(watched: Callable[..., Monitor]) -> None:
    """An app that isn't HTTP has its health checks there; with `ecv.control` its traffic is switched there as well."""
    monitor = watched(example("echo.py") + ":handler", "--ecv-control")
    port = monitor.running.address[1]
    status, body, headers = monitor.answer("/ecv")
    where = re.escape(f"&ip=127.0.0.1&hostname={socket.gethostname()}&port={port}&time=")
    assert re.fullmatch("status=AVAILABLE&ServeTraffic=true" + where + r".+ GMT[+-]\d{4} \(.+\)", body)
    assert (status, headers["x-powered-by"], headers["cache-control"]) == (200, "Cluster2", "no-cache")
    assert monitor.status("/ecv/disable", "POST") == 204
    status, body, headers = monitor.answer("/ecv")
    assert (status, headers["connection"]) == (400, "close")
    assert body.startswith("status=DISABLED&ServeTraffic=false&")
    assert monitor.running.status()["traffic"] == "disabled"
    assert monitor.status("/ecv/enable", "POST") == 204
    assert monitor.status("/ecv", "HEAD") == 200
    status, _, headers = monitor.answer("/ecv", "DELETE")
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert monitor.status("/ecv/disable", "POST", Origin="http://evil.example") == 403


def test_both_ports_agree(watched: Callable[..., Monitor]) -> None:
    """Traffic that is disabled on one port is disabled on the other."""
    monitor = watched(sample("plain"), "--ecv-control")
    with Connection(monitor.running.address) as connection:
        connection.send("/ecv/disable", method="POST")
        assert connection.receive().status == 204
    assert monitor.status("/ecv") == 400
    assert monitor.status("/ecv/enable", "POST") == 204
    assert get(monitor.running.address, "/ecv").status == 200


def test_probes(watched: Callable[..., Monitor]) -> None:
    """A cluster with a worker that serves and enabled traffic is ready; one without can be alive. Both probes give the reason."""
    monitor = watched(sample("plain"))
    assert monitor.answer("/livez")[:2] == (200, "ok\n")
    assert monitor.answer("/readyz")[:2] == (200, "ok\n")
    expected = {
        "ok": True,
        "reason": None,
        "workers": {"ready": 2, "wanted": 2},
        "traffic": "enabled",
        "leaving": False,
    }
    assert monitor.facts() == expected
    monitor.running.ask("disable")
    assert monitor.answer("/readyz")[:2] == (503, "traffic is disabled\n")
    assert monitor.status("/livez") == 200
    monitor.running.ask("enable")
    assert monitor.status("/readyz", "HEAD") == 200
    assert monitor.status("/livez", "POST") == 405
    assert monitor.status("/nothing") == 404


@pytest.mark.slow
def test_not_ready_while_it_starts_and_while_it_ends(watched: Callable[..., Monitor], run: Serve) -> None:
    """Before a worker is ready, and during a shutdown, the cluster isn't ready; the monitor responds to the end."""
    port = free_port()
    starting = run(sample("never_starts"), "--monitor-port", str(port))
    monitor = Monitor(starting, port)
    wait_until(lambda: open_(port), "the port is bound")
    assert monitor.answer("/readyz")[:2] == (503, "no worker is ready\n")
    assert monitor.status("/ecv") == 500
    assert monitor.status("/livez") == 200
    starting.signal(signal.SIGQUIT)
    starting.wait()

    ending = watched(sample("plain"), "--drain-timeout", "20")
    with Connection(ending.running.address) as held:
        held.send("/held/one")
        ending.running.held("one")
        ending.running.signal(signal.SIGTERM)
        wait_until(lambda: ending.status("/readyz") == 503, "it isn't ready any more")
        assert ending.answer("/readyz")[1] == "shutting down\n"
        assert ending.status("/ecv") == 400
        assert ending.status("/livez") == 200
        ending.running.release()
        assert held.receive().body == b"released"
    assert ending.running.wait() == 0


def open_(port: int) -> bool:
    """Return True if the port is open."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_killed(watched: Callable[..., Monitor]) -> None:
    """A killed monitor is replaced at once, connections wait meanwhile, and workers and master aren't affected."""
    monitor = watched(sample("plain"))
    before = monitor.running.status()
    for _ in range(2):
        pid = monitor.pid
        os.kill(pid, signal.SIGKILL)
        assert monitor.status("/livez") == 200
        wait_until(lambda pid=pid: monitor.pid not in (0, pid), "another one")  # type: ignore[misc]
    after = monitor.running.status()
    assert after["monitor"]["restarts"] == 2
    assert [row["pid"] for row in after["workers"]] == [row["pid"] for row in before["workers"]]
    assert "another is started now" in monitor.running.stderr
    assert "another is started in 1 s" in monitor.running.stderr


def test_it_leaves_with_a_killed_master(watched: Callable[..., Monitor]) -> None:
    """The monitor ends when its master is killed."""
    monitor = watched(sample("plain"))
    pid = monitor.pid
    monitor.running.process.kill()
    monitor.running.wait()
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, "it leaves")
    for left in monitor.running.pids.iterdir():
        left.unlink()


def test_it_is_small(watched: Callable[..., Monitor]) -> None:
    """The monitor takes 35 MiB at most, after some use."""
    monitor = watched(sample("plain"))
    for _ in range(200):
        assert monitor.status("/readyz") == 200
    assert monitor.running.status()["monitor"]["memory"] < 35 * MiB
    assert re.search(
        rf"^monitor \d+  http://127.0.0.1:{monitor.address[1]}, \d+ MiB$", monitor.running.cli("status").stdout, re.M
    )


def test_off(run: Serve) -> None:
    """Without a port there is no monitor."""
    running = run(sample("plain")).ready()
    assert running.status()["monitor"] is None
    assert not any("monitor" in child.name() for child in psutil.Process(running.process.pid).children())


def test_busy_port(run: Serve) -> None:
    """A port in use is an error before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running = run(sample("plain"), "--monitor-port", str(port))
        assert running.wait() == 4
    assert f"127.0.0.1:{port} is in use" in running.stderr
    assert "(monitor_port, flag --monitor-port; 0: none)" in running.stderr


def test_open_to_others_needs_a_token(run: Serve) -> None:
    """An address that isn't loopback needs a token at start; then only health checks are open."""
    refused = run(sample("plain"), "--monitor-host", "0.0.0.0", "--monitor-port", str(free_port()))
    assert refused.wait() == 5
    assert (
        "monitor_host = 0.0.0.0 (flag --monitor-host) lets other machines reach the monitor: that needs monitor_token"
        in refused.stderr
    )
    port, outside = free_port(), own_address()
    options = (
        "--monitor-host",
        "0.0.0.0",
        "--monitor-port",
        str(port),
        "--monitor-token",
        "a-secret-token",
        "--ecv-control",
    )
    running = run(sample("plain"), *options).ready()
    monitor = Monitor(running, port, outside)
    assert monitor.status("/readyz", host="any.name.example") == 200
    assert monitor.status("/ecv") == 200
    assert monitor.status("/nothing") == 401
    assert monitor.status("/nothing", authorization="Bearer a-secret-token") == 404
    assert monitor.status("/ecv/disable", "POST", authorization="Bearer a-secret-token") == 403
    assert monitor.status("/ecv/disable", "POST", **{"x-forwarded-for": "127.0.0.1"}) == 403


def test_a_stranger_s_name(watched: Callable[..., Monitor]) -> None:
    """A request for a foreign host name is refused, for any path (DNS rebinding)."""
    monitor = watched(sample("plain"))
    assert monitor.status("/readyz", host="evil.example") == 421
    assert monitor.status("/readyz", host=f"localhost:{monitor.address[1]}") == 200


@pytest.mark.slow
def test_reload_brings_new_options(watched: Callable[..., Monitor], tmp_path: Path) -> None:
    """After a reload with another path the health checks are there, on both ports, and there is no warning."""
    (tmp_path / "cluster2.toml").write_text("[ecv]\npath = '/old'\n")
    monitor = watched(sample("plain"), directory=tmp_path)
    running, pid = monitor.running, monitor.pid
    assert (monitor.status("/old"), monitor.status("/new")) == (200, 404)
    running.ask("reload")
    assert monitor.pid == pid, "nothing has changed for it"
    (tmp_path / "cluster2.toml").write_text("[ecv]\npath = '/new'\n")
    running.ask("reload")
    wait_until(lambda: monitor.pid not in (0, pid), "another one")
    assert (monitor.status("/old"), monitor.status("/new")) == (404, 200)
    assert get(running.address, "/new").body.startswith(b"status=AVAILABLE")
    assert running.status()["monitor"]["restarts"] == 0
    assert "another is started" not in running.stderr


def test_below_a_path(watched: Callable[..., Monitor]) -> None:
    """All paths are below `monitor_path`."""
    monitor = watched(sample("plain"), "--monitor-path", "/inner", "--ecv-path", "/up")
    assert [monitor.status(path) for path in ("/inner/livez", "/inner/up", "/livez", "/up")] == [200, 200, 404, 404]


def test_single(run: Serve) -> None:
    """Without a master the one process serves the monitor's port, too."""
    port = free_port()
    running = run(
        sample("plain"),
        "--no-cluster",
        "--ecv-control",
        "--monitor-port",
        str(port),
        bind=("unix:app.sock",),
        workers=None,
    )
    monitor = Monitor(running, port)
    wait_until(lambda: open_(port), "the port is bound")
    wait_until(lambda: monitor.status("/readyz") == 200, "it serves")
    assert monitor.status("/ecv/disable", "POST") == 204
    with Connection(str(running.directory / "app.sock")) as connection:
        assert connection.get("/ecv").status == 400
    assert monitor.status("/ecv") == 400
    assert running.shutdown() == 0


def test_actions(watched: Callable[..., Monitor]) -> None:
    """A client with the token can run actions over HTTP; others can't."""
    monitor = watched(sample("plain"), "--monitor-token", "a-secret-token", workers=1)
    bearing = {"authorization": "Bearer a-secret-token"}
    assert monitor.status("/control/disable", "POST") == 401
    assert monitor.running.status()["traffic"] == "enabled"
    assert monitor.status("/control/disable", "POST", **bearing) == 200
    assert monitor.running.status()["traffic"] == "disabled"
    status, body, _ = monitor.answer("/control/scale?workers=0", "POST", **bearing)
    assert (status, "from 1 to" in json.loads(body)["error"]) == (400, True)
    assert monitor.status("/control/reload", "POST", **bearing) == 200
    assert monitor.running.status()["generation"] == 2
