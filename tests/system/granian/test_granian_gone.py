"""Streams through granian: they let other requests run, and don't delay a drain once their client has gone."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.http2_client import opened
from tests.system.clients import Connection, get
from tests.system.conftest import Serve
from tests.system.harness import Running, wait_until
from tests.system.starting.test_alone import serving

APPS = Path(__file__).parents[1] / "apps" / "gone_app.py"
DRAIN_TIMEOUT_S = 20.0
DRAIN = ("--engine", "granian", "--drain-idle", "200ms", "--drain-timeout", f"{DRAIN_TIMEOUT_S}s")
CANCELLED = " still sends although its client has gone; it is cancelled"


def recycled(running: Running) -> float:
    """Recycle the worker, and return the seconds that it took."""
    began = time.monotonic()
    assert running.cli("recycle").returncode == 0, running.stderr
    return time.monotonic() - began


@pytest.mark.slow
def test_others_beside_an_rsgi_stream(run: Serve) -> None:
    """A stream without an end lets the loop run other requests. It ends when its client leaves."""
    running = run(f"{APPS}:rsgi", "--engine", "granian", workers=1).ready(1)
    ended = threading.Event()

    def read(client: socket.socket) -> None:
        while not ended.is_set():
            client.recv(1 << 20)

    with Connection(running.address) as stream:
        stream.send("/stream")
        assert stream.socket.recv(1000)
        reader = threading.Thread(target=read, args=(stream.socket,))
        reader.start()
        try:
            with socket.create_connection(running.address, timeout=5) as other:
                other.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
                assert other.recv(1000).endswith(b"hello")
        finally:
            ended.set()
            reader.join()
    wait_until(lambda: running.workers()[0]["in_flight"] == 0, "the stream has ended")
    assert running.shutdown() == 0


@pytest.mark.slow
def test_an_rsgi_app_that_swallows(run: Serve) -> None:
    """An app that goes on although each `send` raises is cancelled in a drain. Other requests run meanwhile."""
    running = run(f"{APPS}:rsgi", *DRAIN, workers=1).ready(1)
    with Connection(running.address) as stream:
        stream.send("/swallows")
        assert stream.socket.recv(1000)
    assert get(running.address).body == b"hello"
    assert recycled(running) < DRAIN_TIMEOUT_S / 2
    assert f"/swallows{CANCELLED}" in running.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/stream", "/slow"])
def test_a_stream_of_http2_that_was_reset(run: Serve, path: str) -> None:
    """A reset stream is cancelled in a drain, while the connection and its other streams go on."""
    running = run(f"{APPS}:deaf", *DRAIN, "--http2", workers=1).ready(1)

    async def across() -> None:
        async with opened(running.address) as client:
            gone, stays = client.ask(path), client.ask("/slow")
            while not (client.streams[gone].body and client.streams[stays].body):
                await client.read()
            client.reset(gone)
            recycle = asyncio.ensure_future(asyncio.to_thread(running.cli, "recycle"))
            while CANCELLED not in running.stderr:
                assert await client.read(), "the connection has ended"
            before = len(client.streams[stays].body)
            while len(client.streams[stays].body) < before + 3000:  # 30 messages
                assert await client.read(), "the connection has ended"
            client.reset(stays)
            began = time.monotonic()
            await client.end()
            await recycle
            assert time.monotonic() - began < DRAIN_TIMEOUT_S / 2

    asyncio.run(asyncio.wait_for(across(), 60))
    assert running.stderr.count(f"{path}{CANCELLED}") == (2 if path == "/slow" else 1)
    assert running.stderr.count(CANCELLED) == 2
    assert "Traceback" not in running.stderr
    assert running.shutdown() == 0


@pytest.mark.slow
@pytest.mark.parametrize(("app", "path"), [("starlette_app", "/stream"), ("deaf", "/slow")])
def test_the_last_client_leaves_with_its_streams(run: Serve, app: str, path: str) -> None:
    """In four trials, sends that wait when the last connection of a worker ends don't hang it, and the connection doesn't linger."""
    running = run(f"{APPS}:{app}", *DRAIN, "--http2", workers=1).ready(1)

    async def across() -> None:
        async with opened(running.address) as client:
            numbers = [client.ask(path) for _ in range(6)]
            while not all(client.streams[number].body for number in numbers):
                await client.read()
            recycle = asyncio.ensure_future(asyncio.to_thread(recycled, running))
            while client.last is None:  # GOAWAY: `drain_idle` is over
                await client.read()
        assert await recycle < DRAIN_TIMEOUT_S / 2

    for _ in range(4):
        asyncio.run(asyncio.wait_for(across(), 60))
    assert "drain_timeout" not in running.stderr
    assert running.shutdown() == 0


@pytest.mark.slow
@pytest.mark.parametrize("app", ["deaf", "rsgi"])
def test_a_client_of_a_unix_socket_that_leaves(run: Serve, app: str) -> None:
    """Without a master, on a Unix socket, a stream to a client that has gone is cancelled, or raises."""
    running = run(f"{APPS}:{app}", *DRAIN, "--no-cluster", bind=("unix:s",), workers=None)
    path = serving(running)
    with Connection(path) as stream:
        stream.send("/slow" if app == "deaf" else "/swallows")
        assert stream.socket.recv(1000)
    began = time.monotonic()
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
    assert time.monotonic() - began < DRAIN_TIMEOUT_S / 2
    assert CANCELLED in running.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("app", "where"), [("renamed", "tcp"), ("renamed", "unix"), ("rsgi", "tcp"), ("rsgi", "unix"), ("deaf", "http2")]
)
def test_a_client_that_stays(run: Serve, app: str, where: str) -> None:
    """A stream whose client reads goes on until `drain_timeout`, even if the app has changed the client's name."""
    options = (*DRAIN[:-1], "2s", *(("--http2",) if where == "http2" else ()))
    if where == "unix":
        running = run(f"{APPS}:{app}", *options, "--no-cluster", bind=("unix:s",), workers=None)
        address: tuple[str, int] | str = serving(running)
    else:
        running = run(f"{APPS}:{app}", *options, workers=1).ready(1)
        address = running.address
    messages = 0
    with Connection(address) as stream:
        stream.send("/slow")
        assert stream.socket.recv(1000)
        running.signal(signal.SIGTERM)
        try:
            while found := stream.socket.recv(1 << 16):
                messages += found.count(b"64\r\n")
        except ConnectionResetError:
            pass
    assert running.wait() == 0
    assert messages >= 20, "one comes each 50 ms"
    assert CANCELLED not in running.stderr


@pytest.mark.slow
def test_a_body_that_is_read_late(run: Serve) -> None:
    """Messages that the engine receives to check whether the client has gone reach the app when it reads."""
    running = run(f"{APPS}:deaf", *DRAIN, "--http2", workers=1).ready(1)

    async def across() -> None:
        async with opened(running.address) as client:
            number = client.ask("/body", method="POST", more=True)
            client.send(number, b"first ")
            while not client.streams[number].body:
                await client.read()
            recycle = asyncio.ensure_future(asyncio.to_thread(running.cli, "recycle"))
            while client.last is None:  # GOAWAY: `drain_idle` is over
                await client.read()
            before = len(client.streams[number].body)
            while len(client.streams[number].body) < before + 3000:  # long enough for a check
                await client.read()
            client.send(number, b"second ")
            client.send(number, b"third", end=True)
            (running.directory / "read").touch()
            assert bytes((await client.answer(number)).body).endswith(b"xfirst second third")
            await client.end()
            await recycle

    asyncio.run(asyncio.wait_for(across(), 60))
    assert CANCELLED not in running.stderr
    assert running.shutdown() == 0
