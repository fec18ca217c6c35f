"""granian under cluster2 serves every interface, and drops nothing, whatever is done to the cluster."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import ssl
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from tests.http2_client import opened
from tests.system import forbidding
from tests.system.clients import Connection, Load, get
from tests.system.conftest import Serve
from tests.system.counting import Mix
from tests.system.forbidding import SETSOCKOPT
from tests.system.harness import Running, command, example, stop, wait_until

ROLLING = Path(__file__).parents[1] / "apps" / "rolling_app.py"
APPS = Path(__file__).parents[1] / "apps" / "granian_app.py"
GRANIAN = ("--engine", "granian")
BIG = 20_000_000
"""Bytes of a body that is larger than any socket buffer."""
QUICK = ("--drain-idle", "2s")
KINDS = {"rsgi": ("rsgi",), "asgi": ("app", *GRANIAN), "wsgi": ("make_flask", "--factory", *GRANIAN)}


def pids(running: Running) -> set[int]:
    """Return the pids of the workers that serve."""
    return {row["pid"] for row in running.workers()}


def nothing_dropped(mix: Mix) -> None:
    """Assert that no request failed and no connection was refused."""
    print(mix.seen)
    assert not mix.seen.failed, mix.seen
    assert not mix.seen.refused, mix.seen


@pytest.mark.parametrize("kind", ["rsgi", "asgi", "wsgi"])
def test_durations(run: Serve, kind: str) -> None:
    """The duration of requests is measured for each interface, and includes the time that the handler waited."""
    running = run(f"{APPS}:{kind}", *GRANIAN, workers=1).ready(1)
    with Connection(running.address) as connection:

        def slowest() -> float:
            assert connection.get("/slow").body == b"hello"
            latency = running.status()["latency"]  # None: nothing is measured yet
            return 0.0 if latency is None else float(latency["max"])

        wait_until(lambda: slowest() >= 0.1, lambda: str(running.status()["latency"]))
        assert slowest() < 10
    latency = running.status()["latency"]
    assert latency["measured"] > 0
    assert 0 < latency["p50"] <= latency["p99"] <= latency["max"]
    assert running.shutdown() == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_rolling_drops_nothing(run: Serve, kind: str) -> None:
    """Through a reload, recycles and scaling each request is answered. Connections end with a response that announces it."""
    attr, *options = KINDS[kind]
    running = run(f"{ROLLING}:{attr}", *options, *QUICK).ready()
    with Mix(running.address) as mix:
        wait_until(lambda: mix.seen.answered > 50, lambda: f"the load runs: {mix.seen}")
        for verb, params in [("reload", {}), ("recycle", {}), ("scale", {"workers": 6}), ("scale", {"workers": 2})]:
            running.ask(verb, **params)
            before = mix.seen.answered
            wait_until(lambda before=before: mix.seen.answered > before + 10, "the load goes on")  # type: ignore[misc]
    nothing_dropped(mix)
    assert mix.seen.said > 0
    assert len(mix.seen.workers) > 4, "workers answered that are younger than the reload"
    assert running.shutdown() == 0


@pytest.mark.slow
def test_the_engine_changes_by_a_reload(run: Serve, tmp_path: Path) -> None:
    """A reload from granian to http under load drops nothing. The way back is refused, since the keeper may have connections."""
    file = tmp_path / "cluster2.toml"
    file.write_text('engine = "granian"\n')
    running = run(f"{ROLLING}:app", *QUICK, directory=tmp_path).ready()
    with Mix(running.address) as mix:
        wait_until(lambda: mix.seen.answered > 50, lambda: f"the load runs: {mix.seen}")
        file.write_text('engine = "http"\n')
        running.ask("reload")
        assert all(row["accepted"] is not None for row in running.workers()), "http serves"
        before = mix.seen.answered
        wait_until(lambda: mix.seen.answered > before + 20, "the load goes on")
        file.write_text('engine = "granian"\n')
        refused = running.cli("reload")
        assert refused.returncode == 1
        assert "restart to change to that engine" in refused.stderr
        before = mix.seen.answered
        wait_until(lambda: mix.seen.answered > before + 20, "the load goes on")
    nothing_dropped(mix)
    assert running.shutdown() == 0


@pytest.mark.slow
def test_killed_under_load(run: Serve) -> None:
    """kill -9 costs at most the requests under way. No connection is refused, and a successor serves."""
    running = run(f"{APPS}:rsgi").ready()
    with Load(running.address, clients=12, keep_alive=False) as load:
        for _ in range(3):
            before, victim = load.counts.answered, min(pids(running))
            wait_until(lambda before=before: load.counts.answered > before + 100, "the load runs")  # type: ignore[misc]
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda victim=victim: len(pids(running) - {victim}) == 2, "a successor is ready")  # type: ignore[misc]
    assert len(load.counts.failed) + load.counts.closed <= 3 * 12
    assert load.counts.refused == []


def test_who_waits_for_a_killed_worker(run: Serve) -> None:
    """Connections in the accept queue of a killed worker are served by its successor, on the same socket."""
    running = run(f"{APPS}:rsgi", workers=1).ready(1)
    (victim,) = pids(running)
    stop(victim)
    with ExitStack() as stack:
        clients = [stack.enter_context(Connection(running.address)) for _ in range(8)]
        for client in clients:
            client.send("/")
        os.kill(victim, signal.SIGKILL)
        for client in clients:
            assert client.receive().body == b"hello"
    assert victim not in pids(running)


@pytest.mark.slow
def test_a_worker_that_is_stuck(run: Serve) -> None:
    """New connections avoid a stuck worker as soon as its heartbeat is late, long before it is replaced."""
    running = run(f"{APPS}:rsgi", "--max-heartbeat-delay", "4s").ready()
    with ExitStack() as stack:
        stuck = stack.enter_context(Connection(running.address))
        stuck.send("/spin/one")
        victim = running.held("one")
        late = time.monotonic() + 3.5  # a heartbeat is due every two seconds, and the master checks once a second
        wait_until(lambda: time.monotonic() > late, "its heartbeat is late")
        for _ in range(12):
            assert get(running.address).headers["x-worker"] != str(victim)
        assert victim in pids(running)
        wait_until(lambda: len(pids(running) - {victim}) == 2, lambda: f"it is replaced:\n{running.stderr}")
        assert stuck.closed()
    assert "granian_app.py" in running.stderr, "its stacks are told"


@pytest.mark.slow
@pytest.mark.parametrize(("attr", "options"), [("rsgi", ()), ("wsgi", GRANIAN)], ids=["rsgi", "wsgi"])
def test_a_request_that_never_ends(run: Serve, attr: str, options: tuple[str, ...]) -> None:
    """With `request_timeout` the worker of a request that takes too long is replaced. The other one goes on serving."""
    running = run(f"{APPS}:{attr}", *options, "--request-timeout", "1s", "--drain-timeout", "1s").ready()
    with Connection(running.address) as endless:
        endless.send("/forever/one")
        victim = running.held("one")
        wait_until(lambda: len(pids(running) - {victim}) == 2, lambda: f"it is replaced:\n{running.stderr}")
        assert get(running.address).body == b"hello"
        assert endless.closed()
    wait_until(lambda: victim not in {row["pid"] for row in running.status()["workers"]}, "it is gone")
    assert "a request is older than request_timeout" in running.stderr


def test_hooks_errors_and_counts(run: Serve) -> None:
    """Each worker calls RSGI's hooks. A handler that raises is a 500 and logged once. All requests count."""
    running = run(f"{APPS}:rsgi", workers=1).ready(1)
    (pid,) = pids(running)
    assert (running.directory / f"begun.{pid}").exists()
    with Connection(running.address) as client, Connection(running.address) as other:
        assert client.get("/").body == b"hello"
        assert client.get("/raise").status == 500
        assert other.get("/").body == b"hello"
        wait_until(lambda: "RuntimeError: broken on purpose" in running.stderr, "it is logged")

        def counted() -> bool:
            (row,) = running.workers()
            return (row["requests"], row["connections"], row["in_flight"]) == (3, 2, 0)

        wait_until(counted, lambda: f"all are counted: {running.workers()}")
    assert running.shutdown() == 0
    assert running.stderr.count("RuntimeError: broken on purpose") == 1
    assert (running.directory / f"ended.{pid}").exists()


def test_the_environ_of_wsgi(run: Serve) -> None:
    """The environ has nothing of the process's environment. Names with an underscore look like others, as docs/granian.md says."""
    secrets = {"SECRET_OF_TEST": "1", "HTTP_X_FROM_OUTSIDE": "1"}
    running = run(f"{APPS}:wsgi", *GRANIAN, workers=1, env=secrets).ready(1)
    environ = json.loads(get(running.address, "/environ", headers="X-Name: 1\r\nX_Name: 2\r\nX-Far: \xfc\r\n").body)
    assert not set(environ) & {*os.environ, *secrets}
    assert environ["HTTP_X_NAME"] == "2", "granian has learned it: docs/granian.md needn't warn any more"
    assert (environ["PATH_INFO"], environ["HTTP_X_FAR"]) == ("/environ", "")
    assert running.shutdown() == 0


def test_shutdown_answers_every_connection(run: Serve) -> None:
    """At a shutdown each open connection may send one more request, whose response announces its end."""
    running = run(f"{ROLLING}:rsgi", "--drain-idle", "10s").ready()
    with ExitStack() as stack:
        clients = [stack.enter_context(Connection(running.address)) for _ in range(12)]
        for client in clients[:6]:
            client.get("/small/1")
        busy = stack.enter_context(Connection(running.address))
        busy.send("/wait/1")
        running.held("1")
        running.signal(signal.SIGTERM)
        running.draining(2)
        for client in clients:
            client.send("/small/2")
        for client in clients:
            answer = client.receive()
            assert (answer.body, answer.headers["connection"]) == (b"small 2", "close")
        running.release()
        assert busy.receive().body == b"wait 1"
    assert running.wait() == 0


LITESTAR = """
from litestar import Litestar, get

@get("/")
async def hello() -> dict[str, str]:
    return {"hello": "litestar"}

app = Litestar([hello])
"""
FRAMEWORKS = {
    "fastapi": example("fastapi_app.py:app"),
    "flask": example("flask_app.py:app"),
    "django": example("django_app.py:application"),
    "litestar": "litestar_app.py:app",
}


@pytest.mark.soak  # test_frameworks.py serves all of them in one cluster
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_frameworks(run: Serve, tmp_path: Path, name: str) -> None:
    """granian serves FastAPI, Flask, Django and Litestar."""
    (tmp_path / "litestar_app.py").write_text(LITESTAR)
    running = run(FRAMEWORKS[name], *GRANIAN, workers=1, directory=tmp_path).ready(1)
    answer = get(running.address)
    assert answer.status == 200
    assert answer.headers["server"] == "granian"
    assert running.shutdown() == 0


@pytest.fixture
def certified(tmp_path: Path) -> tuple[tuple[str, ...], ssl.SSLContext]:
    """Return options for TLS, and the client's context. The key has another format than in `test_capabilities`, to test both."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    (tmp_path / "site.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        + b"".join(each.bytes() for each in issued.cert_chain_pems)
    )
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return ("--ssl-certfile", str(tmp_path / "site.pem")), trusting


@pytest.mark.slow
def test_rolling_with_tls(run: Serve, certified: tuple[tuple[str, ...], ssl.SSLContext]) -> None:
    """No request is lost with TLS, either."""
    options, trusting = certified
    running = run(f"{ROLLING}:rsgi", *options, *QUICK).ready()
    with Mix(running.address, tls=trusting) as mix:
        wait_until(lambda: mix.seen.answered > 50, lambda: f"the load runs: {mix.seen}")
        running.ask("reload")
    nothing_dropped(mix)
    assert mix.seen.said > 0


def test_http2(run: Serve, certified: tuple[tuple[str, ...], ssl.SSLContext]) -> None:
    """granian speaks HTTP/2. A client that reads nothing between two requests doesn't delay its worker, and fails once."""
    options, trusting = certified
    running = run(f"{APPS}:rsgi", "--http2", *options, *QUICK, workers=1).ready(1)
    url = f"https://localhost:{running.address[1]}/"
    # By default httpx closes a connection that was idle for 5 s, and a reload may take that long on a busy machine.
    limits = httpx.Limits(keepalive_expiry=None)
    with httpx.Client(http2=True, verify=trusting, limits=limits) as client:
        answer = client.get(url)
        assert (answer.http_version, answer.text) == ("HTTP/2", "hello")
        running.ask("reload")
        assert "drain_timeout" not in running.stderr
        with pytest.raises(httpx.ProtocolError):  # Python's h2 takes no PING behind a GOAWAY
            client.get(url)
        assert client.get(url).headers["x-worker"] != answer.headers["x-worker"]
        running.signal(signal.SIGTERM)
        assert running.wait(15) == 0
    assert "drain_timeout" not in running.stderr


def test_http2_slow_readers(run: Serve) -> None:
    """A client that reads a body slowly gets all of it, as does one that answers the PING. A silent one is closed."""
    running = run(f"{APPS}:rsgi", "--http2", *QUICK, workers=1).ready(1)

    async def across() -> None:
        async with (
            opened(running.address) as silent,
            opened(running.address) as paused,
            opened(running.address, window=BIG) as slow,
        ):
            await silent.get("/")
            slow.grant(BIG, 0)  # of the connection
            slow.grants = paused.grants = False
            whole, half = slow.ask("/big"), paused.ask("/big")
            while not slow.streams[whole].body:
                await slow.read()
            while len(paused.streams[half].body) < 60_000:
                await paused.read()
            reload = asyncio.ensure_future(asyncio.to_thread(running.ask, "reload"))
            silent.answers_pings = False  # it reads only so that the test sees the end
            while paused.last != half:
                await paused.read()
            await silent.end()
            assert not reload.done()
            paused.grants = True
            paused.grant(100_000, half)
            for client, number in ((slow, whole), (paused, half)):
                assert len((await client.answer(number)).body) == BIG
                await client.end()
            await reload

    asyncio.run(across())
    assert "drain_timeout" not in running.stderr
    assert running.shutdown() == 0


def test_http2_who_speaks_to_the_end(run: Serve) -> None:
    """A client that reads slowly, and opens its windows meanwhile, gets all that its worker had sent before it left."""
    running = run(f"{APPS}:rsgi", "--http2", *QUICK, workers=1).ready(1)

    async def across() -> None:
        async with opened(running.address, window=BIG) as slow:
            slow.grant(BIG, 0)  # of the connection
            number = slow.ask("/big")
            while not slow.streams[number].body:
                await slow.read()
            reload = asyncio.ensure_future(asyncio.to_thread(running.ask, "reload"))
            while not slow.settled(number):
                await slow.read()
                await asyncio.sleep(0.001)
            assert len(slow.streams[number].body) == BIG
            await slow.end()
            await reload

    asyncio.run(asyncio.wait_for(across(), 60))
    assert "drain_timeout" not in running.stderr
    assert running.shutdown() == 0


@pytest.mark.slow
def test_a_reader_that_stops(run: Serve) -> None:
    """A client that reads nothing of its response is cut off, counted and reported. One that reads slowly gets all of it."""
    running = run(f"{APPS}:rsgi", "--timeout", "1s", workers=1).ready(1)
    cut_off = lambda: sum(row["timed_out"] for row in running.workers())  # noqa: E731
    with Connection(running.address) as silent, Connection(running.address) as slow:
        for client in (silent, slow):
            client.send("/big")
        got = 0
        deadline = time.monotonic() + 30
        while not cut_off() and time.monotonic() < deadline:
            if got < BIG - 1_000_000:
                got += len(slow.socket.recv(20_000))
            time.sleep(0.02)
        assert cut_off() == 1
        while got < BIG:
            got += len(slow.socket.recv(1_000_000))
        with pytest.raises(ConnectionResetError):
            silent.receive()
        wait_until(lambda: "connections cut off (timeout): 1" in running.stderr, "it is told")
    assert get(running.address).body == b"hello"
    assert running.shutdown() == 0


def test_one_process(run: Serve) -> None:
    """With `cluster = false` granian serves in that process, on Unix sockets, too."""
    running = run(f"{APPS}:rsgi", "--no-cluster", bind=("127.0.0.1:0", "unix:s"), workers=None)
    path = str(running.directory / "s")
    wait_until(lambda: running.process.poll() is not None or os.path.exists(path), "it serves")
    wait_until(lambda: _answers(path), lambda: running.stderr)
    assert running.shutdown() == 0


def _answers(path: str) -> bool:
    try:
        return get(path).body == b"hello"
    except OSError:
        return False


REFUSED = {
    "unix": (("--bind", "unix:s"), "engine granian: unix:s can't be steered"),
    "mounted": (
        ("--root-path", "/shop"),
        "root_path (flag --root-path): engine 'granian' has no root-path for RSGI apps; leave the option out",
    ),
    "connections": (("--conn-threshold", "5"), "engine 'granian' has no connection-count"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(run: Serve, case: str) -> None:
    """Options that granian can't honour are refused in one line."""
    options, why = REFUSED[case]
    running = run(f"{APPS}:rsgi", *options, bind=())
    assert running.wait() == 5
    assert why in running.stderr
    assert len(running.stderr.strip().splitlines()) == 1, running.stderr
    assert {path.name for path in running.directory.iterdir()} == {"stdout", "stderr"}, "nothing is left"


@pytest.mark.skipif(platform.machine() not in SETSOCKOPT, reason="the number of a system call isn't known")
def test_the_kernel_refuses_to_steer(start: Callable[..., Running]) -> None:
    """Where the kernel refuses the steering program, granian is refused at start with a way out, which works."""
    options = ("--monitor-port", "0", "--bind", "127.0.0.1:0", "--workers", "1")
    forbidden = [sys.executable, str(Path(forbidding.__file__))]
    running = start([*forbidden, *command("run", f"{APPS}:rsgi", *options)])
    assert running.wait() == 5
    assert "engine granian: 127.0.0.1:" in running.stderr
    assert "can't be steered: Operation not permitted; choose engine http" in running.stderr
    assert len(running.stderr.strip().splitlines()) == 1, running.stderr
    other = start([*forbidden, *command("run", f"{ROLLING}:app", *options)]).ready(1)
    assert other.shutdown() == 0


def test_a_start_that_fails(run: Serve) -> None:
    """A lifespan that fails ends the start with the app's own message."""
    running = run(f"{APPS}:broken_start", *GRANIAN)
    assert running.wait() == 3
    assert "the app's lifespan failed at startup: the database is away" in running.stderr
    assert not running.pids.exists()
