"""The servers under test and their commands: with N workers, on loopback, without an access log unless the name says so.

All keep an idle connection for `_KEEP_ALIVE_S` seconds, so that none closes one for its age in a measurement, and all
that can use uvloop, and the fastest parser that they have.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bench.errors import BenchError, NotAvailable

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-peers" / "bin"
_KEEP_ALIVE_S = 75


@dataclass(frozen=True, slots=True)
class App:
    """An application. `wsgi` and `rsgi` are its equivalents, if it has them. Some applications are only WSGI."""

    asgi: str | None
    wsgi: str | None = None
    rsgi: str | None = None


HELLO = App("bench.apps:app", "bench.apps:wsgi", "bench.apps:rsgi")
ENDPOINTS = App("bench.endpoints:app")
HEAVY = App("bench.heavy:app")
FLASK = App(None, "bench.flask_hello:app")
DJANGO = App(None, "bench.django_hello:app")
STARLETTE = App("bench.json_apps:starlette")
FASTAPI = App("bench.json_apps:fastapi")
APPS = {
    "hello": HELLO,
    "endpoints": ENDPOINTS,
    "heavy": HEAVY,
    "flask": FLASK,
    "django": DJANGO,
    "starlette": STARLETTE,
    "fastapi": FASTAPI,
}


@dataclass(frozen=True, slots=True)
class Setup:
    """The arguments for the start of one server.

    Attributes:
        directory: an empty directory of its own, which is removed after its end.
    """

    app: App
    workers: int
    port: int
    directory: Path


def _peer(program: str) -> str:
    path = PEERS / program
    if not path.exists():
        raise NotAvailable(f"{program} is not installed in {PEERS.parent.name}: python -m bench peers")
    return str(path)


def _asgi(name: str, app: App) -> str:
    if app.asgi is None:
        raise NotAvailable(f"{name} is asked for ASGI; {app.wsgi} is WSGI")
    return app.asgi


def _wsgi(name: str, app: App) -> str:
    if app.wsgi is None:
        raise NotAvailable(f"{name} serves WSGI alone; {app.asgi} is ASGI")
    return app.wsgi


def _cluster2(setup: Setup, target: str | None = None) -> list[str]:
    if find_spec("cluster2") is None:
        raise NotAvailable("cluster2 is not installed beside this interpreter: pip install -e .")
    command = [
        sys.executable,
        "-m",
        "cluster2",
        "run",
        target or _asgi("cluster2", setup.app),
        "--workers",
        str(setup.workers),
    ]
    command += ["--bind", f"127.0.0.1:{setup.port}", "--monitor-port", "0", "--timeout", f"{_KEEP_ALIVE_S}s"]
    command += ["--pids", str(setup.directory / "pids"), "--logs", str(setup.directory / "logs")]
    return [*command, "--log-level", "warning"]


def _cluster2_wsgi(threads: int) -> Callable[[Setup], list[str]]:
    def command(setup: Setup) -> list[str]:
        return [*_cluster2(setup, _wsgi("cluster2-wsgi", setup.app)), "--threads", str(threads)]

    return command


def _uvicorn(setup: Setup) -> list[str]:
    command = [
        _peer("uvicorn"),
        _asgi("uvicorn", setup.app),
        "--workers",
        str(setup.workers),
        "--port",
        str(setup.port),
    ]
    command += ["--loop", "uvloop", "--http", "httptools", "--timeout-keep-alive", str(_KEEP_ALIVE_S)]
    return [*command, "--no-access-log", "--log-level", "warning"]


def _granian(kind: str) -> Callable[[Setup], list[str]]:
    def command(setup: Setup) -> list[str]:
        target = _twin(kind, f"granian-{kind}", setup.app)
        command = [_peer("granian"), "--interface", kind, target, "--workers", str(setup.workers)]
        command += ["--host", "127.0.0.1", "--port", str(setup.port), "--loop", "uvloop", "--respawn-failed-workers"]
        return [*command, "--log-level", "warning"]

    return command


def _steered(kind: str) -> Callable[[Setup], list[str]]:
    """Return the command of cluster2 with granian as its engine."""

    def command(setup: Setup) -> list[str]:
        if find_spec("granian") is None:
            raise NotAvailable("granian is not installed beside this interpreter: pip install 'cluster2[granian]'")
        return [*_cluster2(setup, _twin(kind, f"cluster2-granian-{kind}", setup.app)), "--engine", "granian"]

    return command


def _twin(kind: str, name: str, app: App) -> str:
    found: str | None = getattr(app, kind)
    if found is None:
        raise NotAvailable(f"{name} serves {kind.upper()}; {app.asgi} has no such twin")
    return found


def _gunicorn(kind: str, threads: int = 1) -> Callable[[Setup], list[str]]:
    def command(setup: Setup) -> list[str]:
        target = _asgi("gunicorn-asgi", setup.app) if kind == "asgi" else _wsgi(f"gunicorn-{kind}", setup.app)
        words = [_peer("gunicorn"), target, "-k", kind, "-w", str(setup.workers), "-b", f"127.0.0.1:{setup.port}"]
        crew = ["--threads", str(threads)] if kind == "gthread" else []
        words += [*crew, "--keep-alive", str(_KEEP_ALIVE_S), "--no-control-socket", "--worker-tmp-dir", "/dev/shm"]
        return [*words, "--log-level", "warning"]

    return command


def _uwsgi(setup: Setup) -> list[str]:
    command = [_peer("uwsgi"), "--http", f"127.0.0.1:{setup.port}", "--http-keepalive", "--http-timeout"]
    command += [str(_KEEP_ALIVE_S), "--master", "--die-on-term", "--processes", str(setup.workers), "--need-app"]
    command += [
        "--module",
        _wsgi("uwsgi", setup.app),
        "--pythonpath",
        str(ROOT),
        "--disable-logging",
        "--listen",
        "1024",
    ]
    return [*command, "--virtualenv", str(PEERS.parent)]


def _program(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise NotAvailable(f"{name} is not installed: apt-get install {name}")
    return path


def _hello_alone(name: str, app: App) -> None:
    if app is not HELLO:
        raise NotAvailable(f"{name} runs no applications: it answers hello by itself")


def _nginx(setup: Setup) -> list[str]:
    _hello_alone("nginx", setup.app)
    places = " ".join(
        f"{kind}_temp_path {setup.directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = f"""
        daemon off; pid {setup.directory}/nginx.pid; error_log {setup.directory}/error.log;
        worker_processes {setup.workers};
        events {{ worker_connections 16384; }}
        http {{
            access_log off; {places}
            server {{
                listen 127.0.0.1:{setup.port} backlog=2048;
                keepalive_timeout {_KEEP_ALIVE_S}s; keepalive_requests 1000000000;
                location / {{ default_type text/plain; return 200 "hello"; }}
            }}
        }}
    """
    path = setup.directory / "nginx.conf"
    path.write_text(text)
    return [_program("nginx"), "-p", str(setup.directory), "-c", str(path), "-e", str(setup.directory / "error.log")]


def _haproxy(setup: Setup) -> list[str]:
    _hello_alone("haproxy", setup.app)
    text = f"""
global
    nbthread {setup.workers}
    maxconn 8000
    stats socket {setup.directory}/control expose-fd listeners
defaults
    mode http
    timeout client {_KEEP_ALIVE_S}s
    timeout http-keep-alive {_KEEP_ALIVE_S}s
    timeout http-request 30s
frontend hello
    bind 127.0.0.1:{setup.port} backlog 2048
    http-request return status 200 content-type text/plain string hello
"""
    path = setup.directory / "haproxy.cfg"
    path.write_text(text.lstrip())
    return [_program("haproxy"), "-W", "-f", str(path)]


def _logging(name: str, *words: str) -> Callable[[Setup], list[str]]:
    """Return the command of a server that writes its access log to a file."""

    def command(setup: Setup) -> list[str]:
        made = COMMANDS[name](setup)
        return [*made, *(word.replace("DIRECTORY", str(setup.directory)) for word in words)]

    return command


def monitor_port(port: int) -> int:
    """Return the monitor's port of a `cluster2-watched` that serves on this port. It is beyond the ports of servers."""
    return port + 100


def _watched(setup: Setup) -> list[str]:
    return [*_cluster2(setup), "--monitor-port", str(monitor_port(setup.port))]


THREADED = frozenset({"haproxy"})
"""Servers with one process, which has as many threads as other servers have workers."""
COMMANDS: dict[str, Callable[[Setup], list[str]]] = {
    "cluster2": _cluster2,
    "uvicorn": _uvicorn,
    "granian": _granian("asgi"),
    "granian-rsgi": _granian("rsgi"),
    "granian-wsgi": _granian("wsgi"),
    "cluster2-granian": _steered("asgi"),
    "cluster2-granian-rsgi": _steered("rsgi"),
    "cluster2-granian-wsgi": _steered("wsgi"),
    "gunicorn-sync": _gunicorn("sync"),
    "gunicorn-gthread": _gunicorn("gthread"),
    "gunicorn-asgi": _gunicorn("asgi"),
    "uwsgi": _uwsgi,
    "cluster2-wsgi-8": _cluster2_wsgi(8),
    "cluster2-wsgi-1": _cluster2_wsgi(1),
    "cluster2-wsgi-0": _cluster2_wsgi(0),
    "gunicorn-gthread-8": _gunicorn("gthread", 8),
    "cluster2-logging": _logging("cluster2", "--log-to", "files", "--access-log"),
    "cluster2-wsgi-0-logging": _logging("cluster2-wsgi-0", "--log-to", "files", "--access-log"),
    "cluster2-wsgi-8-logging": _logging("cluster2-wsgi-8", "--log-to", "files", "--access-log"),
    "uvicorn-logging": _logging("uvicorn", "--access-log", "--log-level", "info"),
    "gunicorn-asgi-logging": _logging("gunicorn-asgi", "--access-logfile", "DIRECTORY/access.log"),
    "cluster2-watched": _watched,
    "nginx": _nginx,
    "haproxy": _haproxy,
}
"""The function that returns the command of a server, by name. It raises `NotAvailable` if the server isn't installed."""


def command(name: str, setup: Setup) -> list[str]:
    """Return the command that starts a server.

    Raises:
        NotAvailable: it isn't installed here, or can't serve this application.
    """
    if name not in COMMANDS:
        raise BenchError(f"{name}: not one of the servers {', '.join(COMMANDS)}")
    return COMMANDS[name](setup)


def environment(extra: dict[str, str]) -> dict[str, str]:
    """Return the environment of a server: this process's own, without options of cluster2, and with the checkout importable."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("CLUSTER2_", "GRANIAN_", "UVICORN_"))
    }
    return {**kept, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", **extra}
