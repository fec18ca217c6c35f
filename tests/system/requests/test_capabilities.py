"""The table in docs/reference/engines.md is true: what an engine declares for an interface, a real server does.

What an engine doesn't declare is refused: test_catalogue.py has those cells, each with its message.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from websockets.sync.client import connect

from cluster2.engines import registry
from cluster2.engines.base import Capability, Interface
from tests.system.clients import Connection
from tests.system.harness import PATIENCE, Running, command, wait_until

APPS = Path(__file__).parents[1] / "apps" / "capable_apps.py"


@dataclass(frozen=True)
class Server:
    """One cluster of an engine and an interface, which shows several capabilities."""

    running: Running
    interface: Interface
    trust: ssl.SSLContext

    def connection(self) -> Connection:
        return Connection(self.running.address, PATIENCE)

    def ask(self, connection: Connection, path: str = "/") -> str:
        """What the app answers."""
        if self.interface is Interface.TCP:
            connection.socket.sendall(b"hello\n")
            return connection.socket.recv(100).decode().strip()
        answer = connection.get(path)
        assert answer.status == 200, answer
        return answer.body.decode()

    def fetch(self, path: str, **headers: str) -> httpx.Response:
        """An answer over TLS."""
        with httpx.Client(verify=self.trust, http2=True, timeout=PATIENCE) as client:
            return client.get(f"https://localhost:{self.running.address[1]}{path}", headers=headers)

    def pids(self) -> set[int]:
        return {row["pid"] for row in self.running.workers()}


# How each shows, by the way in which the server was started.


def shows_tls(server: Server) -> None:
    """A client that trusts the authority is answered over TLS."""
    if server.interface is not Interface.TCP:
        assert server.fetch("/").status_code == 200
        return
    with server.connection() as connection:
        connection.socket = server.trust.wrap_socket(connection.socket, server_hostname="localhost")
        assert int(server.ask(connection)) in server.pids()


def shows_http2(server: Server) -> None:
    """A client that offers h2 gets it."""
    assert server.fetch("/").http_version == "HTTP/2"


def shows_access_log(server: Server) -> None:
    """A request's path stands in the log."""
    assert server.fetch("/to-be-logged").status_code == 200
    wait_until(lambda: "/to-be-logged" in server.running.stderr, lambda: f"a line: {server.running.stderr}")


def shows_lifespan(server: Server) -> None:
    """The app was told that it starts, once."""
    assert server.fetch("/lifespan").text == "started"


def shows_proxy_headers(server: Server) -> None:
    """The client is the one that the proxy names."""
    assert server.fetch("/client", **{"X-Forwarded-For": "203.0.113.9"}).text.split()[0] == "203.0.113.9"


def shows_root_path(server: Server) -> None:
    """The app knows where it is mounted."""
    assert server.fetch("/client").text.split()[1:] == ["/mounted"]


def shows_websockets(server: Server) -> None:
    """A message comes back."""
    with connect(server.running.url("/", "ws")) as client:
        client.send("ping")
        assert client.recv(PATIENCE) == "ping"


def shows_ecv(server: Server) -> None:
    """The answer to a load balancer follows the app's own."""

    def answered() -> int:
        with server.connection() as connection:
            return connection.get("/ecv").status

    assert answered() == 200
    sick = server.running.directory / "sick"
    sick.touch()
    wait_until(lambda: answered() == 500, "the app says that it is sick")
    sick.unlink()


def shows_threads(server: Server) -> None:
    """Two requests are in the app at the same time."""
    found: list[str] = []

    def ask() -> None:
        with server.connection() as connection:
            found.append(server.ask(connection, "/meet"))

    both = [threading.Thread(target=ask) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(found) == 2


def shows_keeper(server: Server) -> None:
    """A connection outlives the worker that has served it."""
    with server.connection() as connection:
        before = int(server.ask(connection))
        server.running.ask("recycle")
        wait_until(lambda: before not in {row["pid"] for row in server.running.status()["workers"]}, "it is gone")
        assert int(server.ask(connection)) in server.pids()


def shows_keep_alive(server: Server) -> None:
    """A response announces the end of its connection, and brings it."""
    with server.connection() as connection:
        assert connection.get().headers["connection"] == "close"
        assert connection.closed()


def shows_idle_timeout(server: Server) -> None:
    """A client that says nothing is cut off."""
    with server.connection() as connection:
        assert connection.closed()


def shows_connection_count(server: Server) -> None:
    """A worker that has accepted many connections is replaced."""

    def replaced() -> bool:
        with server.connection() as connection:
            server.ask(connection)
        return "conn_threshold: " in server.running.stderr

    wait_until(replaced, lambda: f"it is replaced: {server.running.stderr}")


def shows_request_age(server: Server) -> None:
    """A worker whose request hangs is replaced."""
    with server.connection() as connection:
        connection.send("/hang")
        wait_until(
            lambda: "request_timeout" in server.running.stderr or "its loop is stuck" in server.running.stderr,
            lambda: f"it is replaced: {server.running.stderr}",
        )


SECURE = {
    Capability.TLS: shows_tls,
    Capability.HTTP2: shows_http2,
    Capability.ACCESS_LOG: shows_access_log,
    Capability.LIFESPAN: shows_lifespan,
    Capability.PROXY_HEADERS: shows_proxy_headers,
    Capability.ROOT_PATH: shows_root_path,
}
PLAIN = {
    Capability.WEBSOCKETS: shows_websockets,
    Capability.ECV: shows_ecv,
    Capability.THREADS: shows_threads,
    Capability.KEEPER: shows_keeper,
}
BRIEF = {
    Capability.KEEP_ALIVE: shows_keep_alive,
    Capability.IDLE_TIMEOUT: shows_idle_timeout,
    Capability.REQUEST_AGE: shows_request_age,
    Capability.CONNECTION_COUNT: shows_connection_count,
}
WAYS = {"secure": SECURE, "plain": PLAIN, "brief": BRIEF}
OPTIONS = {
    Capability.TLS: ("--ssl-certfile", "chain.pem", "--ssl-keyfile", "key.pem"),
    Capability.HTTP2: ("--http2",),
    Capability.ACCESS_LOG: ("--access-log",),
    Capability.LIFESPAN: ("--lifespan", "on"),
    Capability.PROXY_HEADERS: ("--forwarded-allow-ips", "*"),
    Capability.ROOT_PATH: ("--root-path", "/mounted"),
    Capability.WEBSOCKETS: (),
    Capability.ECV: ("--ecv-monitor", "/health"),
    Capability.THREADS: ("--threads", "2"),
    Capability.KEEPER: ("--keeper", "--handoff-idle-after", "1s", "--handoff-slow-above", "5ms"),
    Capability.KEEP_ALIVE: ("--no-keep-alive",),
    Capability.IDLE_TIMEOUT: ("--timeout", "1s"),
    Capability.CONNECTION_COUNT: ("--conn-threshold", "20", "--threshold-jitter", "0"),
    Capability.REQUEST_AGE: ("--request-timeout", "2s"),
}
SERVERS = [
    (name, interface, way)
    for name in registry.BUILT_IN_ENGINES
    for interface in registry.find(name).capabilities
    for way in WAYS
]
CELLS = [
    (each, capability)
    for each in SERVERS
    for capability in WAYS[each[2]]
    if capability in registry.find(each[0]).capabilities[each[1]]
]


def test_each_capability_is_shown() -> None:
    """None is left out, and none of the options that need one."""
    assert set(SECURE) | set(PLAIN) | set(BRIEF) == set(OPTIONS) == set(Capability)
    assert len(CELLS) == sum(
        len(can) for name in registry.BUILT_IN_ENGINES for can in registry.find(name).capabilities.values()
    )


Started = Callable[[tuple[str, Interface, str]], Server]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """Starts the server of an engine, an interface and a way; it stays until another is asked for."""
    there: dict[tuple[str, Interface, str], Server] = {}

    def end() -> None:
        for server in there.values():
            server.running.close()
            server.running.assert_gone()
        there.clear()

    def started(each: tuple[str, Interface, str]) -> Server:
        if each not in there:
            end()
            there[each] = start(each, tmp_path_factory.mktemp(each[2]))
        return there[each]

    try:
        yield started
    finally:
        end()


def start(each: tuple[str, Interface, str], directory: Path) -> Server:
    """One worker of that engine, with all options of that way which it declares to honour."""
    name, interface, way = each
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "chain.pem").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    (directory / "key.pem").write_bytes(pkcs8)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    can = registry.find(name).capabilities[interface]
    options = [word for capability in WAYS[way] if capability in can for word in OPTIONS[capability]]
    argv = command("run", f"{APPS}:{interface}", "--engine", name, "--bind", "127.0.0.1:0", "--monitor-port", "0")
    running = Running([*argv, "--workers", "1", *options], directory)
    try:
        return Server(running.ready(1), interface, trust)
    except BaseException:
        running.close()
        raise


@pytest.mark.slow
@pytest.mark.parametrize(
    ("each", "capability"),
    CELLS,
    ids=[f"{name} {interface} {capability}" for (name, interface, _), capability in CELLS],
)
def test_a_cell(started: Started, each: tuple[str, Interface, str], capability: Capability) -> None:
    """What is declared is done."""
    WAYS[each[2]][capability](started(each))
