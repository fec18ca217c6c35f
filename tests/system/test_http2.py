"""HTTP/2 from the outside: both versions on one port, and reloads that no client notices."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest
import trustme
from websockets.sync.client import connect

from tests.http2_client import Http2Client, opened
from tests.system.conftest import Serve
from tests.system.harness import Running, sample, wait_until
from tests.system.moving_app import expected

MOVING = f"{Path(__file__).with_name('moving_app.py')}:app"
PATIENCE = 60.0


async def ask(client: httpx.AsyncClient, url: str, nonce: str, version: str = "HTTP/2") -> httpx.Response:
    """A request whose answer is checked byte by byte."""
    answer = await client.post(f"{url}/echo/{nonce}/3000/1", content=nonce.encode() * 50)
    assert (answer.status_code, answer.http_version) == (200, version), answer
    assert answer.content == expected(nonce, nonce.encode() * 50, 3000)
    return answer


def test_tls_agrees_on_the_version(run: Serve, tmp_path: Path) -> None:
    """ALPN decides: h2 if the client offers it, HTTP/1.1 if not; websockets work beside it."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    running = run(MOVING, "--http2", "--ssl-certfile", str(chain), "--ssl-keyfile", str(key), workers=1).ready(1)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    url = f"https://localhost:{running.address[1]}"

    async def both() -> None:
        async with httpx.AsyncClient(verify=context, http2=True) as client:
            await ask(client, url, "two")
        async with httpx.AsyncClient(verify=context, http1=True, http2=False) as client:
            await ask(client, url, "one", "HTTP/1.1")

    asyncio.run(both())
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with connect(f"wss://localhost:{running.address[1]}/", ssl=context) as websocket:
        websocket.send("hello")
        assert str(websocket.recv()).endswith(" hello")
    assert running.shutdown() == 0


async def _load(running: Running, disturb: asyncio.Task[None]) -> Counter[str]:
    """Clients of several makes ask until the disturbance is over; whatever fails is raised."""
    host, port = running.address
    seen: Counter[str] = Counter()

    async def by_httpx(name: str) -> None:
        async with httpx.AsyncClient(http1=False, http2=True, timeout=PATIENCE) as client:
            number = 0
            while not disturb.done():
                await ask(client, f"http://{host}:{port}", f"{name}.{number}")
                seen["httpx"] += 1
                number += 1
                await asyncio.sleep(0.3 if number % 20 == 0 else 0.002)

    async def by_frames(name: str) -> None:
        number = 0
        while not disturb.done():
            async with opened((host, port)) as client:
                while not disturb.done() and client.last is None and not client.closed:
                    number = await _batch(client, name, number, seen)
                await client.end() if client.last is not None else None

    await asyncio.gather(disturb, *(by_httpx(f"x{n}") for n in range(3)), *(by_frames(f"f{n}") for n in range(3)))
    return seen


async def _batch(client: Http2Client, name: str, number: int, seen: Counter[str]) -> int:
    """Five requests at the same time on one connection: each is answered, or refused as one of which nothing was done."""
    asked = {client.ask(f"/stream/{name}.{number + more}/20000/1"): f"{name}.{number + more}" for more in range(5)}
    for stream, nonce in asked.items():
        answer = await client.answer(stream)
        if answer.ended:
            assert answer.status == "200"
            assert answer.body == expected(nonce, b"", 20000)
            seen["frames"] += 1
        else:
            assert client.refused(stream), (nonce, answer, client.last, client.closed)
            assert answer.headers == {}
            seen["refused"] += 1
    return number + 5


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["held", "parking"])
def test_no_client_notices_a_reload(run: Serve, mode: str) -> None:
    """Two reloads under load, and workers told to leave: each request is answered, or refused before it has begun."""
    options = ["--park-above", "0.6ms"] if mode == "parking" else ["--park-above", "0"]
    running = run(MOVING, "--http2", *options).ready()

    async def disturb() -> None:
        await asyncio.sleep(0.3)
        for _ in range(2):
            await asyncio.to_thread(running.ask, "reload")
        os.kill(running.workers()[0]["pid"], signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: len(running.workers()) == 2, "two serve again")

    async def everything() -> Counter[str]:
        return await _load(running, asyncio.ensure_future(disturb()))

    seen = asyncio.run(everything())
    assert seen["httpx"] > 20
    assert seen["frames"] > 20
    assert seen["refused"] < seen["frames"]
    assert running.shutdown() == 0
    assert "were reset" not in running.stderr


def test_http1_beside_it_still_moves(run: Serve) -> None:
    """With `http2` a plain connection of HTTP/1.1 outlives its worker as it does without."""
    running = run(MOVING, "--http2", workers=1).ready(1)

    async def across() -> tuple[str, str]:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=1)) as client:
            host, port = running.address
            first = await ask(client, f"http://{host}:{port}", "a", "HTTP/1.1")
            stream = first.extensions["network_stream"]
            mine = stream.get_extra_info("client_addr")
            await asyncio.to_thread(running.ask, "reload")
            second = await ask(client, f"http://{host}:{port}", "b", "HTTP/1.1")
            assert second.extensions["network_stream"].get_extra_info("client_addr") == mine
            return first.headers["x-worker"], second.headers["x-worker"]

    one, other = asyncio.run(across())
    assert one != other
    assert running.shutdown() == 0


def test_shutdown_finishes_streams(run: Serve) -> None:
    """At the end of the cluster streams under way are finished, and the client is told which was the last."""
    running = run(MOVING, "--http2", workers=1).ready(1)

    async def across() -> None:
        async with opened(running.address) as client:
            number = client.ask("/stream/long/3000000/1")
            while not client.streams[number].body:
                await client.read()
            running.signal(signal.SIGTERM)
            assert (await client.answer(number)).body == expected("long", b"", 3000000)
            await client.end()
            assert client.last == number

    asyncio.run(across())
    assert running.wait() == 0


@pytest.mark.parametrize("threads", ["0", "4"])
def test_wsgi(run: Serve, threads: str) -> None:
    """WSGI apps are served as well, streams of one connection side by side."""
    running = run(sample("wsgi"), "--http2", "--threads", threads, workers=1).ready(1)

    async def several() -> None:
        async with httpx.AsyncClient(http1=False, http2=True, timeout=PATIENCE) as client:
            answers = await asyncio.gather(*(client.get(running.url()) for _ in range(5)))
            assert {(each.status_code, each.http_version) for each in answers} == {(200, "HTTP/2")}

    asyncio.run(several())
    assert running.shutdown() == 0


def test_without_zttp(tmp_path: Path) -> None:
    """Neither `check` nor `run` goes further than to say what is missing: exit code 5."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['zttp'] = None\n")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    for verb in ("check", "run"):
        argv = [sys.executable, "-m", "cluster2", verb, MOVING, "--http2", "--bind", "127.0.0.1:0", "--mon-port", "0"]
        said = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE)
        assert said.returncode == 5, said
        assert "pip install 'cluster2[http2]'" in said.stderr
