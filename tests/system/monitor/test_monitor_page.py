"""The data of the page from a running cluster over HTTP: the report, the stream, the history, actions with progress."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from cluster2.answers import FACTS, GROUPS, STATUS, TOP
from cluster2.cli.top import StatusPoller
from cluster2.core.planning import Backoff
from cluster2.processes.monitor.data.viewers import MAX_VIEWERS
from cluster2.runtime.control_client import ControlClient
from tests.system.clients import get
from tests.system.harness import PATIENCE, Running, command, free_port, sample, stop, wait_until
from tests.system.health.test_ecv import own_address

Serve = Callable[..., Running]
TOKEN = "a-secret-token"
BEARS = {"authorization": f"Bearer {TOKEN}"}
AS_JSON = {"accept": "application/json"}
MiB = 2**20


class Stream:
    """A stream of server-sent events."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()
        self.number = ""

    def next(self) -> tuple[str, Any]:
        """Return name and data of the next message, and keep its number."""
        name, data, number = "", None, ""
        for line in self._lines:
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "id":
                number = value
            elif field == "data":
                data = json.loads(value)
            elif not line and name:
                self.number = number or self.number
                return name, data
        return "", None

    def until(self, name: str, suits: Callable[[Any], bool] = lambda data: True) -> Any:
        """Return the data of the next message of that name that suits."""
        while True:
            found, data = self.next()
            assert found, f"the stream ended before a {name!r} that suits"
            if found == name and suits(data):
                return data


class Shown:
    """A cluster with its monitor, and a client of that."""

    def __init__(self, running: Running, port: int, host: str = "127.0.0.1") -> None:
        self.running = running
        running._ports.add(port)
        self.client = httpx.Client(base_url=f"http://{host}:{port}", timeout=PATIENCE)

    def facts(self) -> Any:
        return self.client.get("/", headers=AS_JSON).raise_for_status().json()

    @contextmanager
    def stream(self, path: str = "/events", method: str = "GET", **headers: str) -> Iterator[Stream]:
        with self.client.stream(method, path, headers=headers) as response:
            yield Stream(response)


@pytest.fixture
def shown(run: Serve) -> Iterator[Callable[..., Shown]]:
    made: list[Shown] = []

    def shown(*options: str, workers: int | None = 2, **more: Any) -> Shown:
        port = free_port()
        running = run(sample("plain"), *options, "--monitor-port", str(port), workers=workers, **more)
        made.append(Shown(running.ready(workers) if workers else running, port))
        return made[-1]

    yield shown
    for each in made:
        each.client.close()


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """Yield one cluster for all tests that don't change it."""
    port = free_port()
    argv = command("run", sample("plain"), "--bind", "127.0.0.1:0", "--monitor-port", str(port), "--workers", "2")
    running = Running(argv, tmp_path_factory.mktemp("standing"))
    cluster = Shown(running, port)
    running.ready(2)
    yield cluster
    cluster.client.close()
    running.close()
    running.assert_gone()


@pytest.mark.slow
def test_a_worker_is_killed(shown: Callable[..., Shown]) -> None:
    """A viewer sees a worker end and another start, as events and in reports, and goes on after the monitor was killed."""
    cluster = shown()
    with cluster.stream() as stream:
        before = stream.until("facts", lambda facts: facts["ready"] == 2)
        victim, other = (row["pid"] for row in before["workers"])
        os.kill(victim, signal.SIGKILL)
        died = stream.until("died")
        assert (died["pid"], died["slot"], died["signal"], died["reason"]) == (victim, 0, "SIGKILL", "crash")
        listening = stream.until("listening")
        assert (listening["slot"], listening["generation"]) == (0, 1)
        after = stream.until("facts", lambda facts: facts["ready"] == 2 and len(facts["workers"]) == 2)
        assert [row["pid"] for row in after["workers"]] == [listening["pid"], other]
        assert after["workers"][0]["uptime"] < after["workers"][1]["uptime"]
        os.kill(cluster.facts()["monitor"]["pid"], signal.SIGKILL)
        assert stream_ends(stream)
    marks = [mark for mark in cluster.client.get("/history").json()["marks"] if mark["name"] == "died"]
    assert marks == [], "another monitor has another history"
    with cluster.stream(**{"last-event-id": stream.number}) as again:
        assert again.until("facts")["monitor"]["restarts"] == 1
        cluster.running.ask("disable")
        again.until("disabled")
        assert int(again.number) > int(stream.number)
        assert again.until("facts", lambda facts: facts["traffic"] == "disabled")["leaving"] is False


def stream_ends(stream: Stream) -> bool:
    """Return True if the stream ends, in any way, after the messages that were sent before."""
    try:
        while stream.next()[0]:
            pass
    except httpx.RemoteProtocolError:
        pass
    return True


@pytest.mark.slow
def test_report_under_load(standing: Shown) -> None:
    """Requests are in the report, by worker and in total, and in the history; the report agrees with `status`."""
    asked = 0

    def shows() -> bool:
        nonlocal asked
        for _ in range(20):
            assert get(standing.running.address, "/").status == 200
            asked += 1
        facts = standing.facts()
        return (facts["rates"]["requests"] or 0) > 1 and any((row["rate"] or 0) > 1 for row in facts["workers"])

    wait_until(shows, "a rate is shown")
    wait_until(lambda: sum(row["requests"] for row in standing.facts()["workers"]) >= asked, "all are counted")
    facts, status = standing.facts(), standing.running.status()
    for name in ("generation", "wanted", "traffic", "addresses"):
        assert facts[name] == status[name], name
    for name in ("pid", "state", "version"):
        assert facts["master"][name] == status["master"][name], name
    assert status["workers"][0].keys() <= facts["workers"][0].keys()
    assert set(status) - {"talk", "backoffs", "waiting"} <= facts.keys()
    assert "waiting" in facts["connections"]
    assert facts["memory"]["now"] > 10 * MiB
    history = standing.client.get("/history?seconds=60").json()
    column = history["columns"].index("requests")
    assert max(row[column] or 0 for row in history["rows"]) > 1


def paths(told: Any, within: str = "") -> Iterator[str]:
    """Yield the path of each field of an answer, as the reference page writes it."""
    for name, value in told.items():
        path = within + name
        yield path
        if isinstance(value, dict):
            yield from paths(value, path + ".")
        for each in value if isinstance(value, list) else ():
            if isinstance(each, dict):
                yield from paths(each, path + "[].")


@pytest.mark.slow
def test_all_fields_are_in_the_reference(standing: Shown) -> None:
    """Each field of the answers in JSON is on the reference page, and each one there is in the answers that it names."""
    look = StatusPoller(ControlClient(standing.running.pids))

    def measured() -> bool:
        get(standing.running.address, "/")
        return all(row["latency"] for row in standing.running.status()["workers"])

    wait_until(measured, "each worker has measured a request")
    look.poll()
    answers = {STATUS: standing.running.status(), TOP: look.plain(), FACTS: standing.facts()}
    fields = [field for group in GROUPS.values() for field in group]
    assert len({field.path for field in fields}) == len(fields)
    for name, answer in answers.items():
        told = set(paths(answer))
        without = {path for path in told if not any(each.startswith((path + ".", path + "[")) for each in told)}
        listed = {field.path for field in fields if name in field.of}
        assert without <= listed, f"{name} has fields that the reference page lacks"
        idle = {f"backoffs[].{field}" for field in Backoff._fields}  # no slot backs off in a healthy cluster
        assert listed <= told | idle, f"{name} lacks fields of the reference page"


def test_progress_of_actions(shown: Callable[..., Shown]) -> None:
    """A reload sends its progress and then its result; without a stream the response comes at the end."""
    cluster = shown("--monitor-token", TOKEN)
    assert cluster.facts()["actions"] is True
    with cluster.stream("/control/reload", "POST", accept="text/event-stream", **BEARS) as stream:
        said = []
        while (message := stream.next())[0]:
            said.append(message)
    assert said[-1][0] == "result"
    assert (said[-1][1]["ok"], said[-1][1]["result"]["generation"]) == (True, 2)
    steps = [data["done"] for name, data in said if name == "progress"]
    assert steps == sorted(steps)
    assert (steps[-1], said[0][1]["of"], said[0][1]["what"]) == (2, 2, "replaced")
    answer = cluster.client.post("/control/recycle?worker=0", headers=BEARS)
    assert (answer.status_code, answer.json()) == (200, {"ok": True, "result": {"replaced": 1}})
    assert cluster.client.post("/control/reload").status_code == 401
    assert [mark["name"] for mark in cluster.client.get("/history").json()["marks"]][:2] == ["reloading", "reloaded"]


def test_viewers_that_do_not_read(standing: Shown) -> None:
    """Viewers that don't read affect no other request; when one leaves, another is accepted."""
    port = standing.client.base_url.port
    idle = []
    for _ in range(MAX_VIEWERS):
        viewer = socket.create_connection(("127.0.0.1", port))
        viewer.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert viewer.recv(15) == b"HTTP/1.1 200 OK"
        idle.append(viewer)
    assert standing.client.get("/events").status_code == 503
    assert standing.client.get("/readyz").status_code == 200
    assert standing.facts()["ready"] == 2
    idle.pop().close()
    wait_until(lambda: standing.client.head("/events").status_code == 200, "a place is free")
    for viewer in idle:
        viewer.close()


def test_garbage(standing: Shown) -> None:
    """Garbage, and too much data, is refused, and the monitor goes on."""
    pid = standing.facts()["monitor"]["pid"]
    for garbage in (
        os.urandom(4096),
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 10 * MiB,
        b"GET /" + b"%00" * 3000 + b" HTTP/1.1\r\nHost: localhost\r\nconnection: close\r\n\r\n",
        b"POST /control/reload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzzzz\r\n",
        b"GET /events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: \xff\xfe\r\nconnection: close\r\n\r\n",
        b"GET /history?seconds=%F0%9F HTTP/1.1\r\nHost: localhost\r\nconnection: close\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", standing.client.base_url.port)) as peer:
            try:
                peer.sendall(garbage)
            except (BrokenPipeError, ConnectionResetError):
                continue  # refused before the end
    assert standing.client.get("/livez").status_code == 200
    assert standing.facts()["monitor"]["pid"] == pid
    assert "Traceback" not in standing.running.stderr


@pytest.mark.slow
def test_it_stays_small(standing: Shown) -> None:
    """The monitor takes 35 MiB at most after each route was used, and with five viewers."""
    streams = [standing.client.stream("GET", "/events") for _ in range(5)]
    watching = [Stream(each.__enter__()) for each in streams]
    for path in ("/", "/metrics", "/deps", "/history", "/static/page.html", "/component-status"):
        for _ in range(5):
            assert standing.client.get(path).status_code == 200, path
    for each in watching:
        each.until("sample")
        each.until("sample")
    assert standing.running.status()["monitor"]["memory"] < 35 * MiB
    for stream in streams:
        stream.__exit__(None, None, None)


def test_sign_in(run: Serve) -> None:
    """On an address that isn't loopback a browser gets the page with a 401; its files are open, the report isn't."""
    port, outside = free_port(), own_address()
    running = run(
        sample("plain"), "--monitor-host", "0.0.0.0", "--monitor-port", str(port), "--monitor-token", TOKEN
    ).ready()
    cluster = Shown(running, port, outside)
    page = cluster.client.get("/", headers={"accept": "text/html"})
    assert (page.status_code, page.headers["www-authenticate"]) == (401, "Bearer")
    assert "<html" in page.text
    assert cluster.client.get("/static/page.html").content == page.content
    for path in ("/", "/events", "/history", "/static/../page.py"):
        assert cluster.client.get(path, headers=AS_JSON).status_code == 401
    assert cluster.client.get("/", headers=AS_JSON | BEARS).json()["ready"] == 2
    with cluster.stream(**BEARS) as stream:
        assert stream.until("facts")["actions"] is True
    cluster.client.close()


def test_without_a_master(run: Serve) -> None:
    """With `cluster = false` the one process serves the page, with its events."""
    port = free_port()
    running = run(
        sample("plain"),
        "--no-cluster",
        "--ecv-control",
        "--monitor-port",
        str(port),
        "--monitor-token",
        TOKEN,
        workers=None,
    )
    cluster = Shown(running, port)

    def serves() -> bool:
        try:
            return cluster.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    wait_until(serves, "it serves")
    with cluster.stream() as stream:
        facts = stream.until("facts", lambda facts: facts["ready"] == 1)
        assert (facts["master"]["pid"], facts["master"]["state"], facts["actions"]) == (None, "serving", False)
        assert [(row["pid"], row["slot"]) for row in facts["workers"]] == [(running.process.pid, 0)]
        assert cluster.client.post("/ecv/disable").status_code == 204
        stream.until("disabled")
        stream.until("facts", lambda facts: facts["traffic"] == "disabled")
    assert cluster.client.get("/history").json()["marks"][0]["name"] == "disabled"
    assert cluster.client.post("/control/reload", headers=BEARS).status_code == 503
    cluster.client.close()
    assert running.shutdown() == 0


@pytest.mark.slow
def test_viewers_at_a_shutdown(shown: Callable[..., Shown]) -> None:
    """At a shutdown the stream has the event and ends; viewers don't delay the monitor's end."""
    cluster = shown()
    with cluster.stream() as stream:
        stream.until("facts")
        cluster.running.signal(signal.SIGTERM)
        stream.until("shutdown")
        assert stream_ends(stream)
    assert cluster.running.wait() == 0


@pytest.mark.soak
def test_a_monitor_that_hangs(shown: Callable[..., Shown]) -> None:
    """A monitor without heartbeats is killed, and the next one serves waiting clients."""
    cluster = shown()
    pid = cluster.facts()["monitor"]["pid"]
    stop(pid)
    wait_until(lambda: cluster.running.status()["monitor"]["pid"] not in (0, pid), "another one", timeout=90)
    assert cluster.facts()["monitor"]["restarts"] == 1
    assert "the monitor has missed its heartbeats; it is killed" in cluster.running.stderr
