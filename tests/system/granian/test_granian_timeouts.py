"""Stalled clients of granian are closed, counted and reported, over each protocol. Other clients don't notice."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster2.processes.worker.sampling.steps import UNMEASURED_REQUESTS
from tests.http2_client import HEADERS, PREFACE, SETTINGS, Http2Client, frame, opened
from tests.system.clients import Connection
from tests.system.conftest import Serve
from tests.system.harness import PATIENCE, Running, wait_until

APPS = Path(__file__).parents[1] / "apps" / "granian_app.py"


def timed_out(running: Running) -> int:
    return sum(row["timed_out"] for row in running.workers())


def held(running: Running, name: str) -> None:
    """Wait until the handler of this request has begun."""
    wait_until(lambda: any(running.directory.glob(f"held.{name}.*")), lambda: f"/held/{name}: {running.stderr}")


@pytest.mark.slow
@pytest.mark.parametrize("attr", ["rsgi", "wsgi"])
def test_who_stalls(run: Serve, attr: str) -> None:
    """Over HTTP/1.1 a client is closed that sends nothing, is idle after a response, or stops in a head. One that waits stays."""
    running = run(f"{APPS}:{attr}", "--engine", "granian", "--timeout", "1s", workers=1).ready(1)
    with ExitStack() as stack:
        silent, used, slow, working = (stack.enter_context(Connection(running.address)) for _ in range(4))
        if attr == "wsgi":  # the client of a request isn't known there, so only hyper closes connections of that host
            assert used.get().body == b"hello"
        else:
            working.send("/later/a")
            held(running, "a")
            assert used.get().body == b"hello"
        slow.socket.sendall(b"GET / HTTP/1.1\r\nHost: te")
        for each in (slow, silent, used):
            assert each.closed()
        wait_until(
            lambda: timed_out(running) == (4 if attr == "wsgi" else 3), lambda: f"all are counted: {running.workers()}"
        )
        wait_until(lambda: "connections cut off (timeout): 1" in running.stderr, "it is told")
        if attr != "wsgi":
            (running.directory / "released").touch()
            assert working.receive().body == b"released"
    assert running.shutdown() == 0


@pytest.mark.slow
@pytest.mark.parametrize("attr", ["asgi", "wsgi"])
def test_who_stalls_over_http2(run: Serve, attr: str) -> None:
    """Over HTTP/2 stalled clients are closed, also after a body that was read in part. One that waits or sends now and then stays."""
    running = run(f"{APPS}:{attr}", "--engine", "granian", "--http2", "--timeout", "2s", workers=1).ready(1)

    async def across() -> None:
        async with (
            opened(running.address) as used,
            opened(running.address) as stops,
            opened(running.address) as busy,
            opened(running.address) as working,
        ):
            assert (await used.get("/")).body == b"hello"
            stops.grants = False
            part = stops.ask("/big")
            number = working.ask("/later/a") if attr != "wsgi" else working.ask("/")
            await asyncio.gather(used.end(), stops.end(), _asks(busy, until=[used, stops]))
            assert len(stops.streams[part].body) == 65535
            assert not stops.streams[part].ended
            if attr != "wsgi":
                (running.directory / "released").touch()
                assert (await working.answer(number)).body == b"released"

    asyncio.run(asyncio.wait_for(across(), 60))
    wait_until(lambda: timed_out(running) >= 2, lambda: f"they are counted: {running.workers()}")
    assert running.shutdown() == 0


POST = "POST /{}/{} HTTP/1.1\r\nHost: test\r\n{}\r\n\r\n"


@pytest.mark.slow
@pytest.mark.parametrize("attr", ["rsgi", "asgi"])
def test_who_stops_in_a_body(run: Serve, attr: str) -> None:
    """A client that stops in a body is closed, however the app reads. One that goes on, or whose app has it all, stays."""
    running = run(f"{APPS}:{attr}", "--engine", "granian", "--timeout", "1s", workers=1).ready(1)
    with ExitStack() as stack:
        stops, chunks, slow, working = (stack.enter_context(Connection(running.address)) for _ in range(4))
        for _ in range(UNMEASURED_REQUESTS):  # from now on requests are measured
            assert working.get().body == b"hello"
        length, chunked = "Content-Length: 1000", "Transfer-Encoding: chunked"
        for each, kind, name, header, body in (
            (stops, "upload", "a", length, "some"),
            (chunks, "pieces", "b", chunked, "4\r\nsome\r\n"),
            (slow, "pieces", "c", length, "some"),
            (working, "pieces", "d", length, 1000 * "x"),
        ):
            each.socket.sendall((POST.format(kind, name, header) + body).encode())
            held(running, name)
        began = time.monotonic()
        while timed_out(running) < 2 or time.monotonic() - began < 3:  # longer than `timeout`
            assert time.monotonic() - began < PATIENCE, f"both are given up: {running.workers()}"
            slow.socket.sendall(b"x")
            time.sleep(0.05)
        assert stops.closed()
        assert chunks.closed()
        wait_until(lambda: "connections cut off (timeout)" in running.stderr, "it is told")
        (running.directory / "released").touch()
        assert working.receive().body == b"released"
        slow.socket.sendall(1000 * b"x")
        assert slow.receive().body == b"released"
    assert timed_out(running) == 2
    assert running.shutdown() == 0


@pytest.mark.slow
def test_who_stops_in_a_body_over_http2(run: Serve) -> None:
    """A client that stops in a body is closed with its connection, once no request of the connection waits for the app."""
    running = run(f"{APPS}:asgi", "--engine", "granian", "--http2", "--timeout", "1s", workers=1).ready(1)

    async def across() -> None:
        async with opened(running.address) as stops, opened(running.address) as shares:
            for client in (stops, shares):
                number = client.ask("/upload/a", method="POST", more=True, headers=[("content-length", "1000")])
                client.send(number, b"some")
            working = shares.ask("/later/b")
            await stops.end()
            (running.directory / "released").touch()
            assert (await shares.answer(working)).body == b"released"
            await shares.end()

    asyncio.run(asyncio.wait_for(across(), 60))
    wait_until(lambda: timed_out(running) == 2, lambda: f"they are counted: {running.workers()}")
    assert running.shutdown() == 0


async def _asks(client: Http2Client, until: list[Http2Client]) -> None:
    while not all(each.closed for each in until):
        assert (await client.get("/")).body == b"hello"
        await asyncio.sleep(0.1)


@pytest.mark.slow
def test_who_says_nothing_whole_over_http2(run: Serve) -> None:
    """A client that sends nothing, the preface alone, half a frame or half a head before its first request is closed and counted."""
    running = run(f"{APPS}:rsgi", "--http2", "--timeout", "1s", workers=1).ready(1)
    settings = frame(SETTINGS)
    head = frame(HEADERS, 0, 1, b"\x82\x86")  # :method and :scheme; a CONTINUATION would have to follow
    with ExitStack() as stack:
        for said in (b"", PREFACE, PREFACE + settings, PREFACE + settings[:5], PREFACE + settings + head):
            connection = stack.enter_context(Connection(running.address))
            connection.socket.sendall(said)
            while not connection.closed():
                pass  # its own SETTINGS come first
        wait_until(lambda: timed_out(running) == 5, lambda: f"they are counted: {running.workers()}")
    assert running.shutdown() == 0
