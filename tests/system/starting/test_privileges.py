"""Who is root, where `user` is set: the master, and nobody else."""

from __future__ import annotations

import mmap
import os
import pwd
import resource
import signal
import socket
import ssl
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import trustme

import cluster2
from tests.system.clients import Connection
from tests.system.harness import Running, free_port, sample, wait_until
from tests.system.healing.test_scribbling import APP as SCRIBBLING
from tests.system.healing.test_scribbling import goes_mad
from tests.system.monitor.test_monitor import Monitor

NOBODY = pwd.getpwnam("nobody")


def open_to_all(path: Path) -> bool:
    """Whether every user may come as far as that directory."""
    return all(each.stat().st_mode & 0o005 == 0o005 for each in [path, *path.parents])


def interpreter() -> str | None:
    """A Python like ours whose library others can read: ours, or the system's, where ours lies in root's home."""
    system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    if open_to_all(Path(os.__file__).parent):
        return sys.executable
    return system if Path(system).exists() else None


PYTHON = interpreter()
LIBRARIES = [each for each in sys.path if each.endswith("-packages")]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else"),
    pytest.mark.skipif(
        PYTHON is None or not all(open_to_all(Path(each)) for each in [Path(cluster2.__file__).parent, *LIBRARIES]),
        reason="others can't read this checkout",
    ),
]
Start = Callable[..., Running]


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that every user may read."""
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o755)
        yield Path(made)


CAPABILITIES = (
    *("chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap"),
    *("net_bind_service", "net_raw", "sys_chroot", "mknod", "audit_write", "setfcap"),
)
"""The capabilities that Docker gives to root in a container."""


def start_as(
    start: Start,
    directory: Path,
    user: str,
    *options: str,
    before: Sequence[str] = (),
    target: str = sample("plain"),
) -> Running:
    """A cluster whose workers are to be that user; `before`: the beginning of the command line."""
    assert PYTHON is not None
    argv = [*before, PYTHON, "-m", "cluster2", "run", target, "--user", user, "--workers", "2", *options]
    path = os.pathsep.join([str(Path(cluster2.__file__).parents[1]), *LIBRARIES])
    return start([*argv, "--bind", "127.0.0.1:0"], directory=directory, env={"PYTHONPATH": path})


def identity(pid: int) -> dict[str, list[str]]:
    """Users, groups and capabilities of a process, as the kernel tells them."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return {name: fields[name].split() for name in ("Uid", "Gid", "Groups", "CapEff")}


def test_root_in_a_container(start: Start, directory: Path) -> None:
    """A master that is root with the capabilities of a container reloads, and answers what is under way when it leaves.

    The file of a Unix socket belongs to the user that serves there.
    """
    kept = ",".join(["-all", *(f"+{name}" for name in CAPABILITIES)])
    before = ("setpriv", f"--bounding-set={kept}", "--inh-caps=-all")
    options = ("--bind", "unix:app.sock", "--umask", "007")
    running = start_as(start, directory, "nobody", *options, before=before).ready()
    file = (directory / "app.sock").stat()
    assert (stat.S_IMODE(file.st_mode), file.st_uid) == (0o660, pwd.getpwnam("nobody").pw_uid)
    capabilities = int(identity(running.process.pid)["CapEff"][0], 16)
    assert capabilities.bit_count() == len(CAPABILITIES)
    running.ask("reload")
    with Connection(running.address) as connection:
        connection.send("/waiting")
        wait_until(lambda: sum(row["in_flight"] for row in running.workers()) == 1, "it is under way")
        running.signal(signal.SIGTERM)
        running.draining()
        with pytest.raises(TimeoutError):
            Connection(running.address, 0.2)
        (directory / "release").touch()
        assert connection.receive().status == 200
    assert running.wait() == 0
    assert "can't be held back" not in running.stderr


def test_who_is_who(start: Start, directory: Path) -> None:
    """Zygote, workers, keeper and monitor are that user, with its groups and no capability; and all of it works."""
    port = free_port()
    options = (
        "--handoff-idle-after",
        "300ms",
        "--monitor-port",
        str(port),
        "--monitor-token",
        "a-secret-token",
        "--log-to",
        "files",
    )
    running = start_as(start, directory, "nobody", *options).ready()
    monitor, bearing = Monitor(running, port), {"authorization": "Bearer a-secret-token"}
    assert monitor.answer("/readyz")[:2] == (200, "ok\n"), "it serves, so it has become who it is"
    rests_and_comes_back(running)
    assert identity(running.process.pid)["Uid"] == ["0"] * 4
    others = psutil.Process(running.process.pid).children(recursive=True)
    assert len(others) == 5
    for each in others:
        assert identity(each.pid) == {
            "Uid": [str(NOBODY.pw_uid)] * 4,
            "Gid": [str(NOBODY.pw_gid)] * 4,
            "Groups": [str(NOBODY.pw_gid)],
            "CapEff": ["0" * 16],
        }, each.name()
        assert os.stat(f"/proc/{each.pid}/status").st_uid == NOBODY.pw_uid, "what it is like its own user may see"
    assert monitor.status(f"/stacks/{running.workers()[0]['pid']}", **bearing) == 200
    for name in ("master.log", "worker.0.log"):
        assert monitor.status(f"/logs/{name}", **bearing) == 200
    assert os.stat(directory / "logs" / "master.log").st_uid == 0, "workers can't change what the master says"
    assert monitor.status("/control/disable", "POST", **bearing) == 200
    assert running.status()["traffic"] == "disabled"
    assert running.status()["monitor"]["restarts"] == 0


def rests_and_comes_back(running: Running) -> None:
    """A connection outlives its rest at the keeper."""
    with Connection(running.address) as connection:
        assert connection.get("/").status == 200
        wait_until(lambda: running.status()["keeper"]["resting"] == 1, "it rests")
        assert connection.get("/").status == 200


def test_a_worker_gone_mad(start: Start, directory: Path) -> None:
    """A worker of another user than the master's can write its own page of the scoreboard, and no more: not the root master's."""
    port = free_port()
    running = start_as(start, directory, "nobody", "--monitor-port", str(port), target=SCRIBBLING).ready()
    told = goes_mad(Monitor(running, port))
    assert told["written"] == mmap.PAGESIZE
    assert (told["unlocked"], told["own"], told["master"]) == ([], [], [])


def test_a_user_that_there_is_not(start: Start, directory: Path) -> None:
    """Is one line and exit code 5; the monitor, which fails of the same, isn't waited for."""
    running = start_as(start, directory, "no-such-user", "--monitor-port", str(free_port()))
    assert running.wait() == 5
    assert "user = 'no-such-user': there is no such user" in running.stderr


@pytest.mark.parametrize(
    ("engine", "preload"),
    [
        ("http", "--preload"),
        ("granian", "--no-preload"),
        pytest.param("http", "--no-preload", marks=pytest.mark.soak),
        pytest.param("granian", "--preload", marks=pytest.mark.soak),
    ],
)
def test_files_that_only_root_may_read(start: Start, directory: Path, engine: str, preload: str) -> None:
    """The master reads key, certificate and environment for its workers, which couldn't."""
    authority, site, variables = trustme.CA(), directory / "site.pem", directory / "site.env"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(site)
    variables.write_text("A=1\n")
    for file in (site, variables):
        file.chmod(0o600)
    options = (
        "--ssl-certfile",
        str(site),
        "--env-file",
        str(variables),
        "--engine",
        engine,
        preload,
        "--monitor-port",
        "0",
    )
    running = start_as(start, directory, "nobody", *options).ready()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with (
        socket.create_connection(running.address, 30) as plain,
        trusting.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_no_process_is_left(start: Start, directory: Path) -> None:
    """With RLIMIT_NPROC a reload whose processes can't be made is abandoned with the reason; the old generation serves on."""
    running = start_as(start, directory, "nobody", "--monitor-port", "0").ready()
    pid = running.process.pid
    before = {row["pid"] for row in running.workers()}
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NPROC)
    resource.prlimit(
        pid, resource.RLIMIT_NPROC, (1, hard)
    )  # of root's processes none is counted, but of those that it starts
    with pytest.raises(AssertionError, match="Resource temporarily unavailable"):
        running.ask("reload")
    assert {row["pid"] for row in running.workers()} == before
    with Connection(running.address) as connection:
        assert connection.get().status == 200
    resource.prlimit(pid, resource.RLIMIT_NPROC, (soft, hard))
    running.ask("reload")
    assert "Traceback" not in running.stderr
    assert running.shutdown() == 0
