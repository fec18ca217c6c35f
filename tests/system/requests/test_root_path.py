"""Below a path of a real proxy's: what the app is told, and what it links to."""

from __future__ import annotations

import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.system.balancers import PATH, Balancer
from tests.system.harness import ROOT, Running, command, free_port

APPS = Path(__file__).parents[1] / "apps" / "mounted_app.py"
KINDS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
Start = Callable[..., Running]


def recipe(root: str, port: int) -> str:
    """The location of docs/deployment.md, for another path and a port."""
    (found,) = re.findall(r"```nginx\n(location /shop/ .*?)```", (ROOT / "docs/deployment.md").read_text(), re.DOTALL)
    located = found.replace("location /shop/", f'location "{unquote(root)}/"')
    return located.replace("http://shop/", f"http://127.0.0.1:{port}/")


def unstripped(root: str, port: int) -> str:
    """One that passes the path on as it is."""
    return f'location "{unquote(root)}/" {{ proxy_pass http://127.0.0.1:{port}; }}'


@contextmanager
def nginx(directory: Path, *locations: str) -> Iterator[list[int]]:
    """nginx with a server for each location, on ports of their own; these."""
    program = shutil.which("nginx", path=PATH)
    if program is None:
        pytest.skip("nginx isn't installed")
    directory.mkdir()
    own = [free_port() for _ in locations]
    temporary = "".join(f"{kind}_temp_path {directory}/{kind};\n" for kind in KINDS)
    servers = "".join(
        f"server {{ listen 127.0.0.1:{port};\n{each} }}\n" for port, each in zip(own, locations, strict=True)
    )
    text = f"daemon off;\nmaster_process off;\npid {directory}/pid;\nerror_log {directory}/error.log;\n"
    text += f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{servers}\n}}\n"
    (directory / "nginx.conf").write_text(text)
    argv = [program, "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", str(directory / "error.log")]
    balancer = Balancer(directory, argv, own[0])
    try:
        yield own
    finally:
        balancer.close()


def get(port: int, path: str) -> tuple[int, bytes]:
    """Status and body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, b""


@pytest.fixture
def serve(start: Start, tmp_path: Path) -> Callable[..., list[int]]:
    """Serve apps of mounted_app.py by one worker; return the port of each."""

    def serve(names: list[str], *options: str) -> list[int]:
        ports = [free_port() for _ in names]
        pairs = ", ".join(f'["{APPS}:{name}", "127.0.0.1:{port}"]' for name, port in zip(names, ports, strict=True))
        (tmp_path / "cluster2.toml").write_text(f"apps = [{pairs}]\nworkers = 1\nmonitor_port = 0\n")
        start(command("run", *options), directory=tmp_path).ready(1)
        return ports

    return serve


@pytest.mark.parametrize("root", ["/shop", "/a%20b", "/caf%C3%A9", "/one/two"])
def test_a_proxy_that_strips_the_path(serve: Callable[..., list[int]], tmp_path: Path, root: str) -> None:
    """With `root_path`, links lead through the proxy again; a name that has the path in it is no obstacle."""
    ports = serve(["starlette", "flask", "plain"], "--root-path", f"{root}/")
    with nginx(tmp_path / "nginx", *(recipe(root, port) for port in ports)) as own:
        for port in own[:2]:
            for path in ("/items/x", "/items/%C3%BC%20y"):
                status, said = get(port, root + path)
                # Starlette's url_for doesn't encode what it was given decoded.
                assert (status, unquote(said.decode())) == (200, unquote(root + path))
            assert get(port, f"{root}{root}/items/x")[0] == 404
        status, said = get(own[2], f"{root}/b%C3%BC?q=1")
        assert (status, said.decode()) == (200, f"{unquote(root)}|/bü|{root}/b%C3%BC?q=1")


def test_a_proxy_that_does_not(serve: Callable[..., list[int]], tmp_path: Path) -> None:
    """Then the app is told instead of cluster2, and routes by the whole path."""
    (port,) = serve(["knowing"])
    with nginx(tmp_path / "nginx", unstripped("/shop", port)) as own:
        assert get(own[0], "/shop/items/x") == (200, b"/shop/items/x")
