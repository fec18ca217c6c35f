"""Clients whose handshake is under way when a cluster rolls or leaves are served as well."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.system.harness import Running, command, sample, wait_until
from tests.system.late_client import SERVER, Client, Network

HOLD = 0.5
"""Seconds for which the last ACK is held back."""
REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
Start = Callable[..., Running]


@pytest.fixture
def network() -> Iterator[Network]:
    """A network namespace."""
    if os.geteuid() != 0 or not shutil.which("ip") or not Path("/dev/net/tun").exists():
        pytest.skip("a network namespace with a TUN device needs root, ip(8) and /dev/net/tun")
    made = Network()
    yield made
    made.close()


ENGINES = ["http", "granian"]
"""All workers share one queue, or each has a place in a steered group."""


@pytest.fixture(params=ENGINES)
def running(request: pytest.FixtureRequest, network: Network, start: Start) -> Running:
    """A cluster in it."""
    return serving(network, start, request.param, "1s")


def serving(network: Network, start: Start, engine: str, drain_idle: str) -> Running:
    """Start a cluster in the namespace."""
    options = ["--engine", engine, "--drain-idle", drain_idle, "--workers", "2"]
    argv = command("run", sample("plain"), "--monitor-port", "0", "--bind", f"{SERVER}:0", *options)
    return start(network.argv(argv)).ready()


def under_way(network: Network, running: Running, number: int = 4) -> list[Client]:
    """Clients that have been answered, and keep the last word to themselves."""
    clients = [network.client(running.address[1]) for _ in range(number)]
    for client in clients:
        client.syn()
    return clients


def answers(clients: list[Client], since: float) -> list[bytes]:
    """Say the last word, HOLD seconds late, ask, and return the bodies."""
    wait_until(lambda: time.monotonic() > since + HOLD, "the ACK is late enough")
    for client in clients:
        client.ask(REQUEST)
    return [client.answer().rpartition(b"\r\n")[2] for client in clients]


def test_without_anything_special(network: Network, running: Running) -> None:
    """The client of our own is understood: late, it is served."""
    assert answers(under_way(network, running), time.monotonic()) == [b"hello"] * 4


@pytest.mark.parametrize("verb", ["reload", "recycle"])
def test_a_roll(network: Network, running: Running, verb: str) -> None:
    """A handshake that began before a roll and ends after it is served by those who are there then."""
    clients, since = under_way(network, running), time.monotonic()
    old = {row["pid"] for row in running.workers()}
    running.ask(verb)
    assert not old & {row["pid"] for row in running.workers()}
    assert answers(clients, since) == [b"hello"] * 4


@pytest.mark.parametrize("running", ["granian"], indirect=True)
def test_while_predecessors_leave(network: Network, running: Running) -> None:
    """One that ends while the worker that it may belong to leaves is served."""
    clients, since = under_way(network, running), time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        reload = pool.submit(running.ask, "reload")
        running.draining()
        assert answers(clients, since) == [b"hello"] * 4
        reload.result()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_shutdown(network: Network, start: Start, engine: str) -> None:
    """A handshake that began before a shutdown and ends while its workers still wait for others is served; then all leave."""
    running = serving(
        network, start, engine, "30s"
    )  # on a busy machine, the two that hold their workers are silent for a while
    clients = under_way(network, running, 8)
    # By their ports, two at a time come to the same place of a steered group.
    idle, clients = [clients[0], clients[2]], [clients[1], *clients[3:]]
    for client in idle:
        client.ask(REQUEST[:10])
    since = time.monotonic()
    running.signal(signal.SIGTERM)
    running.draining(2)
    assert answers(clients, since) == [b"hello"] * 6
    for client in idle:
        client.say(REQUEST[10:])
        assert client.answer().endswith(b"hello")
    assert running.wait() == 0
