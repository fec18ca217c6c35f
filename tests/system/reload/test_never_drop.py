"""No request is dropped, and over plain HTTP/1.1 no connection is even closed, whatever is done to the cluster."""

from __future__ import annotations

import os
import random
import signal
import ssl
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from tests.system.clients import Connection
from tests.system.conftest import Serve
from tests.system.counting import Seen
from tests.system.harness import Running, stop, wait_until
from tests.system.rolling import APP, MOVING, QUICK, loaded


def test_websockets_are_told(run: Serve) -> None:
    """A websocket of a worker that leaves serves on for drain_idle, then it is closed with 1012: connect again."""
    running = run(f"{APP}:app", "--drain-idle", "1s").ready()
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(running.url("/", "ws"))) for _ in range(4)]
        reload = threading.Thread(target=running.ask, args=("reload",))
        reload.start()
        running.draining()
        for client in clients:
            client.send("still here?")
            assert client.recv(10) == "still here?"
        for client in clients:
            with pytest.raises(ConnectionClosedError) as raised:
                client.recv(20)
            assert raised.value.rcvd is not None
            assert raised.value.rcvd.code == 1012
        reload.join()
    with connect(running.url("/", "ws")) as client:
        client.send("again")
        assert client.recv(10) == "again"


def test_long_answers_are_finished(run: Serve) -> None:
    """Requests that are under way in a worker that leaves are finished, and their connections go on with its successor."""
    running = run(f"{APP}:app", *QUICK).ready()
    with ExitStack() as stack:
        waiting = [stack.enter_context(Connection(running.address)) for _ in range(6)]
        for number, connection in enumerate(waiting):
            connection.send(f"/wait/{number}")
        pids = {running.held(str(number)) for number in range(6)}
        reload = threading.Thread(target=running.ask, args=("reload",))
        reload.start()
        running.draining(len(pids))
        assert reload.is_alive(), "it waits for them"
        running.release()
        for number, connection in enumerate(waiting):
            answer = connection.receive()
            assert (answer.body, answer.headers["x-worker"] in map(str, pids)) == (b"wait %d" % number, True)
            assert "connection" not in answer.headers
        reload.join()
        for connection in waiting:
            answer = connection.get("/small/1")
            assert int(answer.headers["x-worker"]) in {row["pid"] for row in running.workers()} - pids


@pytest.mark.parametrize("name", MOVING)
def test_shutdown_answers_every_connection(run: Serve, name: str) -> None:
    """At a shutdown each connection that was made before may ask once more: new, used, or at rest with the keeper."""
    way = MOVING[name]
    running = run(way.target, *way.options, "--handoff-idle-after", "100ms", "--drain-idle", "10s").ready()
    with ExitStack() as stack:
        resting = [stack.enter_context(Connection(running.address)) for _ in range(20)]
        for connection in resting:
            connection.get("/small/1")
        wait_until(lambda: running.status()["keeper"]["resting"] == 20, lambda: f"all rest: {running.status()}")
        fresh = [stack.enter_context(Connection(running.address)) for _ in range(10)]
        used = [stack.enter_context(Connection(running.address)) for _ in range(10)]
        for connection in used:
            connection.get("/small/2")
        busy = [stack.enter_context(Connection(running.address)) for _ in range(4)]
        for number, connection in enumerate(busy):
            connection.send(f"/wait/{number}")
            running.held(str(number))
        running.signal(signal.SIGTERM)
        running.draining(2)
        for connection in [*resting, *fresh, *used]:
            connection.send("/small/3")
        for connection in [*resting, *fresh, *used]:
            answer = connection.receive()
            assert (answer.status, answer.body) == (200, b"small 3")
            assert answer.headers["connection"] == "close"
        running.release()
        for number, connection in enumerate(busy):
            assert connection.receive().body == b"wait %d" % number
    assert running.wait() == 0


def test_shutdown_in_the_middle_of_a_reload(run: Serve) -> None:
    """A shutdown while workers retire for a reload answers what is at the keeper, and what those workers still have."""
    running = run(f"{APP}:app", "--handoff-idle-after", "100ms", "--drain-idle", "10s").ready()
    with ExitStack() as stack:
        busy = [stack.enter_context(Connection(running.address)) for _ in range(4)]
        idle = [stack.enter_context(Connection(running.address)) for _ in range(10)]
        for connection in idle:
            connection.get("/small/1")
        for number, connection in enumerate(busy):
            connection.send(f"/wait/{number}")
            running.held(str(number))
        running.signal(signal.SIGHUP)
        running.draining()
        running.signal(signal.SIGTERM)
        wait_until(lambda: not running.workers(), "all drain")
        for connection in idle:
            # The master has told the workers to drain. One that has not heard it yet answers without ending the connection.
            wait_until(lambda: _answered(connection) == "close", "the connection ends with an answer")  # noqa: B023
        running.release()
        for number, connection in enumerate(busy):
            assert connection.receive().body == b"wait %d" % number
    assert running.wait() == 0


def _answered(connection: Connection) -> str | None:
    """Send a request, check its answer, and return what that says of the connection."""
    answer = connection.get("/small/2")
    assert answer.body == b"small 2"
    return answer.headers.get("connection")


def test_killed_keeper(run: Serve) -> None:
    """When the keeper is killed, what is with it at that moment is lost, and nothing else; another one is started."""
    running = run(f"{APP}:app", "--handoff-idle-after", "300ms").ready()
    with ExitStack() as stack:
        resting = [stack.enter_context(Connection(running.address)) for _ in range(10)]
        for connection in resting:
            connection.get("/small/1")
        idle = {connection.socket.getsockname()[1] for connection in resting}
        wait_until(lambda: running.status()["keeper"]["resting"] == 10, lambda: f"all rest: {running.status()}")
        with loaded(running, closing=2, think=0.01) as mix:
            old = running.status()["keeper"]["pid"]
            stop(old)
            held = ports_of(old, running.address[1])
            os.kill(old, signal.SIGKILL)
            assert all(connection.closed() for connection in resting)
            wait_until(lambda: (running.status()["keeper"] or {"pid": old})["pid"] != old, "another one is there")
            before = mix.seen.answered
            wait_until(lambda: mix.seen.answered > before + 100, "the load goes on")
    assert set(held) >= idle
    # Of the busy ones some may just have been on their way to a worker that has fewer.
    assert {each.port for each in mix.seen.failed} <= set(held), mix.seen
    assert len(mix.seen.failed) + mix.seen.closed <= len(held) - len(idle), mix.seen
    assert not mix.seen.refused
    assert running.status()["keeper"]["restarts"] == 1


def ports_of(pid: int, port: int) -> list[int]:
    """Client ports of the connections to this port that a process holds."""
    inodes = set()
    for entry in os.listdir(f"/proc/{pid}/fd"):
        link = os.readlink(f"/proc/{pid}/fd/{entry}")
        if link.startswith("socket:["):
            inodes.add(link[8:-1])
    ports = []
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, _, _, _, _, _, inode, *_ = row.split()
        if inode in inodes and int(local.rpartition(":")[2], 16) == port:
            ports.append(int(remote.rpartition(":")[2], 16))
    return ports


class Killer:
    """Kills workers one after the other, and remembers what each held at that moment.

    A worker is stopped first, so that what it holds can be read off /proc and no longer changes.

    Attributes:
        held: client ports of the connections that the killed workers held.
    """

    def __init__(self, running: Running, rng: random.Random) -> None:
        self._running = running
        self._rng = rng
        self._port = running.address[1]
        self.killed: list[int] = []
        self.held: list[int] = []

    def kill(self) -> None:
        """One of those that serve, if there is one."""
        ready = [row["pid"] for row in self._running.ask("status", memory=False)["workers"] if row["state"] == "ready"]
        if not ready:
            return
        pid = self._rng.choice(ready)
        stop(pid)
        self.held += ports_of(pid, self._port)
        os.kill(pid, signal.SIGKILL)
        self.killed.append(pid)

    def begun(self) -> set[str]:
        """Requests whose handlers began in the killed workers."""
        files = [self._running.directory / f"begun.{pid}" for pid in self.killed]
        return {line for file in files if file.exists() for line in file.read_text().split()}


def killing(running: Running, seconds: float, every: float, seed: int = 1) -> tuple[Killer, Seen]:
    """Kill workers under load, and see to it that what fails is what it must be. Returns what was killed and seen."""
    with loaded(running, clients=16, closing=4) as mix:
        killer = Killer(running, random.Random(seed))
        pause, end = threading.Event(), time.monotonic() + seconds
        while time.monotonic() < end or len(killer.killed) < seconds:
            killer.kill()
            pause.wait(every)
        wait_until(lambda: len(running.workers()) == 4, "all are back")
        before = mix.seen.answered
        wait_until(lambda: mix.seen.answered > before + 100, "the load goes on")
    seen, begun = mix.seen, killer.begun()
    in_flight = [each for each in seen.failed if each.number in begun]
    unread = [each for each in seen.failed if each.number not in begun]
    print(f"{len(killer.killed)} killed; {len(in_flight)} failed in flight, {len(unread)} unread; {seen}")
    assert not seen.refused, seen
    strangers = [each for each in seen.failed if each.port not in killer.held]
    assert not strangers, f"failed, though no killed worker held their connections: {strangers}"
    assert len(seen.failed) + seen.closed <= len(killer.held)
    return killer, seen


@pytest.mark.slow
def test_kill_after_kill(run: Serve, tmp_path: Path) -> None:
    """Under `kill -9` of a random worker every 200 ms only requests of connections that the killed workers held fail."""
    (tmp_path / "note").touch()
    running = run(f"{APP}:app", "--restart-limit", "1000", *QUICK, workers=4, directory=tmp_path).ready(4)
    killer, seen = killing(running, seconds=4.0, every=0.2)
    assert len(killer.killed) >= 4
    assert seen.answered > 200
    assert running.shutdown() == 0


def test_resting_connections_outlive_kills(run: Serve) -> None:
    """Connections that rest at the keeper survive a `kill -9` of every worker."""
    running = run(f"{APP}:app", "--handoff-idle-after", "100ms").ready()
    with ExitStack() as stack:
        resting = [stack.enter_context(Connection(running.address)) for _ in range(20)]
        for connection in resting:
            connection.get("/small/1")
        wait_until(lambda: running.status()["keeper"]["resting"] == 20, lambda: f"all rest: {running.status()}")
        old = {row["pid"] for row in running.workers()}
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        for connection in resting:
            connection.send("/small/2")
        assert [connection.receive().body for connection in resting] == [b"small 2"] * 20
        wait_until(lambda: len({row["pid"] for row in running.workers()} - old) == 2, "both are back")


def test_tls_handshakes_under_way(run: Serve, certified: tuple[tuple[str, ...], ssl.SSLContext]) -> None:
    """A client whose TLS handshake isn't over when its worker has to leave is served; one that never ends it waits for nobody."""
    options, trusting = certified
    running = run(f"{APP}:app", *options, "--drain-idle", "4s").ready()
    with ExitStack() as stack:
        begun, silent = ([stack.enter_context(Connection(running.address)) for _ in range(4)] for _ in range(2))
        wait_until(lambda: sum(row["accepted"] for row in running.workers()) == 8, "they are accepted")
        reload = threading.Thread(target=running.ask, args=("reload",))
        reload.start()
        running.draining()
        for connection in begun:
            connection.socket = trusting.wrap_socket(connection.socket, server_hostname="localhost")
            assert connection.get("/small/1").body == b"small 1"
        reload.join()
        assert all(connection.closed() for connection in silent)
    assert running.status()["generation"] == 2


def test_slow_requests_do_not_hold_up_a_reload_of_others(run: Serve) -> None:
    """A reload whose first worker can't leave yet goes on with the next; clients of the new code are served meanwhile."""
    running = run(f"{APP}:app", *QUICK).ready()
    with ExitStack() as clients:
        connection, *idle = (clients.enter_context(Connection(running.address)) for _ in range(6))
        for each in idle:
            each.get("/small/1")
        connection.send("/wait/a")
        running.held("a")
        reload = threading.Thread(target=running.ask, args=("reload",))
        reload.start()
        wait_until(lambda: {row["generation"] for row in running.workers()} == {2}, "the new generation serves")
        new = {str(row["pid"]) for row in running.workers()}
        assert len(new) == 2
        assert reload.is_alive()
        wait_until(lambda: running.status()["keeper"]["resting"] == len(idle), "the others have left the old ones")
        # The one that still works reads neither the accept queue nor what comes from the keeper.
        with ExitStack() as stack:
            for resting in idle:
                assert resting.get("/small/1").headers["x-worker"] in new
            for _ in range(10):
                assert stack.enter_context(Connection(running.address)).get("/small/1").headers["x-worker"] in new
        running.release()
        assert connection.receive().body == b"wait a"
        reload.join()


def test_many_idle_connections(run: Serve) -> None:
    """Hundreds of idle connections outlive a reload though all are with workers that leave; no process grows much over it."""
    running = run(f"{APP}:app", "--handoff-idle-after", "0").ready()
    with ExitStack() as stack:
        idle = [stack.enter_context(Connection(running.address)) for _ in range(500)]
        for connection in idle:
            connection.send("/small/1")
        assert all(connection.receive().body == b"small 1" for connection in idle)
        before = memory(running)
        running.ask("reload")
        after = memory(running)
        assert max(after) < max(before) + (16 << 20), (before, after)
        for connection in idle:
            connection.send("/small/2")
        assert all(connection.receive().body == b"small 2" for connection in idle)


def memory(running: Running) -> list[int]:
    """Bytes of each process: master, keeper, workers."""
    status = running.status()
    return [each["memory"] for each in (status["master"], status["keeper"], *status["workers"])]
