"""Workers are replaced within their generation: on demand, or when they have done enough."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster2 import Cluster
from tests.system.apps.rolling_site import ENV, arguments, events, gone, pids, prepare, wait_replaced
from tests.system.clients import Connection, Load, get
from tests.system.harness import Running, wait_until

Site = Callable[..., Running]


@pytest.fixture
def site(start: Callable[..., Running], tmp_path: Path) -> Site:
    """Serve the site; thresholds have no jitter."""
    prepare(tmp_path)

    def site(*options: str, workers: int = 2) -> Running:
        argv = arguments("--threshold-jitter", "0", *options, workers=workers)
        return start(argv, directory=tmp_path, env=ENV).ready(workers)

    return site


def by_slot(running: Running) -> dict[int, int]:
    """Pid by slot of those that serve."""
    return {row["slot"]: row["pid"] for row in running.workers()}


def successor_first(running: Running, surge: int = 1) -> None:
    """Judged by its events: an old worker has died only after its successor was ready, and `surge` booted at a time."""
    booting: set[int] = set()
    ready: dict[int, list[int]] = {}
    for event in events(running, "forked", "listening", "died"):
        pid, slot = event["pid"], event["slot"]
        match event["name"]:
            case "forked" if ready.get(slot):
                booting.add(pid)
                assert len(booting) <= surge, "too many successors at a time"
            case "listening":
                booting.discard(pid)
                ready.setdefault(slot, []).append(pid)
            case "died":
                assert ready[slot][-1] != pid, "it left before its successor was ready"
                ready[slot].remove(pid)


@pytest.mark.parametrize("name", ["slot", "pid"])
def test_recycle_one(site: Site, name: str) -> None:
    """The named worker is replaced, in its slot and generation; its connections go on; the other stays."""
    running = site()
    before = by_slot(running)
    with Connection(running.address) as first, Connection(running.address) as second:
        for connection in (first, second):
            assert connection.get().body == b"one"
        done = running.cli("recycle", str(1 if name == "slot" else before[1]))
        assert (done.returncode, done.stderr) == (0, "")
        for connection in (first, second):
            assert connection.get().body == b"one"
    after = by_slot(running)
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert gone(before[1])
    assert running.status()["generation"] == 1
    (died,) = events(running, "died")
    assert (died["pid"], died["reason"], died["code"]) == (before[1], "recycle", 0)
    successor_first(running)


def test_recycle_all(site: Site) -> None:
    """Without a name all are replaced, in turn, and never two at once."""
    running = site(workers=3)
    old = pids(running)
    assert running.cli("recycle").returncode == 0
    wait_replaced(running, old, 3)
    successor_first(running)
    assert Cluster(pids=str(running.pids)).recycle() == {"replaced": 3}
    successor_first(running)


def test_recycle_several_at_a_time(site: Site) -> None:
    """With max_surge two are replaced at a time, and not three."""
    running = site("--max-surge", "2", workers=4)
    old = pids(running)
    assert running.cli("recycle").returncode == 0
    wait_replaced(running, old, 4)
    successor_first(running, surge=2)


def test_recycle_nobody(site: Site) -> None:
    """Who names no worker is told so, with 2."""
    running = site()
    done = running.cli("recycle", "77")
    assert (done.returncode, "no worker has the pid or slot 77" in done.stderr) == (2, True)


def recycled(running: Running, why: str) -> None:
    """Wait until a worker was recycled because of that, its successor being ready first."""
    wait_until(lambda: events(running, "died"), lambda: f"one was recycled:\n{running.stderr}")
    assert events(running, "died")[0]["reason"] == "recycle"
    assert f"is recycled ({why}" in running.stderr
    wait_until(lambda: len(running.workers()) == 2, "all slots are served")
    successor_first(running)


@pytest.mark.parametrize("name", ["request", "conn"])
def test_after_so_much(site: Site, name: str) -> None:
    """A worker that has answered so many requests, or accepted so many connections, is replaced; no request fails."""
    running = site(f"--{name}-threshold", "150")
    old = pids(running)
    with Load(running.address, clients=6, keep_alive=name == "request") as load:
        wait_replaced(running, old)
    recycled(running, f"{name}_threshold: ")
    assert load.counts.failed == []
    assert load.counts.closed == 0
    assert load.counts.answered >= 300


def test_after_so_long(site: Site) -> None:
    """A worker that is that old is replaced, and so is its successor in its time; younger ones aren't."""
    running = site("--uptime-threshold", "1s")
    recycled(running, "uptime_threshold: ")
    ages = [event["uptime"] for event in events(running, "died")]
    assert min(ages) >= 1.0


def test_above_so_much_memory(site: Site, tmp_path: Path) -> None:
    """A worker that has grown beyond the threshold is replaced; the other, which hasn't, stays."""
    with (tmp_path / "site_of_test.py").open("a") as file:
        file.write(
            "from cluster2 import worker\n"
            "@worker.on_start\n"
            "def eat():\n"
            "    global eaten\n"
            "    if worker.slot == 1 and not Path('eaten').exists():\n"
            "        Path('eaten').touch()\n"
            "        eaten = bytearray(os.urandom(1 << 20) * 128)\n"
        )
    running = site("--memory-threshold", "128MiB")
    recycled(running, "memory_threshold: ")
    assert [event["slot"] for event in events(running, "died")] == [1]
    assert get(running.address).body == b"one"


def test_when_a_predicate_says_so(site: Site, tmp_path: Path) -> None:
    """`recycle_when` is asked about each worker; one that raises is logged, and hurts nobody."""
    (tmp_path / "judge.py").write_text(
        "import itertools\n"
        "count = itertools.count()\n"
        "def enough(facts):\n"
        "    if next(count) < 2:\n"
        "        raise LookupError('who knows')\n"
        "    return facts['slot'] == 1 and facts['uptime'] > 0.2 and facts['memory'] > 0 and facts['generation'] == 1\n"
    )
    running = site("--recycle-when", "judge:enough")
    recycled(running, "recycle_when")
    assert {event["slot"] for event in events(running, "died")} == {1}
    assert "LookupError: who knows" in running.stderr
    assert "watchman.py" not in running.stderr, "the frames are the user's own"


def test_a_predicate_that_is_none(site: Site, start: Callable[..., Running], tmp_path: Path) -> None:
    """A `recycle_when` that can't be imported is said at the start, with the code for a bad configuration."""
    prepare(tmp_path)
    running = start(arguments("--recycle-when", "judge:enough"), directory=tmp_path, env=ENV)
    assert running.wait() == 5
    told = "recycle_when = 'judge:enough': can't be imported: ModuleNotFoundError: No module named 'judge'\n"
    assert running.stderr.endswith(told), "nothing of the user's has run: there are no frames to show"


FUNCTIONS = {
    "recycle_when": ("--recycle-when", 5),
    "setup": ("--setup", 5),
    "warm_up": ("--warm-up", 3),
    "ecv.validator": ("--ecv-validator", 3),
}
"""Options that name a function of the user's: the flag, and the exit code where it can't be used."""


@pytest.mark.parametrize("option", FUNCTIONS)
def test_a_function_whose_module_raises(start: Callable[..., Running], tmp_path: Path, option: str) -> None:
    """The traceback of an option's module has the frames of that module, and none of ours or of the import machinery."""
    prepare(tmp_path)
    flag, code = FUNCTIONS[option]
    (tmp_path / "broken.py").write_text("def fails():\n    return 1 // 0\n\nfails()\n")
    monitored = ("--ecv-monitor", "/") if option == "ecv.validator" else ()
    running = start(arguments(flag, "broken:fails", *monitored), directory=tmp_path, env=ENV)
    assert running.wait() == code
    frames = re.findall(r'File "(.*)", line (\d+)', running.stderr)
    assert frames == [(str(tmp_path / "broken.py"), "4"), (str(tmp_path / "broken.py"), "2")], running.stderr
    assert "ZeroDivisionError" in running.stderr


def test_recycle_during_a_reload(site: Site) -> None:
    """Asked for while a reload waits for a long request, a recycle of another worker is done at once."""
    running = site()
    with Connection(running.address) as connection:
        connection.send("/held/a")
        busy = running.held("a")
        running.signal(signal.SIGHUP)
        wait_until(lambda: {row["generation"] for row in running.workers()} == {2}, "the new generation serves")
        wait_until(lambda: [row["pid"] for row in running.workers("draining")] == [busy], "the other one has left")
        (slot,) = {0, 1} - {row["slot"] for row in running.workers("draining")}
        before = by_slot(running)
        running.ask("recycle", worker=slot)
        assert by_slot(running)[slot] != before[slot]
        running.release()
        assert connection.receive().body == b"one"
    wait_until(lambda: events(running, "reloaded"), "the reload ends")
    successor_first(running)


def test_one_retirement_at_a_time_in_a_slot(site: Site) -> None:
    """A slot whose last worker is still leaving isn't rolled again before it has left."""
    running = site()
    with Connection(running.address) as connection, ThreadPoolExecutor() as pool:
        connection.send("/held/a")
        busy = running.held("a")
        slot = next(row["slot"] for row in running.workers() if row["pid"] == busy)
        first = pool.submit(running.ask, "recycle", worker=slot)
        running.draining()
        successor = by_slot(running)[slot]
        second = pool.submit(running.ask, "recycle", worker=successor)
        running.ask("recycle", worker=1 - slot)
        assert by_slot(running)[slot] == successor
        assert not second.done()
        running.release()
        assert connection.receive().body == b"one"
        assert first.result() == second.result() == {"replaced": 1}
    assert by_slot(running)[slot] not in (busy, successor)
    successor_first(running)
