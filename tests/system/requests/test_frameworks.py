"""What each framework calls an app is recognised by its signature, and serves real requests, on each engine that takes it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster2.engines import registry
from cluster2.engines.base import Interface
from tests.system.clients import Connection
from tests.system.harness import Running, command

HERE = Path(__file__).parents[1] / "apps"
APPS = {
    Interface.ASGI: (
        *("fastapi_app", "starlette_app", "starlette_gzip_app", "litestar_app", "quart_app", "falcon_asgi_app"),
        *("django_asgi_app", "flask_as_asgi"),
        *("asgi_function", "asgi_object", "asgi_method", "AsgiClass", "asgi_partial", "asgi_decorated"),
    ),
    Interface.WSGI: (
        *("flask_app", "flask_behind_proxy", "django_wsgi_app", "falcon_wsgi_app", "bottle_app", "bottle_files_app"),
        *("wsgi_function", "wsgi_object", "WsgiClass", "wsgi_decorated"),
    ),
    Interface.RSGI: ("rsgi_function", "rsgi_object"),
    Interface.TCP: ("tcp_function", "Lines", "tcp_factory", "tcp_partial", "tcp_decorated"),
}
ENGINES = {name: registry.find(name).capabilities for name in registry.BUILT_IN_ENGINES}
POST = b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\n\0\xff\r\n"
Site = tuple[Interface, tuple[str, int]]


@pytest.fixture(scope="module", params=ENGINES)
def sites(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Site]]:
    """All apps that an engine takes, in one worker: the address of each, with its interface."""
    directory = tmp_path_factory.mktemp(request.param)
    names = [(interface, name) for interface in ENGINES[request.param] for name in APPS[interface]]
    files = {name: "framework_apps" if name.endswith("_app") or "flask" in name else "app_shapes" for _, name in names}
    apps = ", ".join(f'["{HERE / file}.py:{name}", "127.0.0.1:0"]' for name, file in files.items())
    (directory / "cluster2.toml").write_text(
        f'apps = [{apps}]\nengine = "{request.param}"\nmonitor_port = 0\nworkers = 1\n'
    )
    running = Running(command("run"), directory)
    try:
        running.ready(1)
        places = zip(names, running.tcp_addresses(), strict=True)
        yield {name: (interface, address) for (interface, name), address in places}
        assert running.shutdown() == 0
        assert "Traceback" not in running.stderr
    finally:
        running.close()
    running.assert_gone()


def asked_by_http(address: tuple[str, int]) -> None:
    with Connection(address) as connection:
        answer = connection.get()
        assert (answer.status, answer.body) == (200, b"hello")
        connection.socket.sendall(POST)
        answer = connection.receive()
        assert (answer.status, answer.body) == (200, b"\0\xff\r\n")


def asked_by_line(address: tuple[str, int]) -> None:
    with socket.create_connection(address, 30) as connection, connection.makefile("rb") as lines:
        connection.sendall(b"hello\n")
        assert lines.read() == b"hello\n"


ASK: dict[Interface, Callable[[tuple[str, int]], None]] = {Interface.TCP: asked_by_line}


@pytest.mark.slow
def test_each_app_serves(sites: dict[str, Site]) -> None:
    """Each app answers two requests over one connection, or a line over raw TCP."""
    for name, (interface, address) in sites.items():
        try:
            ASK.get(interface, asked_by_http)(address)
        except Exception as error:
            error.add_note(f"asked of {name}")
            raise
