"""Bad input: one line that names the thing and the way out, the right exit code, nothing left behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.system.conftest import Serve
from tests.system.harness import Running, command, sample

Start = Callable[..., Running]


@dataclass(frozen=True)
class Case:
    """What is wrong, and what has to be said about it."""

    code: int
    says: tuple[str, ...]
    target: str = sample("plain")
    options: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    stacks: bool = False  # what hangs is shown with its whole stack


BAD = {
    "unknown key": Case(5, ("cluster2.toml", "wrokers", "workers"), files={"cluster2.toml": "wrokers = 2\n"}),
    "no TOML": Case(5, ("cluster2.toml",), files={"cluster2.toml": "workers = = 2\n"}),
    "wrong type in the file": Case(
        5, ("cluster2.toml", "preload", "true or false"), files={"cluster2.toml": "preload = 3\n"}
    ),
    "wrong type in a variable": Case(5, ("CLUSTER2_BACKLOG", "many"), env={"CLUSTER2_BACKLOG": "many"}),
    "wrong type in a flag": Case(5, ("--backlog", "many"), options=("--backlog", "many")),
    "unknown unit": Case(
        5, ("drain_timeout", "parsecs", "30s"), files={"cluster2.toml": 'drain_timeout = "3 parsecs"\n'}
    ),
    "monitor on the app's port": Case(
        5, ("monitor_port", "3456"), options=("--bind", "127.0.0.1:3456", "--monitor-port", "3456")
    ),
    "missing certificate": Case(5, ("absent.pem",), options=("--ssl-certfile", "absent.pem")),
    "certificate that is none": Case(
        5, ("bad.pem",), options=("--ssl-certfile", "bad.pem"), files={"bad.pem": "hello\n"}
    ),
    "key without certificate": Case(5, ("ssl_keyfile", "ssl_certfile"), options=("--ssl-keyfile", "key.pem")),
    "pids directory below a file": Case(5, ("file/pids",), options=("--pids", "file/pids"), files={"file": ""}),
    "socket path too long": Case(5, ("x" * 120, "107"), options=("--bind", "unix:" + "x" * 120)),
    "socket path is a file": Case(5, ("taken",), options=("--bind", "unix:taken"), files={"taken": "precious"}),
    "descriptor that isn't open": Case(5, ("fd://77",), options=("--bind", "fd://77")),
    "address that isn't ours": Case(5, ("192.0.2.1",), options=("--bind", "192.0.2.1:0")),
    "host that doesn't exist": Case(5, ("no-such-host.invalid",), options=("--bind", "no-such-host.invalid:0")),
    "unknown engine": Case(5, ("steam",), options=("--engine", "steam")),
    "option that the engine lacks": Case(5, ("root_path", "tcp"), target=sample("tcp"), options=("--root-path", "/x")),
    "missing directory": Case(5, ("nowhere",), options=("--chdir", "nowhere")),
    "missing module": Case(3, ("no_such_module",), target="no_such_module:app"),
    "missing file": Case(3, ("no_such_file.py",), target="no_such_file.py:app"),
    "missing attribute": Case(3, ("no_such_name",), target=sample("no_such_name")),
    "no attribute named": Case(3, ("json", "module:attr"), target="json"),
    "not callable": Case(3, ("not_callable", "int"), target=sample("not_callable")),
    "no workers": Case(5, ("--workers", "'0'", "from 1 to 450, or auto"), options=("--workers", "0")),
    "async factory": Case(3, ("is async", "plain function"), target=sample("async_factory")),
    "factory without --factory": Case(3, ("factory", "--factory"), target=sample("factory")),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_refused_in_one_line(start: Start, tmp_path: Path, case: Case) -> None:
    """Each is one line that names the thing, with the right exit code, and leaves no file."""
    running = _run(start, tmp_path, case)
    assert running.wait() == case.code, running.stderr
    assert len(running.stderr.strip().splitlines()) == 1, running.stderr
    for word in case.says:
        assert word in running.stderr
    assert {path.name for path in tmp_path.iterdir()} - {"stdout", "stderr", "logs", "pids"} == case.files.keys()
    for name, text in case.files.items():
        assert (tmp_path / name).read_text() == text


BROKEN_APPS = {
    "import raises": Case(
        3,
        ("app.py", "line 2", "KeyError", "SECRET"),
        target="app.py:app",
        files={"app.py": "import os\nos.environ['SECRET']\n"},
    ),
    "missing import": Case(3, ("no_such_library",), target="app.py:app", files={"app.py": "import no_such_library\n"}),
    "syntax error": Case(3, ("app.py", "SyntaxError"), target="app.py:app", files={"app.py": "def app(:\n"}),
    "import exits": Case(3, ("SystemExit",), target="app.py:app", files={"app.py": "raise SystemExit(0)\n"}),
    "factory raises": Case(
        3, ("no such tenant", "broken_factory"), target=sample("broken_factory"), options=("--factory",)
    ),
    "lifespan fails": Case(3, ("the database is away",), target=sample("failing_lifespan")),
    "lifespan fails, executed": Case(
        3, ("the database is away",), target=sample("failing_lifespan"), options=("--no-preload",)
    ),
    "import raises, executed": Case(
        3,
        ("app.py", "line 1", "ZeroDivisionError"),
        target="app.py:app",
        files={"app.py": "1 / 0\n"},
        options=("--no-preload",),
    ),
    "lifespan hangs": Case(
        3, ("boot_timeout (3 s)",), target=sample("never_starts"), options=("--boot-timeout", "3s"), stacks=True
    ),
    "one process, lifespan fails": Case(
        3, ("the database is away",), target=sample("failing_lifespan"), options=("--no-cluster",)
    ),
}


@pytest.mark.parametrize("case", BROKEN_APPS.values(), ids=BROKEN_APPS)
def test_broken_app(start: Start, tmp_path: Path, case: Case) -> None:
    """An app that can't start: 3, what it said, with its own traceback and none of ours."""
    running = _run(start, tmp_path, case)
    assert running.wait() == case.code, running.stderr
    for word in case.says:
        assert word in running.stderr
    assert ("src/cluster2/" in running.stderr) == case.stacks, "frames of ours tell the user nothing"


def _run(start: Start, directory: Path, case: Case) -> Running:
    for name, text in case.files.items():
        (directory / name).write_text(text)
    argv = command("run", case.target, "--workers", "2", *case.options)
    if "--bind" not in case.options:
        argv += ["--bind", "127.0.0.1:0"]
    if "--monitor-port" not in case.options:
        argv += ["--monitor-port", "0"]
    return start(argv, directory=directory, env=case.env)


def test_port_in_use(run: Serve) -> None:
    """A busy port: 4, naming the port and who holds it."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        running = run(sample("plain"), bind=[f"127.0.0.1:{port}"])
        assert running.wait() == 4, running.stderr
    assert len(running.stderr.strip().splitlines()) == 1, running.stderr
    assert str(port) in running.stderr
    assert str(os.getpid()) in running.stderr


def test_port_of_another_cluster(run: Serve) -> None:
    """The port of a running cluster is in use for a second one, which leaves the first alone."""
    first = run(sample("plain")).ready()
    second = run(sample("plain"), bind=[f"127.0.0.1:{first.address[1]}"])
    assert second.wait() == 4, second.stderr
    assert f"in use by a cluster, whose master is process {first.process.pid}; stop that" in second.stderr
    assert len(first.workers()) == 2
    assert first.shutdown() == 0


def test_live_unix_socket(run: Serve, tmp_path: Path) -> None:
    """The path of a Unix socket on which a live server listens: 4, and that server keeps it."""
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(tmp_path / "http.sock"))
        live.listen()
        running = run(sample("plain"), bind=["unix:http.sock"], directory=tmp_path)
        assert running.wait() == 4, running.stderr
        assert "http.sock" in running.stderr
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "http.sock"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_pids(run: Serve, tmp_path: Path) -> None:
    """A pids directory that can't be written: 5, naming it."""
    closed = tmp_path / "closed"
    closed.mkdir(0o500)
    running = run(sample("plain"), "--pids", "closed/pids", directory=tmp_path)
    assert running.wait() == 5, running.stderr
    assert "closed" in running.stderr
