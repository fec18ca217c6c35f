"""A reload runs new code, or goes on with the old and says why."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme

from cluster2 import Cluster
from tests.system.apps.rolling_site import ENV, arguments, events, pids, prepare, wait_replaced, write
from tests.system.clients import Connection, get
from tests.system.harness import Running, command, descendants, wait_until

Site = Callable[..., Running]


@pytest.fixture
def site(start: Callable[..., Running], tmp_path: Path) -> Site:
    """Serve the site, of version one."""
    prepare(tmp_path)

    def site(*options: str, workers: int | None = 2, ready: int = 2) -> Running:
        return start(arguments(*options, workers=workers), directory=tmp_path, env=ENV).ready(ready)

    return site


def by_cli(running: Running, generation: int) -> None:
    done = running.cli("reload")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def by_api(running: Running, generation: int) -> None:
    assert Cluster(pids=str(running.pids)).reload()["generation"] == generation


def by_hup(running: Running, generation: int) -> None:
    running.signal(signal.SIGHUP)
    wait_until(
        lambda: [each["generation"] for each in events(running, "reloaded")][-1] == generation,
        "it says that it has reloaded",
    )


def test_new_code_runs(site: Site) -> None:
    """By command, API or HUP: the file as it is now is run by new workers, the status and events tell the generation."""
    running = site()
    gone: set[int] = set()
    with Connection(running.address) as connection:
        assert connection.get().body == b"one"
        for generation, way in enumerate((by_cli, by_api, by_hup), 2):
            old, before = pids(running), connection.get().body
            write(running.directory, f"version {generation}")
            assert connection.get().body == before
            way(running, generation)
            assert connection.get().body == b"version %d" % generation, "the connection has outlived its worker"
            assert get(running.address).body == b"version %d" % generation
            assert not pids(running) & old
            status = running.status()
            assert (status["generation"], {row["generation"] for row in status["workers"]}) == (
                generation,
                {generation},
            )
            told = events(running, "reloading", "reloaded", "reload-failed")[-2:]
            assert [(each["name"], each["generation"]) for each in told] == [
                ("reloading", generation),
                ("reloaded", generation),
            ]
            assert told[1]["seconds"] > 0
            gone |= old
            died = events(running, "died")
            assert {(each["pid"], each["code"], each["reason"]) for each in died} == {
                (pid, 0, "reload") for pid in gone
            }


FAILED = "await send({'type': 'lifespan.startup.failed', 'message': 'the database is away'}); return"
WAITS = "Path('tried').touch(); exec('while not Path(\"go\").exists(): time.sleep(0.01)')"
"""Starts when the test says so."""
TRIED = f"{WAITS}; {FAILED}"
"""Fails, when the test says so."""
BROKEN: dict[str, tuple[dict[str, str], str, str]] = {
    "syntax error": ({"first": "def app(:"}, "SyntaxError", "def app(:"),
    "import": ({"first": "import no_such_module"}, "ModuleNotFoundError", "No module named 'no_such_module'"),
    "lifespan": (
        {"startup": FAILED},
        "the app's lifespan failed at startup",
        "the database is away",
    ),
    "dies at boot": (
        {"startup": "os._exit(9)"},
        "a worker of the new generation exited (exit code 9 during startup)",
        "",
    ),
    "dies when ready": (
        {"startup": "asyncio.get_running_loop().call_later(0.05, os._exit, 9)"},
        "a worker of the new generation exited (exit code 9 ",
        "",
    ),
}


@pytest.mark.slow
def test_a_reload_that_is_no_good(site: Site) -> None:
    """Whatever is wrong with the new code, the old workers go on; the command ends with 1, the reason and the traceback."""
    running = site()
    old = pids(running)
    with Connection(running.address) as connection:
        for number, (name, (code, reason, detail)) in enumerate(BROKEN.items(), 2):
            write(running.directory, "two", **code)
            done = running.cli("reload")
            assert done.returncode == 1, name
            assert done.stderr.startswith("cluster2: error: reload abandoned, the old generation goes on: "), name
            assert reason in done.stderr, name
            assert detail in done.stderr, name
            assert connection.get().body == b"one"
            assert pids(running) == old, name
            failed = events(running, "reload-failed")[-1]
            assert (failed["generation"], reason in failed["reason"]) == (number, True), failed
            assert detail in (failed["traceback"] or ""), failed
            wait_until(lambda: {row["pid"] for row in running.status()["workers"]} == old, "nothing new is left")
        assert "reload abandoned" in running.stderr
        write(running.directory, "three")
        assert running.cli("reload").returncode == 0
        assert connection.get().body == b"three"
    assert running.status()["master"]["state"] == "serving", "what is wrong with new code doesn't degrade the old"
    assert [each["generation"] for each in events(running, "reloaded")] == [len(BROKEN) + 2]


def test_a_worker_that_is_not_ready_in_time(site: Site) -> None:
    """New code whose first worker isn't ready within boot_timeout is abandoned, and that worker is gone."""
    running = site()
    old = pids(running)
    write(running.directory, "two", startup="Path('hangs.%d' % os.getpid()).touch(); await asyncio.Event().wait()")
    for bound in (0.7, 1.4, 2.8, 5.6, 11.2):  # it bounds the import as well, which may take that long on a busy machine
        (running.directory / "cluster2.toml").write_text(f'boot_timeout = "{bound}s"\n')
        done = running.cli("reload")
        assert done.returncode == 1
        if f"wasn't ready within boot_timeout ({bound:g} s)" in done.stderr:
            break
    else:
        pytest.fail(f"the time of the import was up, not the worker's: {done.stderr}")
    for mark in running.directory.glob("hangs.*"):
        wait_until(lambda mark=mark: not Path("/proc", mark.suffix[1:]).exists(), "the one that hung is gone")  # type: ignore[misc]
    assert pids(running) == old
    assert get(running.address).body == b"one"


def test_a_worker_that_dies_while_the_new_code_is_tried(site: Site) -> None:
    """A worker that dies meanwhile comes back with the old code: what has not proved itself replaces nobody."""
    running = site()
    victim, other = sorted(pids(running))
    write(running.directory, "two", startup=TRIED)
    with ThreadPoolExecutor() as pool:
        reload = pool.submit(running.cli, "reload")
        wait_until((running.directory / "tried").exists, "the new code is tried")
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(pids(running)) == 2 and victim not in pids(running), "both serve")
        assert {row["generation"] for row in running.workers()} == {1}
        (running.directory / "go").touch()
        assert reload.result().returncode == 1
    assert other in pids(running)
    assert {row["generation"] for row in running.workers()} == {1}
    assert get(running.address).body == b"one"


def test_the_zygote_of_the_old_code_dies_while_the_new_is_tried(site: Site) -> None:
    """If the old code's zygote dies meanwhile, it is started again when the new code is given up: workers come back."""
    running = site()
    others = descendants() - pids(running)
    (zygote,) = [pid for pid in others if "zygote" in Path(f"/proc/{pid}/cmdline").read_text()]
    write(running.directory, "two", startup=TRIED)
    with ThreadPoolExecutor() as pool:
        reload = pool.submit(running.cli, "reload")
        wait_until((running.directory / "tried").exists, "the new code is tried")
        os.kill(zygote, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{zygote}").exists(), "it is reaped")
        write(running.directory, "one")
        (running.directory / "go").touch()
        assert reload.result().returncode == 1
    victim = min(pids(running))
    os.kill(victim, signal.SIGKILL)
    wait_until(
        lambda: len(pids(running)) == 2 and victim not in pids(running), lambda: f"it is back:\n{running.stderr}"
    )


def test_no_fork_storm_without_the_old_zygote(site: Site) -> None:
    """The old zygote and all old workers die while the first new worker boots: each slot makes one worker, not one an event."""
    running = site()
    victims = pids(running)
    (zygote,) = [pid for pid in descendants() - victims if "zygote" in Path(f"/proc/{pid}/cmdline").read_text()]
    write(running.directory, "two", startup=WAITS)
    with ThreadPoolExecutor() as pool:
        reload = pool.submit(running.cli, "reload")
        wait_until((running.directory / "tried").exists, "the new code is tried")
        for pid in (zygote, *victims):
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "it is reaped")  # type: ignore[misc]
        wait_until(lambda: len(running.workers("booting")) == 2, "each slot has a worker that boots")
        for _ in range(50):  # each is an event, and each event made a worker more
            running.status()
        assert len(running.status()["workers"]) == 2
        (running.directory / "go").touch()
        done = reload.result()
        assert (done.returncode, "generation 2 serves" in done.stderr) == (1, True), (
            "old workers died during the reload"
        )
    assert [row["generation"] for row in running.workers()] == [2, 2]
    assert len(events(running, "forked")) == 4, "two of each generation"
    assert get(running.address).body == b"two"


def test_a_new_worker_that_dies_late(site: Site) -> None:
    """A worker of the new code that crashes after old ones have left ends the reload: the old generation is restored."""
    running = site()
    write(running.directory, "two")
    with Connection(running.address) as connection, ThreadPoolExecutor() as pool:
        connection.send("/held/a")
        running.held("a")
        reload = pool.submit(running.cli, "reload")
        running.draining()
        wait_until(lambda: {row["generation"] for row in running.workers()} == {2}, "the new generation serves")
        os.kill(min(pids(running)), signal.SIGKILL)
        assert reload.result().returncode == 1
        running.release()
        assert connection.receive().body == b"one"
    wait_until(lambda: [row["generation"] for row in running.workers()] == [1, 1], "the old code serves")
    assert get(running.address).body in (b"one", b"two"), "its zygote has the old code, unless it was loaded again"


def test_reloads_at_once_are_coalesced(site: Site) -> None:
    """Five reloads asked for at once are two at most, and each caller is answered when code at least as new serves."""
    running = site()
    write(running.directory, "two")
    with ThreadPoolExecutor(5) as pool:
        answers = [each.result() for each in [pool.submit(running.ask, "reload") for _ in range(5)]]
    assert {answer["generation"] for answer in answers} <= {2, 3}
    assert running.status()["generation"] <= 3
    assert get(running.address).body == b"two"
    assert len(events(running, "reloaded")) <= 2


def test_options_are_read_again(site: Site, tmp_path: Path) -> None:
    """A reload takes options from the file as it is now; what needs a restart is said; a file that is bad ends the reload."""
    toml = tmp_path / "cluster2.toml"
    toml.write_text("workers = 2\nbacklog = 100\n")
    running = site(workers=None)
    write(tmp_path, "two")
    toml.write_text("workers = 3\nbacklog = 200\n")
    assert running.cli("reload").returncode == 0
    assert len(running.workers()) == running.status()["wanted"] == 3
    assert "backlog has changed (cluster2.toml:2): that takes effect only by a restart" in running.stderr
    write(tmp_path, "three")
    toml.write_text('workers = "many"\n')
    done = running.cli("reload")
    assert done.returncode in (1, 5)
    assert "cluster2.toml:1" in done.stderr
    assert get(running.address).body == b"two"
    toml.write_text('workers = 1\nengine = "elsewhere"\n')
    done = running.cli("reload")
    assert done.returncode == 1
    assert "elsewhere" in done.stderr
    assert len(running.workers()) == 3, "the old generation goes on with all its workers"
    toml.write_text('workers = 1\nengine = "http"\n')
    assert running.cli("reload").returncode == 0
    wait_until(lambda: len(running.status()["workers"]) == 1, "one is left")
    assert get(running.address).body == b"three"


def test_scaled_by_hand_stays_so(site: Site) -> None:
    """A number of workers that was set by `scale` outlives a reload that brings no other number."""
    running = site()
    running.ask("scale", workers=3)
    running.ask("reload")
    assert len(running.workers()) == 3


def certify(authority: trustme.CA, file: Path) -> None:
    """Write a new certificate with its key."""
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(file)


def serial(running: Running, authority: trustme.CA) -> str:
    """The serial number of the certificate that is served."""
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with (
        socket.create_connection(running.address, 10) as plain,
        trusting.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        found: Any = client.getpeercert()
        return str(found["serialNumber"])


def test_certificate_is_renewed(site: Site, tmp_path: Path) -> None:
    """A reload serves the certificate that the file has now; one that is no certificate ends the reload."""
    authority, file = trustme.CA(), tmp_path / "site.pem"
    certify(authority, file)
    running = site("--ssl-certfile", str(file))
    first = serial(running, authority)
    certify(authority, file)
    assert serial(running, authority) == first
    assert running.cli("reload").returncode == 0
    second = serial(running, authority)
    assert second != first
    file.write_text("no certificate")
    done = running.cli("reload")
    assert done.returncode == 1
    assert "ssl_certfile" in done.stderr
    assert serial(running, authority) == second


def test_without_preload(site: Site) -> None:
    """Where each worker imports for itself a reload does the same, and is abandoned the same."""
    running = site("--no-preload")
    old = pids(running)
    write(running.directory, "two", first="def app(:")
    done = running.cli("reload")
    assert done.returncode == 1
    assert "SyntaxError" in done.stderr
    assert pids(running) == old
    write(running.directory, "three")
    assert running.cli("reload").returncode == 0
    wait_replaced(running, old)
    assert get(running.address).body == b"three"


def test_script_mode(start: Callable[..., Running], tmp_path: Path) -> None:
    """In script mode a reload executes the script again: code before `listen` is new in the workers, not in the master.

    What the script imports is new as well, though its size and modification time are those of the code before.
    """
    prepare(tmp_path)
    imported = tmp_path / "version.py"

    def write_version(version: str) -> None:
        imported.write_text(f"VERSION = {version!r}\n")
        os.utime(imported, (1_600_000_000, 1_600_000_000))

    (tmp_path / "main.py").write_text(
        textwrap.dedent("""
            import version
            from cluster2 import Cluster
            from tests.system.apps.sample_apps import answer

            async def app(scope, receive, send):
                if scope["type"] == "http":
                    await answer(send, version.VERSION.encode())

            Cluster(host="127.0.0.1", port=0, workers=2, monitor_port=0).listen(app)
            """)
    )
    write_version("one")
    running = start([sys.executable, "main.py"], directory=tmp_path, env=ENV).ready()
    master, old = running.status()["master"]["pid"], pids(running)
    for version in ("two", "six", "ten"):
        write_version(version)
        assert running.cli("reload").returncode == 0
        assert get(running.address).body == version.encode()
        assert running.status()["master"]["pid"] == master
        old = wait_replaced(running, old)


def test_shutdown_in_the_middle(site: Site) -> None:
    """A shutdown while new code is being loaded ends all, with 0; whoever waits for the reload is told."""
    running = site()
    write(running.directory, "two", first="import time\nopen('loading', 'w').close()\ntime.sleep(1000)\n")
    with ThreadPoolExecutor() as pool:
        reload = pool.submit(running.cli, "reload")
        wait_until((running.directory / "loading").exists, "the new code is being loaded")
        assert running.shutdown() == 0
        done = reload.result()
    assert done.returncode == 1
    assert "the cluster shuts down" in done.stderr


@pytest.mark.parametrize("script", [False, True], ids=["by name", "script"])
def test_a_release_behind_a_symlink(start: Callable[..., Running], tmp_path: Path, script: bool) -> None:
    """Started in a directory that is a symbolic link, a reload takes code, options and files from where it leads now."""
    text = """
        import os
        import version
        from tests.system.apps.sample_apps import answer

        async def app(scope, receive, send):
            if scope["type"] == "http":
                await answer(send, f"{version.VERSION} {os.environ['FROM_A_FILE']} {os.getcwd()}".encode())

        if __name__ == "__main__":
            from cluster2 import Cluster
            Cluster().listen(app)
        """
    link, releases, shared = tmp_path / "current", [tmp_path / "first", tmp_path / "second"], tmp_path / "shared"
    shared.mkdir()
    for number, release in enumerate(releases, 1):
        release.mkdir()
        (release / "version.py").write_text(f"VERSION = {number}\n")
        (release / "main.py").write_text(textwrap.dedent(text))
        (release / "site.env").write_text(f"FROM_A_FILE={number}\n")
        (release / "cluster2.toml").write_text(
            f'host = "127.0.0.1"\nport = 0\nmonitor_port = 0\nworkers = {number}\nenv_file = "site.env"\npids = "../shared"\n'
        )
    link.symlink_to(releases[0])
    argv = [sys.executable, "main.py"] if script else command("run", "main:app")
    running = start(argv, directory=link, env=ENV | {"PWD": str(link)})
    running.pids = shared
    running.ready(1)
    assert get(running.address).body.decode() == f"1 1 {releases[0]}"
    (tmp_path / "next").symlink_to(releases[1])
    (tmp_path / "next").rename(link)
    done = running.cli("reload")
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: len(running.workers()) == 2, "the new options count")
    assert get(running.address).body.decode() == f"2 2 {releases[1]}"
