"""Behind nginx, which keeps its connections to the cluster: a reload costs no request, and not one new connection."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system.clients import Connection
from tests.system.conftest import Serve
from tests.system.counting import Mix
from tests.system.harness import Running, wait_until

APP = Path(__file__).parents[1] / "apps" / "rolling_app.py"
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
WIDE = 24
"""Connections from nginx to the cluster: more than there are clients."""
CONFIGURATION = """
daemon off;
master_process off;
error_log {directory}/error.log;
pid {directory}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    log_format upstream '$status $upstream_status $uri $upstream_addr';
    access_log {directory}/access.log upstream;
    {paths}
    upstream cluster {{
        server 127.0.0.1:{port} max_fails=0;
        keepalive {wide};
        keepalive_requests 1000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen 127.0.0.1:{own};
        keepalive_requests 1000000;
        location / {{
            proxy_pass http://cluster;
            proxy_http_version 1.1;
            {headers}
            proxy_next_upstream off;
        }}
    }}
}}
"""
KEPT_ALIVE = 'proxy_set_header Connection "";'
UPGRADING = """proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $http_connection;
            proxy_request_buffering off;"""
"""The usual lines for websockets."""
KINDS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Nginx:
    """nginx before a cluster, on a port of its own."""

    def __init__(self, directory: Path, port: int, headers: str = KEPT_ALIVE) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address: tuple[str, int] = free.getsockname()
        self.directory = directory
        paths = "\n".join(f"{kind}_temp_path {directory}/{kind};" for kind in KINDS)
        text = CONFIGURATION.format(
            directory=directory, port=port, own=self.address[1], wide=WIDE, paths=paths, headers=headers
        )
        (directory / "nginx.conf").write_text(text)
        argv = [
            str(NGINX),
            "-p",
            str(directory),
            "-c",
            str(directory / "nginx.conf"),
            "-e",
            str(directory / "error.log"),
        ]
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._listens, "nginx listens")

    def _listens(self) -> bool:
        assert self.process.poll() is None, (self.directory / "error.log").read_text()
        try:
            socket.create_connection(self.address, 5).close()
        except ConnectionRefusedError:
            return False
        return True

    def statuses(self) -> set[str]:
        """What nginx answered, and what it was answered."""
        return {" ".join(line.split()[:2]) for line in (self.directory / "access.log").read_text().splitlines()}

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def before(run: Serve, tmp_path: Path) -> Iterator[tuple[Running, Nginx]]:
    """A cluster, and nginx before it, which has opened as many connections as it will ever need."""
    if NGINX is None:
        pytest.skip("nginx isn't installed")
    running = run(f"{APP}:app", "--handoff-idle-after", "200ms", "--drain-idle", "500ms", "--timeout", "0").ready()
    directory = tmp_path / "nginx"
    directory.mkdir()
    nginx = Nginx(directory, running.address[1])
    with ExitStack() as stack:
        stack.callback(nginx.close)
        clients = [stack.enter_context(Connection(nginx.address)) for _ in range(WIDE)]
        for number, client in enumerate(clients):
            client.send(f"/wait/{number}")
            running.held(str(number))
        running.release()
        for client in clients:
            client.receive()
        yield running, nginx


def upstream_ports(running: Running) -> set[int]:
    """nginx's ports of its connections to the cluster; those that are closed but linger don't count."""
    found = set()
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = row.split()
        if state == "01" and int(remote.rpartition(":")[2], 16) == running.address[1]:
            found.add(int(local.rpartition(":")[2], 16))
    return found


@pytest.mark.slow
def test_reloads_and_recycles(before: tuple[Running, Nginx]) -> None:
    """Without a second try by nginx, no answer is a 502, and its connections to the cluster stay the same ones."""
    running, nginx = before
    ports = upstream_ports(running)
    assert len(ports) == WIDE
    with Mix(nginx.address, clients=WIDE // 2, closing=4, think=0.01) as mix:
        for number in range(3):
            seen = mix.seen.answered
            wait_until(lambda seen=seen: mix.seen.answered > seen + 50, "the load goes on")  # type: ignore[misc]
            running.ask("reload")
            running.ask("recycle", worker=number % 2)
        seen = mix.seen.answered
        wait_until(lambda: mix.seen.answered > seen + 50, "the load goes on")
    print(mix.seen)
    assert not mix.seen.failed, mix.seen
    assert not mix.seen.refused, mix.seen
    assert nginx.statuses() == {"200 200"}
    assert upstream_ports(running) == ports
    assert running.status()["generation"] == 4


def test_a_killed_worker_is_the_only_cost(before: tuple[Running, Nginx]) -> None:
    """For comparison: what a `kill -9` of a worker costs is seen by nginx, and what rested at the keeper isn't concerned."""
    running, nginx = before
    ports = upstream_ports(running)
    wait_until(lambda: running.status()["keeper"]["resting"] == WIDE, "all of nginx's connections rest")
    for row in running.workers():
        os.kill(row["pid"], signal.SIGKILL)
    with Connection(nginx.address) as client:
        assert client.get("/small/1").body == b"small 1"
    assert upstream_ports(running) == ports


@pytest.mark.parametrize(
    "target", [("app",), ("make_flask", "--factory"), ("make_flask", "--factory", "--threads", "0")]
)
def test_an_upgrade_that_is_not_made(run: Serve, tmp_path: Path, target: tuple[str, ...]) -> None:
    """The body of such a request reaches the app, in one segment or two; it is never taken for a request of another client's."""
    if NGINX is None:
        pytest.skip("nginx isn't installed")
    attr, *options = target
    directory = tmp_path / "nginx"
    directory.mkdir()
    running = run(f"{APP}:{attr}", *options, "--engine", "http", "--handoff-idle-after", "0").ready()
    with ExitStack() as stack:
        nginx = Nginx(directory, running.address[1], UPGRADING)
        stack.callback(nginx.close)
        smuggled = b"GET /small/666 HTTP/1.1\r\nHost: test\r\n\r\n"
        digest = hashlib.sha256(smuggled).hexdigest().encode()
        chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(smuggled), smuggled)
        for word in ("h2c", "websocket, h2c", "x"):
            for length, body in (
                (f"Content-Length: {len(smuggled)}", smuggled),
                ("Transfer-Encoding: chunked", chunked),
            ):
                for address in (nginx.address, running.address):
                    with Connection(address) as connection, Connection(address) as other:
                        headers = f"Connection: Upgrade\r\nUpgrade: {word}\r\n{length}\r\n"
                        connection.send("/upload/1", method="POST", headers=headers)
                        connection.socket.sendall(body[:9])
                        connection.socket.sendall(body[9:])
                        assert connection.receive().body == digest
                        assert other.get("/small/2").body == b"small 2"
                        assert connection.get("/small/3").body == b"small 3"
