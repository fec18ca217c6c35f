"""ECV on the app's port: what load balancers see, in all workers alike."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster2 import Cluster
from tests.system.clients import Connection, get
from tests.system.harness import Running, accepts, command, free_port, wait_until

Serve = Callable[..., Running]
APPS = Path(__file__).parents[1] / "apps" / "health_app.py"
APP_OF_PATHS = Path(__file__).parents[1] / "apps" / "client_app.py"
TIME = r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun) [A-Z][a-z]{2} \d\d \d{4} \d\d:\d\d:\d\d GMT[+-]\d{4} \([^)]+\)"
BODIES = {
    200: "status=AVAILABLE&ServeTraffic=true",
    500: "status=WARNING&ServeTraffic=false",
    400: "status=DISABLED&ServeTraffic=false",
}


def health(running: Running, path: str = "/ecv", *, ends: bool = False) -> int:
    """The code that ECV answers, after a look at all the rest of the answer. `ends`: the engine may end any connection."""
    found = get(running.address, path)
    host, port = running.address
    where = f"&ip={host}&hostname={socket.gethostname()}&port={port}&time="
    assert re.fullmatch(re.escape(BODIES[found.status] + where) + TIME, found.body.decode())
    assert found.headers["x-powered-by"] == "Cluster2"
    assert found.headers["content-type"] == "text/plain"
    assert found.headers["cache-control"] == "no-cache"
    assert re.fullmatch(TIME, found.headers["since"])
    assert ("close" in found.headers.get("connection", "")) is (found.status == 400) or (ends and found.status != 400)
    return found.status


def answer(
    running: Running, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> tuple[int, dict[str, str]]:
    """Code and headers of any request."""
    connection = http.client.HTTPConnection(*running.address, timeout=30)
    connection.request(method, path, body, headers or {})
    found = connection.getresponse()
    assert method != "HEAD" or found.read() == b""
    connection.close()
    return found.status, {name.lower(): value for name, value in found.getheaders()}


def post(running: Running, switch: str, **headers: str) -> int:
    """The code that a switch answers."""
    return answer(running, "POST", f"/ecv/{switch}", headers)[0]


def in_each_worker(running: Running, workers: int) -> set[int]:
    """The codes that ECV answers in each of so many workers, asked on connections that are known to be theirs."""
    expected = {row["pid"] for row in running.workers()}
    assert len(expected) == workers
    found: dict[int, int] = {}
    open_ones = []

    def asked() -> bool:
        connection = Connection(running.address)
        open_ones.append(connection)
        answer = connection.get("/pid")
        if "close" not in answer.headers.get(
            "connection", ""
        ):  # granian ends some of those of a worker that has too many
            found[int(answer.body)] = connection.get("/ecv").status
        return expected <= set(found)

    try:
        wait_until(asked, lambda: f"an answer of {expected}; came {found}")
    finally:
        for connection in open_ones:
            connection.socket.close()
    return {found[pid] for pid in expected}


@pytest.fixture(scope="module", params=["app", "flask"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> object:
    """One cluster for the tests that change nothing for good: an ASGI app, a WSGI app."""
    directory = tmp_path_factory.mktemp(request.param)
    argv = [
        sys.executable,
        "-m",
        "cluster2",
        "run",
        f"{APPS}:{request.param}",
        "--bind",
        "127.0.0.1:0",
        "--workers",
        "2",
    ]
    options = ["--ecv-control", "--ecv-monitor", "/health", "--monitor-port", "0", "--handoff-idle-after", "0"]
    running = Running([*argv, *options], directory).ready()
    yield running
    running.close()
    running.assert_gone()


def test_disable_and_enable(shared: Running) -> None:
    """Whoever is told, all workers answer accordingly when the answer to that is there; the app serves all the time."""
    assert in_each_worker(shared, 2) == {200}
    for _ in range(5):
        assert post(shared, "disable") == 204
        assert in_each_worker(shared, 2) == {400}
        assert shared.status()["traffic"] == "disabled"
        assert post(shared, "enable") == 204
        assert in_each_worker(shared, 2) == {200}
    assert health(shared) == 200


def test_answers_of_switches(shared: Running) -> None:
    """204 as the contract has it: no body, `Connection: close` when disabled."""
    code, headers = answer(shared, "POST", "/ecv/disable")
    assert (code, headers["x-powered-by"], headers["connection"]) == (204, "Cluster2", "close")
    assert health(shared) == 400
    code, headers = answer(shared, "POST", "/ecv/enable", body=b"ignored")
    assert (code, headers["cache-control"], "content-length" in headers) == (204, "no-cache", False)
    assert health(shared) == 200


def test_the_app_is_asked(shared: Running) -> None:
    """What the app answers at `ecv.monitor` counts: middleware, lifespan state and all; a failure is told once."""
    (shared.directory / "sick").touch()
    assert health(shared) == 500
    assert in_each_worker(shared, 2) == {500}
    (shared.directory / "sick").unlink()
    assert in_each_worker(shared, 2) == {200}
    wait_until(lambda: "the ECV check of /health fails: it responded with 503" in shared.stderr, "a warning")


@pytest.mark.slow
def test_a_slow_app(shared: Running) -> None:
    """One that doesn't answer in time isn't fine; it is as soon as it answers again."""
    (shared.directory / "slow").touch()
    try:
        assert health(shared) == 500
    finally:
        (shared.directory / "slow").unlink()
    wait_until(lambda: health(shared) == 200, "it is well again")
    wait_until(lambda: in_each_worker(shared, 2) == {200}, "both are")


@pytest.mark.parametrize(
    ("method", "path", "code", "allow"),
    [
        ("HEAD", "/ecv", 200, None),
        ("POST", "/ecv", 405, "GET, HEAD"),
        ("DELETE", "/ecv", 405, "GET, HEAD"),
        ("OPTIONS", "/ecv", 405, "GET, HEAD"),
        ("GET", "/ecv/disable", 405, "POST"),
        ("HEAD", "/ecv/enable", 405, "POST"),
        ("PUT", "/ecv/disable", 405, "POST"),
        ("GET", "/ecv?x=1", 200, None),
        ("GET", "/ecv/", 404, None),
        ("GET", "/ecvx", 404, None),
        ("GET", "/%65cv", 200, None),
    ],
)
def test_methods(shared: Running, method: str, path: str, code: int, allow: str | None) -> None:
    """HEAD is GET without a body; other methods are told what is allowed; other paths are the app's."""
    found, headers = answer(shared, method, path)
    assert (found, headers.get("allow")) == (code, allow)


def test_bodies(shared: Running) -> None:
    """A body is read and ignored, if it is small; a large one is refused, also when its length isn't said."""
    with Connection(shared.address) as connection:
        connection.send("/ecv/enable", method="POST", headers="Content-Length: 3\r\n")
        connection.socket.sendall(b"abc")
        assert connection.receive().status == 204
        assert connection.get("/pid").status == 200
        connection.send("/ecv/disable", method="POST", headers="Transfer-Encoding: chunked\r\n")
        connection.socket.sendall(b"11000\r\n" + b"x" * 0x11000)
        assert connection.receive().status == 413
        assert connection.closed()
    assert health(shared) == 200


def test_malformed_and_huge(shared: Running) -> None:
    """What is no HTTP is answered by 400; a huge head never hurts."""
    with Connection(shared.address) as connection:
        connection.socket.sendall(b"GET /ecv HTTP/1.1\r\nHost: test\r\nbad header\r\n\r\n")
        assert connection.receive().status == 400
    assert get(shared.address, "/ecv" + "x" * 30_000).status in (404, 414, 431)
    assert get(shared.address, "/ecv", headers=f"X: {'x' * 30_000}\r\n").status in (200, 431)


def test_a_page_in_a_browser(shared: Running) -> None:
    """A stranger's page in a browser on this machine comes from loopback, and is refused."""
    assert post(shared, "disable", Origin="http://evil.example") == 403
    assert post(shared, "disable", **{"Sec-Fetch-Mode": "no-cors"}) == 403
    assert health(shared) == 200


@pytest.mark.slow
@pytest.mark.parametrize("target", ["rsgi", "app", "flask"])
def test_granian(run: Serve, target: str) -> None:
    """The same by an engine that takes connections itself: all answers, both methods, one word for all workers."""
    # Its connections can't move: a worker that has more than its share of them ends some with their next answer.
    options = ("--engine", "granian", "--ecv-control", "--ecv-monitor", "/health")
    running = run(f"{APPS}:{target}", *options).ready()
    assert health(running, ends=True) == 200
    assert post(running, "disable", Origin="http://evil.example") == 403
    assert post(running, "disable") == 204
    assert in_each_worker(running, 2) == {400}
    assert health(running, ends=True) == 400
    assert answer(running, "HEAD", "/ecv")[0] == 400
    assert answer(running, "DELETE", "/ecv")[1]["allow"] == "GET, HEAD"
    assert answer(running, "GET", "/ecv/enable")[0] == 405
    assert answer(running, "POST", "/ecv/enable", body=b"ignored")[0] == 204
    assert in_each_worker(running, 2) == {200}
    (running.directory / "sick").touch()
    assert in_each_worker(running, 2) == {500}
    (running.directory / "sick").unlink()
    (running.directory / "slow").touch()
    assert health(running, ends=True) == 500
    (running.directory / "slow").unlink()
    wait_until(lambda: in_each_worker(running, 2) == {200}, "it is well again")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["app", "flask"])
def test_disabled_through_everything(run: Serve, target: str) -> None:
    """Disabled is disabled: through recycle, a crash, reload and scale, in workers that are forked later as well."""
    running = run(f"{APPS}:{target}", "--ecv-control", "--handoff-idle-after", "0").ready()
    assert post(running, "disable") == 204
    assert running.cli("recycle").returncode == 0
    assert in_each_worker(running, 2) == {400}
    first = running.workers()[0]["pid"]
    os.kill(first, signal.SIGKILL)

    def healed() -> bool:
        pids = {row["pid"] for row in running.workers()}
        return len(pids) == 2 and first not in pids

    wait_until(healed, "it heals")
    assert in_each_worker(running, 2) == {400}
    assert running.cli("reload").returncode == 0
    assert running.cli("scale", "3").returncode == 0
    assert in_each_worker(running, 3) == {400}
    assert post(running, "enable") == 204
    assert in_each_worker(running, 3) == {200}


@pytest.mark.slow
def test_start_ecv_stop(start: Callable[..., Running], tmp_path: Path) -> None:
    """The seed's own case: start, ask, stop, and nobody is there any more."""
    options = ("--bind", "127.0.0.1:0", "--monitor-port", "0", "--workers", "2")
    running = start(command("start", f"{APPS}:app", *options), directory=tmp_path).ready(background=True)
    assert health(running) == 200
    address = running.address
    assert running.cli("stop").returncode == 0
    with pytest.raises(ConnectionRefusedError):
        get(address, "/ecv")


def test_root_path(run: Serve) -> None:
    """Below the path under which the app is mounted, ECV is where a proxy that strips it would ask; the app's check, too."""
    running = run(f"{APPS}:app", "--root-path", "/api", "--ecv-monitor", "/health", "--ecv-control", workers=1).ready(1)
    assert health(running) == 200
    (running.directory / "sick").touch()
    assert health(running) == 500
    assert post(running, "disable") == 204


@pytest.mark.slow
def test_commands_and_events(run: Serve, tmp_path: Path) -> None:
    """CLI and API switch, events tell of changes and of nothing else, `status` shows it."""
    (tmp_path / "telling.py").write_text(
        "def setup(cluster):\n"
        "    for name in ('enabled', 'disabled'):\n"
        "        cluster.on(name, lambda event: print(event.name, flush=True))\n"
    )
    running = run(f"{APPS}:app", "--setup", "telling:setup", directory=tmp_path).ready()
    for _ in range(2):
        assert running.cli("disable").returncode == 0
        assert health(running) == 400
    assert "traffic disabled" in running.cli("status").stdout
    api = Cluster(pids=running.pids)
    assert api.enable() == {"traffic": "enabled"}
    assert health(running) == 200
    assert api.disable() == {"traffic": "disabled"}
    assert running.cli("enable").returncode == 0
    assert (tmp_path / "stdout").read_text().split() == ["disabled", "enabled", "disabled", "enabled"]
    assert "traffic disabled" in running.stderr


def test_without_control(run: Serve) -> None:
    """Those paths are the app's own; the other one can be moved away from an app that has it itself."""
    running = run(f"{APPS}:app", "--ecv-path", "/up/here", workers=1).ready(1)
    with Connection(running.address) as connection:
        connection.send("/ecv/disable", method="POST")
        assert connection.receive().body == b"the app's own"
    assert get(running.address, "/ecv").status == 404
    assert health(running, "/up/here") == 200


OFF = [
    ("off", "asgi", ()),
    ("", "wsgi", ()),
    ("OFF", "wsgi", ("--threads", "0")),
    ("off", "rsgi", ()),
    ("", "asgi", ("--engine", "granian")),
]


@pytest.mark.parametrize(("value", "attr", "options"), OFF, ids=["asgi", "wsgi", "wsgi-inline", "rsgi", "granian-asgi"])
def test_off(run: Serve, value: str, attr: str, options: tuple[str, ...]) -> None:
    """All paths of the app's port are the app's; the monitor, where traffic can be switched, answers all the same."""
    port = free_port()
    words = ("--ecv-path", value, "--ecv-control", *options, "--monitor-port", str(port))
    running = run(f"{APP_OF_PATHS}:{attr}", *words, workers=1).ready(1)
    running._ports.add(port)
    for path in ("/ecv", "/ecv/disable", "/", "/off"):
        assert get(running.address, path).body.startswith(b"{"), path
    monitor = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for method, path, status in (("GET", "/ecv", 200), ("POST", "/ecv/disable", 204), ("GET", "/ecv", 400)):
        monitor.request(method, path)
        answer = monitor.getresponse()
        assert answer.status == status
        answer.read()
    monitor.close()


@pytest.mark.parametrize("value", ["/", "//", "/ecv?x", "ecv"])
def test_a_path_that_cannot_be(run: Serve, value: str) -> None:
    """A path that would take the app's first page, or is none, is refused with its source."""
    running = run(f"{APPS}:app", "--ecv-path", value)
    assert running.wait() == 5
    (line,) = running.stderr.splitlines()
    assert f"ecv.path = {value!r} (flag --ecv-path): " in line
    assert ("first page" in line) == (not value.strip("/"))


def test_token(run: Serve) -> None:
    """With a token only who bears it may, and a forwarded address changes nothing."""
    running = run(
        f"{APPS}:app",
        "--ecv-control",
        "--forwarded-allow-ips",
        "*",
        workers=1,
        env={"CLUSTER2_ECV_TOKEN": "a-secret-token"},
    ).ready(1)
    assert post(running, "disable") == 401
    assert answer(running, "POST", "/ecv/disable")[1]["www-authenticate"] == "Bearer"
    assert post(running, "disable", Authorization="Bearer another-token") == 401
    assert post(running, "disable", **{"X-Forwarded-For": "127.0.0.1"}) == 401
    assert post(running, "disable", Authorization="Bearer a-secret-token", Origin="http://any.example") == 204
    assert health(running) == 400
    assert "a-secret-token" not in running.cli("config").stdout + running.stderr


def test_only_loopback(run: Serve) -> None:
    """Whoever comes from elsewhere is refused, whatever its headers say, also where proxies are believed; so is a local proxy."""
    outside = own_address()
    running = run(f"{APPS}:app", "--ecv-control", "--forwarded-allow-ips", "*", bind=("0.0.0.0:0",), workers=1).ready(1)
    with Connection((outside, running.address[1])) as connection:
        for headers in ("", "X-Forwarded-For: 127.0.0.1\r\n", "Forwarded: for=127.0.0.1\r\n"):
            connection.send("/ecv/disable", method="POST", headers=headers)
            assert connection.receive().status == 403
        assert connection.get("/ecv").status == 200
    loopback = http.client.HTTPConnection("127.0.0.1", running.address[1], timeout=30)
    proxied: list[tuple[dict[str, str], int]] = [
        ({name: value}, 403)
        for name, value in (("X-Forwarded-For", "127.0.0.1"), ("Forwarded", "for=127.0.0.1"), ("Via", "1.1 proxy"))
    ]
    for more, status in (*proxied, ({}, 204)):
        loopback.request("POST", "/ecv/disable", headers=more)
        answered = loopback.getresponse()
        answered.read()
        assert answered.status == status, more
    loopback.close()


def own_address() -> str:
    """An address of this machine that isn't loopback; the test is skipped where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; chooses the interface
        except OSError:
            pytest.skip("this machine has no address but loopback")
        found: str = probe.getsockname()[0]
    return found


def test_unix_socket(run: Serve, tmp_path: Path) -> None:
    """Over a Unix socket ECV has no address to tell, and whoever can open it is on this machine."""
    running = run(f"{APPS}:app", "--ecv-control", bind=("unix:app.sock",), workers=1, directory=tmp_path).ready(1)
    with Connection(str(tmp_path / "app.sock")) as connection:
        assert b"&ip=&hostname=" in connection.get("/ecv").body
        connection.send("/ecv/disable", method="POST")
        assert connection.receive().status == 204
    with Connection(str(tmp_path / "app.sock")) as connection:
        assert connection.get("/ecv").status == 400
    assert running.status()["traffic"] == "disabled"


@pytest.mark.slow
@pytest.mark.parametrize("validator", ["valid", "valid_async"])
def test_validator(run: Serve, tmp_path: Path, validator: str) -> None:
    """The user's own word counts, sync or async."""
    (tmp_path / "health_app.py").write_text(APPS.read_text())
    options = ("--ecv-monitor", "/health", "--ecv-validator", f"health_app:{validator}")
    running = run("health_app:app", *options, workers=1, directory=tmp_path).ready(1)
    assert health(running) == 200
    (tmp_path / "refused").touch()
    assert health(running) == 500
    (tmp_path / "refused").unlink()
    assert health(running) == 200
    if validator == "valid":
        (tmp_path / "raising").touch()
        assert health(running) == 500
        assert "ecv.validator raised LookupError: no verdict" in running.stderr
        (tmp_path / "raising").unlink()
        (tmp_path / "hanging").touch()
        assert health(running) == 500
        assert get(running.address, "/pid").status == 200
        assert health(running) == 500  # at once, since the last one hasn't ended
        (tmp_path / "hanging").unlink()
        wait_until(lambda: health(running) == 200, "it is well again")


def test_single(run: Serve) -> None:
    """Without a master the one process answers and switches."""
    options = ("--no-cluster", "--ecv-control", "--ecv-monitor", "/health")
    running = run(f"{APPS}:app", *options, bind=("unix:app.sock",), workers=None)
    path = str(running.directory / "app.sock")
    wait_until(lambda: accepts(path), lambda: f"it listens: {running.stderr}")

    def ask(method: str, path_: str) -> int:
        with Connection(path) as connection:
            connection.send(path_, method=method)
            return connection.receive().status

    assert wait_until(lambda: ask("GET", "/ecv"), "an answer") == 200
    assert ask("POST", "/ecv/disable") == 204
    assert ask("GET", "/ecv") == 400
    assert ask("POST", "/ecv/enable") == 204
    assert ask("GET", "/ecv") == 200
    assert running.shutdown() == 0
