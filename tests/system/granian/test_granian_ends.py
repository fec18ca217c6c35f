"""Requests under way in granian when `drain_timeout` is over: they are cut so that client and app notice."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from tests.http2_client import opened
from tests.system.clients import Connection
from tests.system.conftest import Serve
from tests.system.harness import Running
from tests.system.starting.test_alone import ALONE, serving

WSGI = Path(__file__).parents[1] / "apps" / "ending_app.py"
STREAMS = Path(__file__).parents[1] / "apps" / "gone_app.py"
GRANIAN = ("--engine", "granian", "--drain-idle", "100ms")


def start(run: Serve, app: str, where: str, *options: str) -> tuple[Running, tuple[str, int] | str]:
    """Serve an app on a TCP port, or without a master on a Unix socket. Return the address."""
    if where == "unix":
        running = run(app, *GRANIAN, *ALONE, *options, bind=("unix:s",), workers=None)
        return running, serving(running)
    running = run(app, *GRANIAN, "--drain-timeout", "200ms", *options, workers=1).ready(1)
    return running, running.address


@pytest.mark.parametrize("app", ["endless", "generator", "flood"])
@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_a_body_that_is_cut_off_is_closed(run: Serve, app: str, where: str) -> None:
    """The body of a WSGI response is closed, as PEP 3333 demands, whether or not its client reads. Waiting requests don't begin."""
    running, address = start(run, f"{WSGI}:{app}", where, "--threads", "1")
    with Connection(address) as client, Connection(address) as waits:
        client.send()
        running.held("body")
        waits.send()
        (running.directory / next(running.directory.glob("held.body.*"))).unlink()
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    assert (running.directory / "closed.body").exists()
    assert not list(running.directory.glob("held.body.*")), "a request was begun whose connection was reset"
    assert "drain_timeout (0.2 s) is over: reset 2 connections with 1 request under way: /" in running.stderr
    assert "Traceback" not in running.stderr


@pytest.mark.parametrize("app", ["endless", "flood"])
def test_a_body_that_is_cut_off_over_http2(run: Serve, app: str) -> None:
    """The body of a WSGI response is closed over HTTP/2, too."""
    running, address = start(run, f"{WSGI}:{app}", "tcp", "--http2")
    assert isinstance(address, tuple)

    async def across() -> None:
        async with opened(address) as client:
            client.grants = False
            number = client.ask()
            while not client.streams[number].body:
                await client.read()
            running.signal(signal.SIGTERM)
            await client.end()
            assert not client.streams[number].ended

    asyncio.run(asyncio.wait_for(across(), 30))
    assert running.wait() == 0
    assert (running.directory / "closed.body").exists()


@pytest.mark.parametrize("where", ["tcp", "unix"])
@pytest.mark.parametrize("app", ["deaf", "rsgi"])
def test_what_is_cut_off_does_not_look_whole(run: Serve, app: str, where: str) -> None:
    """The client of a stream never gets the end of its body."""
    running, address = start(run, f"{STREAMS}:{app}", where)
    found = b""
    with Connection(address) as client:
        client.send("/slow")
        found += client.socket.recv(1000)
        running.signal(signal.SIGTERM)
        try:
            while more := client.socket.recv(1 << 16):
                found += more
        except ConnectionResetError:
            assert where == "tcp"
    assert running.wait() == 0
    assert b"transfer-encoding: chunked" in found.lower()
    assert not found.endswith(b"0\r\n\r\n")
