"""Forged addresses and schemes that clients send to the app, through real proxies and without one."""

from __future__ import annotations

import json
import re
import shutil
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.system.balancers import PATH, Balancer
from tests.system.conftest import Serve
from tests.system.harness import ROOT, Running, free_port, wait_until

APP = Path(__file__).parents[1] / "apps" / "client_app.py"
KINDS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
FORGED = {
    "X-Forwarded-For": "203.0.113.66",
    "X-Forwarded-Proto": "https",
    "X_Forwarded_For": "203.0.113.67",
    "Forwarded": "for=203.0.113.68;proto=https",
}
INTERFACES = [("asgi",), ("wsgi",), ("wsgi", "--threads", "0")]


def recipe(port: int, own: int, socket_path: Path) -> str:
    """The servers of docs/deployment.md: before a Unix socket as it stands there, and before a port."""
    (found,) = re.findall(r"```nginx\n(upstream shop.*?)```", (ROOT / "docs/deployment.md").read_text(), re.DOTALL)
    before_socket = found.replace("/run/shop/http.sock", str(socket_path)).replace(
        "listen 80", f"listen 127.0.0.1:{own}"
    )
    assert str(socket_path) in before_socket
    before_port = found.replace("unix:/run/shop/http.sock", f"127.0.0.1:{port}").replace("shop", "other")
    return before_socket + before_port.replace("listen 80", f"listen 127.0.0.1:{own + 1}")


def nginx(directory: Path, servers: str, own: int) -> Balancer:
    """nginx with these servers, the first of them on a port."""
    program = shutil.which("nginx", path=PATH)
    if program is None:
        pytest.skip("nginx isn't installed")
    directory.mkdir()
    temporary = "".join(f"{kind}_temp_path {directory}/{kind};\n" for kind in KINDS)
    text = f"daemon off;\nmaster_process off;\npid {directory}/pid;\nerror_log {directory}/error.log;\n"
    text += f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{servers}\n}}\n"
    (directory / "nginx.conf").write_text(text)
    argv = [program, "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", str(directory / "error.log")]
    return Balancer(directory, argv, own)


def haproxy(directory: Path, port: int, own: int) -> Balancer:
    """HAProxy with what deploy/haproxy.cfg does to headers, before a port."""
    program = shutil.which("haproxy", path=PATH)
    if program is None:
        pytest.skip("haproxy isn't installed")
    lines = re.findall(r"^ +http-request set-header .*$", (ROOT / "deploy/haproxy.cfg").read_text(), re.MULTILINE)
    assert len(lines) == 3
    directory.mkdir()
    rules = "\n".join(lines)
    (directory / "haproxy.cfg").write_text(
        "defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"
        f"frontend www\n bind 127.0.0.1:{own}\n{rules}\n default_backend shop\n"
        f"backend shop\n server shop 127.0.0.1:{port}\n"
    )
    return Balancer(directory, [program, "-db", "-f", str(directory / "haproxy.cfg")], own)


class Said(NamedTuple):
    """The scope of a request, as the app received it."""

    client: str
    scheme: str
    port: str


def asked(address: Any, headers: Mapping[str, str], *, host: str = "shop.example") -> Said:
    """Return the scope that the app received; `address` is a TCP port's, or the path of a Unix socket."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as connection:
        connection.settimeout(30)
        connection.connect(address)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{lines}\r\n".encode())
        with connection.makefile("rb") as stream:
            head, _, body = stream.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return Said(**json.loads(body))


def status(address: Any, line: str, headers: str) -> int:
    """The status of the answer to a request without a body."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as connection:
        connection.settimeout(30)
        connection.connect(address)
        connection.sendall(f"{line} HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 0\r\n{headers}\r\n".encode())
        return int(connection.recv(1 << 16).split()[1])


class Site(NamedTuple):
    """A cluster on a port and a Unix socket."""

    running: Running
    path: Path

    @property
    def port(self) -> tuple[str, int]:
        return self.running.address


@pytest.fixture(params=INTERFACES, ids=["asgi", "wsgi-threads", "wsgi-inline"])
def site(run: Serve, tmp_path: Path, request: pytest.FixtureRequest) -> Site:
    """One for each interface, with the default of `forwarded_allow_ips`, and a umask."""
    attr, *options = request.param
    path = Path(f"{tmp_path}/s")
    bind = ("127.0.0.1:0", f"unix:{path}")
    return Site(run(f"{APP}:{attr}", *options, "--umask", "007", "--ecv-control", bind=bind, workers=1).ready(1), path)


@pytest.fixture
def proxies(site: Site, tmp_path: Path) -> Iterator[Mapping[str, Any]]:
    """Real proxies before it: nginx before the socket and before the port, HAProxy before the port."""
    own, other = free_port(), free_port()
    with ExitStack() as stack:
        one = nginx(tmp_path / "nginx", recipe(site.port[1], own, site.path), own)
        stack.callback(one.close)
        two = haproxy(tmp_path / "haproxy", site.port[1], other)
        stack.callback(two.close)
        yield {"nginx, socket": one.address, "nginx, port": ("127.0.0.1", own + 1), "HAProxy": two.address}


def test_what_a_client_can_say(site: Site, proxies: Mapping[str, Any]) -> None:
    """Through the proxies that docs and `deploy/` describe no client chooses its address or its scheme.

    The socket's file has the mode that the umask leaves. A peer of the socket is believed, also if it speaks of a websocket's
    scheme and names no port. And no client can switch traffic, which is allowed to this machine.
    """
    for name, address in proxies.items():
        for headers in ({}, FORGED, {"X-Forwarded-For": "127.0.0.1, ::1"}, {"X-Forwarded-Proto": "wss"}):
            said = asked(address, headers)
            assert (said.client, said.scheme) == ("127.0.0.1", "http"), (name, headers)
        assert status(address, "POST /ecv/disable", "") == status(address, "POST /ecv/disable", "Via:\r\n") == 403, name
    assert [status(str(site.path), f"POST /ecv/{each}", "") for each in ("disable", "enable")] == [204, 204]
    assert stat.S_IMODE(site.path.stat().st_mode) == 0o660
    for scheme, seen, port in (
        ("wss", "https", "443"),
        ("ws", "http", "80"),
        ("https", "https", "443"),
        ("x", "http", "80"),
    ):
        said = asked(str(site.path), {"X-Forwarded-Proto": scheme, "X-Forwarded-For": "203.0.113.9"})
        assert said == Said("203.0.113.9", seen, port if said.port else ""), scheme
    assert asked(str(site.path), {}).client == ""


@pytest.mark.parametrize(
    ("value", "port", "path"),
    [
        ("", "127.0.0.1", ""),
        ("unix:", "127.0.0.1", "203.0.113.9"),
        ("127.0.0.0/8", "203.0.113.9", ""),
        ("::ffff:127.0.0.1", "203.0.113.9", ""),
        ("10.0.0.1", "127.0.0.1", ""),
    ],
)
def test_whom_the_option_trusts(run: Serve, tmp_path: Path, value: str, port: str, path: str) -> None:
    """Each value says which peers are believed; other servers' variable, which says `*`, doesn't count beside it."""
    bind = ("127.0.0.1:0", f"unix:{tmp_path}/s")
    environ = {"FORWARDED_ALLOW_IPS": "*"}
    running = run(f"{APP}:asgi", "--forwarded-allow-ips", value, bind=bind, env=environ, workers=1).ready(1)
    headers = {"X-Forwarded-For": "203.0.113.9"}
    assert asked(running.address, headers).client == port
    assert asked(f"{tmp_path}/s", headers).client == path


def test_a_value_that_cannot_be(run: Serve) -> None:
    """A network that is none ends the start with one line; a reload with one leaves the old generation serving."""
    refused = run(f"{APP}:asgi", "--forwarded-allow-ips", "10.0.0.0/33")
    assert refused.wait() == 5
    assert "flag --forwarded-allow-ips): '10.0.0.0/33' does not appear to be" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    running = run(f"{APP}:asgi", "--handoff-idle-after", "0", workers=1)
    running.ready(1)
    (running.directory / "cluster2.toml").write_text('forwarded_allow_ips = "10.0.0.0/33"\n')
    done = running.cli("reload")
    assert done.returncode != 0
    assert "cluster2.toml:1" in done.stderr
    assert asked(running.address, {}).client == "127.0.0.1"
    (running.directory / "cluster2.toml").write_text('forwarded_allow_ips = ""\n')
    assert running.cli("reload").returncode == 0
    wait_until(lambda: asked(running.address, FORGED).client == "127.0.0.1", "nobody is believed")
