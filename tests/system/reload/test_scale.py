"""The number of workers changes while they serve."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster2 import Cluster
from tests.system.apps.rolling_site import ENV, arguments, events, gone, pids, prepare
from tests.system.clients import Connection
from tests.system.harness import Running, wait_until

Site = Callable[..., Running]


@pytest.fixture
def site(start: Callable[..., Running], tmp_path: Path) -> Site:
    """Serve the site."""
    prepare(tmp_path)

    def site(*options: str) -> Running:
        return start(arguments(*options), directory=tmp_path, env=ENV).ready()

    return site


def test_up_and_down(site: Site) -> None:
    """By command: more workers beside the old, then fewer; who leaves has its connections go on with those that stay."""
    running = site()
    old = pids(running)
    assert running.cli("scale", "5").returncode == 0
    assert len(pids(running)) == 5
    assert old < pids(running)
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(running.address)) for _ in range(30)]
        for connection in connections:
            connection.get()
        before = pids(running)
        done = running.cli("scale", "1")
        assert (done.returncode, done.stderr) == (0, "")
        (left,) = pids(running)
        assert running.workers()[0]["slot"] == 0
        assert all(gone(pid) for pid in before - {left})
        answers = [connection.get() for connection in connections]
        assert {(answer.body, answer.headers.get("connection")) for answer in answers} == {(b"one", None)}
        assert {answer.headers["x-worker"] for answer in answers} == {str(left)}
    died = events(running, "died")
    assert [(each["reason"], each["code"]) for each in died] == [("scale", 0)] * 4
    assert running.status()["wanted"] == 1


def test_by_api(site: Site) -> None:
    """The API does the same, and returns when it is done."""
    running = site()
    cluster = Cluster(pids=str(running.pids))
    assert cluster.scale(4) == {"workers": 4}
    assert len(pids(running)) == 4
    assert cluster.scale(2) == {"workers": 2}
    assert len(running.status()["workers"]) == 2


def test_by_signal(site: Site) -> None:
    """TTIN is one more, TTOU one less; the last one stays."""
    running = site()
    running.signal(signal.SIGTTIN)
    wait_until(lambda: len(pids(running)) == 3, "one more serves")
    for wanted in (2, 1):
        running.signal(signal.SIGTTOU)
        wait_until(lambda wanted=wanted: len(running.status()["workers"]) == wanted, "one less serves")  # type: ignore[misc]
    running.signal(signal.SIGTTOU)
    wait_until(lambda: len(events(running, "signal")) == 4, "it has heard")
    assert running.status()["wanted"] == 1
    assert len(pids(running)) == 1


@pytest.mark.parametrize(("number", "says"), [("0", "0 is not in the range"), ("451", "a whole number from 1 to 450")])
def test_numbers_that_are_refused(site: Site, number: str, says: str) -> None:
    """No worker, and more than there is room for, are refused with 2."""
    running = site()
    done = running.cli("scale", number)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(pids(running)) == 2


def test_the_last_word_counts(site: Site) -> None:
    """Of several numbers asked for at once the last is what it becomes, and all who asked are answered."""
    running = site()
    for number in (6, 1, 4):
        running.ask("scale", workers=number)
    assert len(pids(running)) == 4


def test_with_long_requests(site: Site) -> None:
    """Down while requests are under way in those that leave: they are answered first."""
    running = site()
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(running.address)) for _ in range(8)]
        for number, connection in enumerate(connections):
            connection.send(f"/held/{number}")
        for number in range(8):
            running.held(str(number))
        running.signal(signal.SIGTTOU)
        running.draining()
        running.release()
        assert [connection.receive().body for connection in connections] == [b"one"] * 8
    wait_until(lambda: len(running.status()["workers"]) == 1, "one is left")
