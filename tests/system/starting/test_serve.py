"""What is served, and on what: the examples, interfaces, addresses, TLS, websockets."""

from __future__ import annotations

import json
import socket
import ssl
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from websockets.sync.client import connect

from tests.system.clients import Connection, get, wrk
from tests.system.conftest import Serve
from tests.system.harness import ROOT, Running, command, example, sample, wait_until

HTTP_EXAMPLES = ["fastapi_app.py:app", "flask_app.py:app", "django_app.py:application"]
TCP_EXAMPLES = ["echo.py:handler", "echo_protocol.py:Echo"]
MOVING_EXAMPLES = ["lines.py", "lines_protocol.py"]  # run by test_tcp_moving.py
TALKING = ["config_reader.py", "remote_logger.py", "rate_limiter.py"]  # run by test_talk_examples.py
SCRIPTS = ["start.py", "stop.py", "shutdown.py", "events.py"]  # run by test_script.py


@pytest.mark.slow
@pytest.mark.parametrize("target", HTTP_EXAMPLES)
def test_http_example_under_load(run: Serve, target: str) -> None:
    """Two workers serve each HTTP example under wrk without an error, keep-alive and with a connection per request."""
    running = run(example(target)).ready()
    pids = {row["pid"] for row in running.workers()}
    wait_until(
        lambda: pids == {json.loads(get(running.address).body)["worker"] for _ in range(8)} & pids,
        "both workers answer",
    )
    assert wrk(running.url(), seconds=1)["complaints"] == []
    closing = wrk(running.url(), "-H", "Connection: close", seconds=1)
    assert closing["complaints"] == []
    assert closing["requests"] > 0
    assert {row["pid"] for row in running.workers()} == pids
    assert running.shutdown() == 0


@pytest.mark.parametrize("target", TCP_EXAMPLES)
def test_tcp_example(run: Serve, target: str) -> None:
    """Two workers serve each TCP example: a greeting, then what was sent comes back."""
    running = run(example(target)).ready()
    connections = [socket.create_connection(running.address, 10) for _ in range(20)]
    for number, connection in enumerate(connections):
        connection.sendall(b"line %d\r\n" % number)
    for number, connection in enumerate(connections):
        with connection, connection.makefile("rb") as lines:
            assert lines.readline() == b"hello\r\n"
            assert lines.readline() == b"line %d\r\n" % number
    assert running.shutdown() == 0


def test_every_example_is_run() -> None:
    """No example is left out by the tests above and by test_script.py."""
    named = {target.partition(":")[0] for target in HTTP_EXAMPLES + TCP_EXAMPLES} | {
        *SCRIPTS,
        *MOVING_EXAMPLES,
        *TALKING,
    }
    assert named == {path.name for path in (ROOT / "examples").glob("*.py")}


def test_fastapi_example_websocket(run: Serve) -> None:
    """The FastAPI example echoes over a websocket, and its lifespan has run in the worker."""
    running = run(example("fastapi_app.py:app")).ready()
    with connect(running.url("/ws", "ws")) as client:
        client.send("ping")
        assert client.recv(10) == "ping"
    assert json.loads(get(running.address).body)["message"] == "hello from FastAPI"


def test_both_workers_take_connections(run: Serve) -> None:
    """Connections opened at once are spread: neither worker of two takes all of them."""
    running = run(sample("plain")).ready()
    connections = [Connection(running.address) for _ in range(60)]
    for connection in connections:
        connection.send()
    served = {connection.receive().headers["x-worker"] for connection in connections}
    for connection in connections:
        connection.socket.close()
    assert served == {str(row["pid"]) for row in running.workers()}


@pytest.mark.parametrize("name", ["plain", "wsgi"])
def test_keep_alive(run: Serve, name: str) -> None:
    """A connection serves one request after the other."""
    running = run(sample(name)).ready()
    with Connection(running.address) as connection:
        answers = [connection.get() for _ in range(5)]
    assert [each.body for each in answers] == [b"hello"] * 5
    assert len({each.headers["x-worker"] for each in answers}) == 1


def test_factory(run: Serve) -> None:
    """With --factory the target is called once and what it returns is served."""
    running = run(sample("factory"), "--factory").ready()
    assert get(running.address).body == b"hello"


def test_module_target(run: Serve, tmp_path: Path) -> None:
    """`module:attr` is imported from the working directory."""
    (tmp_path / "shop.py").write_text("from tests.system.apps.sample_apps import plain as app\n")
    running = run("shop:app", directory=tmp_path, env={"PYTHONPATH": str(ROOT)}).ready()
    assert get(running.address).body == b"hello"


def test_lifespan(run: Serve) -> None:
    """Each worker runs the app's lifespan: startup before its first request, shutdown when it leaves."""
    running = run(sample("with_lifespan")).ready()
    pids = {str(row["pid"]) for row in running.workers()}
    assert {path.suffix[1:] for path in running.directory.glob("startup.*")} == pids
    assert running.shutdown() == 0
    assert {path.suffix[1:] for path in running.directory.glob("shutdown.*")} == pids


def test_unix_socket(run: Serve) -> None:
    """A Unix socket is served, and its file is removed at the end."""
    running = run(sample("plain"), bind=["unix:http.sock"]).ready()
    path = running.directory / "http.sock"
    assert get(str(path)).body == b"hello"
    assert running.shutdown() == 0
    assert not path.exists()


def test_stale_unix_socket(run: Serve, tmp_path: Path) -> None:
    """The file of a Unix socket whose server is dead is taken over."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "http.sock"))
    run(sample("plain"), bind=["unix:http.sock"], directory=tmp_path).ready()
    assert get(str(tmp_path / "http.sock")).body == b"hello"


def test_ipv6(run: Serve) -> None:
    """An IPv6 address is served."""
    running = run(sample("plain"), bind=["[::1]:0"]).ready()
    assert running.address[0] == "::1"
    assert get(running.address).body == b"hello"


def test_several_addresses(run: Serve) -> None:
    """One app is served on each address that is named, all kinds together."""
    running = run(sample("plain"), bind=["127.0.0.1:0", "[::1]:0", "unix:http.sock"]).ready()
    assert len(running.tcp_addresses()) == 2
    for address in running.tcp_addresses():
        assert get(address).body == b"hello"
    assert get(str(running.directory / "http.sock")).body == b"hello"


def test_several_ports(run: Serve) -> None:
    """Several ports share the host."""
    running = run(sample("plain"), "--host", "127.0.0.1", "--port", "0", "--port", "0", bind=()).ready()
    assert len(set(running.tcp_addresses())) == 2
    assert {get(address).body for address in running.tcp_addresses()} == {b"hello"}


@pytest.fixture
def listener() -> socket.socket:
    """A listening socket of ours."""
    return socket.create_server(("127.0.0.1", 0))


def test_descriptor(run: Serve, listener: socket.socket) -> None:
    """`fd://N` serves a listener that the parent opened."""
    with listener:
        running = run(sample("plain"), bind=[f"fd://{listener.fileno()}"], listeners=[listener]).ready()
        assert get(listener.getsockname()).body == b"hello"
        running.close()


def test_listen_fds(start: Callable[..., Running], listener: socket.socket) -> None:
    """Listeners from systemd (LISTEN_FDS) are served when no address is named."""
    script = f'LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec "$@" 3<&{listener.fileno()}'
    with listener:
        running = start(
            ["bash", "-c", script, "bash", *command("run", sample("plain"), "--monitor-port", "0", "--workers", "2")],
            listeners=[listener],
        ).ready()
        assert get(listener.getsockname()).body == b"hello"
        running.close()


def test_several_apps(start: Callable[..., Running], tmp_path: Path) -> None:
    """`apps=[(app, port)…]` serves several apps, each on its own port."""
    (tmp_path / "main.py").write_text(
        "from cluster2 import Cluster\n"
        f"apps = [({sample('plain')!r}, 0), ({sample('other')!r}, 0)]\n"
        "Cluster(host='127.0.0.1', workers=2, monitor_port=0, apps=apps).listen()\n"
    )
    running = start([sys.executable, "main.py"], directory=tmp_path).ready()
    assert [get(address).body for address in running.tcp_addresses()] == [b"hello", b"other"]


def test_websocket(run: Serve) -> None:
    """Websockets are served by the workers."""
    running = run(sample("socket_echo")).ready()
    with connect(running.url(scheme="ws")) as client:
        for text in ("one", "two", "ü" * 5000):
            client.send(text)
            assert client.recv(10) == text


def test_tls(run: Serve, tmp_path: Path) -> None:
    """TLS is terminated by the workers; the app sees https."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    running = run(sample("plain"), "--ssl-certfile", "cert.pem", "--ssl-keyfile", "key.pem", directory=tmp_path).ready()
    url = f"https://localhost:{running.address[1]}/scope"
    with urllib.request.urlopen(url, context=context, timeout=10) as answer:
        assert json.load(answer)["scheme"] == "https"


def test_scope(run: Serve) -> None:
    """The app sees who asks and where: the client's address and the server's."""
    running = run(sample("plain")).ready()
    with Connection(running.address) as connection:
        facts = json.loads(connection.get("/scope").body)
        assert facts["client"] == list(connection.socket.getsockname())
    assert facts["server"] == list(running.address)
    assert facts["scheme"] == "http"


def test_executed_workers(run: Serve) -> None:
    """With preload=false each worker is a process of its own that imports the app itself; it serves the same."""
    running = run(sample("plain"), "--no-preload").ready()
    assert get(running.address).body == b"hello"
    assert running.shutdown() == 0


def test_threads_left_by_the_import(run: Serve, tmp_path: Path) -> None:
    """An import that leaves threads running makes forking unsafe: a warning names them, and workers are executed."""
    (tmp_path / "threaded.py").write_text(
        "import threading\n"
        "threading.Thread(target=threading.Event().wait, name='metrics-flusher', daemon=True).start()\n"
        "from tests.system.apps.sample_apps import plain as app\n"
    )
    running = run("threaded:app", directory=tmp_path, env={"PYTHONPATH": str(ROOT)}).ready()
    assert get(running.address).body == b"hello"
    assert "metrics-flusher" in running.stderr
    assert running.shutdown() == 0


def test_events_of_one_process(run: Serve, tmp_path: Path) -> None:
    """With cluster=false events tell that it serves, leaves, cuts and has stopped; async handlers are waited for."""
    (tmp_path / "endless.py").write_text("from tests.system.apps.sample_apps import unending as app\n")
    (tmp_path / "listening.py").write_text(
        "import asyncio\n"
        "def setup(cluster):\n"
        "    @cluster.on('*')\n"
        "    async def note(event):\n"
        "        await asyncio.sleep(0.01)\n"
        "        with open('events', 'a') as file:\n"
        "            print(event.name, getattr(event, 'text', ''), file=file)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = probe.getsockname()
    options = ("--no-cluster", "--setup", "listening:setup", "--drain-timeout", "300ms")
    running = run(
        "endless:app",
        *options,
        bind=[f"127.0.0.1:{address[1]}"],
        workers=None,
        directory=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
    )
    noted = tmp_path / "events"
    wait_until(lambda: noted.exists() and "listening" in noted.read_text(), lambda: f"it serves:\n{running.stderr}")
    with Connection(address) as connection:
        connection.send("/held/a")
        running.held("a")
        assert running.shutdown() == 0
    names = [line.split(" ", 1) for line in noted.read_text().splitlines()]
    assert [name for name, _ in names] == ["forked", "listening", "signal", "shutdown", "warning", "stopped"]
    assert "reset 1 connection with 1 request under way: /held/a" in names[4][1]
    assert names[4][1].strip() in running.stderr


@pytest.mark.parametrize("name", ["plain", "wsgi"])
def test_one_process(run: Serve, name: str) -> None:
    """With cluster=false the process serves the app itself, without a master, and leaves on TERM."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = probe.getsockname()
    running = run(sample(name), "--no-cluster", bind=[f"127.0.0.1:{address[1]}"], workers=None)

    def answered() -> bool:
        try:
            return get(address).headers["x-worker"] == str(running.process.pid)
        except OSError:
            return False

    wait_until(answered, lambda: f"the one process answers; standard error:\n{running.stderr}")
    assert running.shutdown() == 0
