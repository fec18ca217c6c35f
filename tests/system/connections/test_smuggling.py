"""Requests that a proxy and the cluster might take apart differently, through a real nginx and HAProxy with kept connections."""

from __future__ import annotations

import itertools
import select
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.apps.checksum_app import expected
from tests.system.balancers import PATH, Balancer
from tests.system.clients import Connection
from tests.system.conftest import Serve
from tests.system.harness import free_port
from tests.system.requests.test_behind_nginx import KEPT_ALIVE, NGINX, UPGRADING, Nginx

APP = Path(__file__).parents[1] / "apps" / "checksum_app.py"
APPS = {"asgi": ("app",), "wsgi-threads": ("wsgi_app",), "wsgi-inline": ("wsgi_app", "--threads", "0")}
HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend own
    bind 127.0.0.1:{own}
    http-request deny if {{ path_beg /echo/forbidden }}
    default_backend cluster
backend cluster
    http-reuse always
    server one 127.0.0.1:{port}
"""
SILENCE = 0.06
"""Seconds without a byte after which an attack has had its answer. Nothing is decided by it."""
FORBIDDEN = b"GET /echo/forbidden/1/0/0 HTTP/1.1\r\nHost: test\r\n\r\n"
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(FORBIDDEN), FORBIDDEN)
LENGTH = f"Content-Length: {len(FORBIDDEN)}"
ENDED = b"0\r\n\r\n" + FORBIDDEN
Start = Callable[[Path, int], "Nginx | Balancer"]


def post(*lines: str, body: bytes = FORBIDDEN, version: str = "1.1", target: str = "/unread/1/1/0/0") -> bytes:
    return "\r\n".join([f"POST {target} HTTP/{version}", "Host: test", *lines, "", ""]).encode() + body


def attacks() -> Iterator[bytes]:
    """A body for one reader may be a request for another one."""
    for upgrade in ((), ("Connection: Upgrade", "Upgrade: h2c"), ("Connection: Upgrade", "Upgrade: websocket, x")):
        yield post(LENGTH, *upgrade)
        yield post("Transfer-Encoding: chunked", *upgrade, body=CHUNKED)
        yield post(*upgrade)
        yield post("Expect: 100-continue", LENGTH, *upgrade)
        yield post("Expect: 100-continue", "Transfer-Encoding: chunked", *upgrade, body=CHUNKED)
    codings = (
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: \tchunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: \x0bchunked",
        "Transfer_Encoding: chunked",
        "X: y\nTransfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
    )
    lengths = (
        "Content-Length: 4",
        "Content-Length: 5",
        LENGTH,
        "Content-Length: +5",
        "Content-Length: 0, 5",
        "Content_Length: 5",
    )
    for coding, length in itertools.product(codings, lengths):
        yield post(coding, length, body=ENDED)
        yield post(length, coding, body=ENDED)
    for coding in codings:
        yield post(coding, body=ENDED)
        yield post(coding, body=ENDED, version="1.0")
    for first, second in itertools.product(lengths, repeat=2):
        yield post(first, second)
    for end in (
        b"0;\n\r\n\r\n",
        b'0;x="\r\n\r\n',
        b"0\n\n",
        b"0\r\nX: y\r\nContent-Length: 50\r\n\r\n",
        b"00\r\n\r\n",
        b"0x0\r\n\r\n",
        b"-0\r\n\r\n",
        b"0 \r\n\r\n",
    ):
        yield post("Transfer-Encoding: chunked", body=end + FORBIDDEN)
        yield post("Transfer-Encoding: chunked", body=b"1\r\nxx" + end + FORBIDDEN)
        yield post("Transfer-Encoding: chunked", body=b"1\nx\n" + end + FORBIDDEN)
    yield post("Connection: Content-Length", LENGTH)
    yield post("Connection: keep-alive, Transfer-Encoding", "Transfer-Encoding: chunked", body=CHUNKED)
    yield post(LENGTH, target="http://other/unread/1/1/0/0")
    yield post(LENGTH, target="/unread/1/1/0/0?\x00")
    for method in ("GET", "HEAD", "OPTIONS", "DELETE"):
        yield post(LENGTH).replace(b"POST", method.encode(), 1)
        yield post("Transfer-Encoding: chunked", body=CHUNKED).replace(b"POST", method.encode(), 1)


def answer(address: tuple[str, int], attack: bytes, cut: int) -> bytes:
    """Return all that an attack gets, which is sent in two segments."""
    with socket.create_connection(address, 10) as connection:
        data = b""
        for segment in (attack[:cut], attack[cut:]):
            try:
                connection.sendall(segment)
                wait = 0.0 if segment is not attack[cut:] else 2.0
                while connection in select.select([connection], [], [], wait)[0] and (got := connection.recv(65536)):
                    data += got
                    wait = SILENCE
            except OSError:
                break
        return data


def nginx(headers: str) -> Start:
    def start(directory: Path, port: int) -> Nginx:
        if NGINX is None:
            pytest.skip("nginx isn't installed")
        return Nginx(directory, port, headers + "\nif ($uri ~ ^/echo/forbidden) { return 403; }")

    return start


def haproxy(directory: Path, port: int) -> Balancer:
    program, own = shutil.which("haproxy", path=PATH), free_port()
    if program is None:
        pytest.skip("HAProxy isn't installed")
    (directory / "haproxy.cfg").write_text(HAPROXY.format(own=own, port=port))
    return Balancer(directory, [program, "-db", "-f", str(directory / "haproxy.cfg")], own)


PROXIES: dict[str, Start] = {
    "nginx": nginx(KEPT_ALIVE),
    "nginx-upgrading": nginx(UPGRADING),
    "haproxy": haproxy,
}


@pytest.mark.slow
@pytest.mark.parametrize("app", APPS)
@pytest.mark.parametrize("proxy", PROXIES)
def test_nothing_is_smuggled(run: Serve, tmp_path: Path, proxy: str, app: str) -> None:
    """No request that the proxy forbids reaches the app, and each other client gets the response to its own request."""
    attr, *options = APPS[app]
    running = run(
        f"{APP}:{attr}",
        *options,
        "--engine",
        "http",
        "--handoff-idle-after",
        "0",
        "--access-log",
        "--log-to",
        "files",
        workers=1,
    ).ready(1)
    directory = tmp_path / "proxy"
    directory.mkdir()
    before = PROXIES[proxy](directory, running.address[1])
    try:
        for number, attack in enumerate(attacks()):
            got = answer(before.address, attack, len(attack) - len(FORBIDDEN) if number % 2 else 40)
            assert b"x-id: forbidden" not in got.lower(), (attack, got)
            with Connection(before.address) as other:
                found = other.get(f"/echo/{number}/1/0/0", headers="X-Mark: m\r\n")
            assert (found.status, found.body) == (200, expected("echo", str(number), "GET", "m", b"", 1)), attack
    finally:
        before.close()
    assert "Traceback" not in running.stderr + "".join(
        each.read_text() for each in (running.directory / "logs").glob("*")
    )
    assert running.shutdown() == 0
    # Most answers to what is smuggled go nowhere; the app's own account has them all.
    asked = (running.directory / "logs" / "access.log").read_text()
    assert f"/echo/{number}/" in asked
    assert "forbidden" not in asked
