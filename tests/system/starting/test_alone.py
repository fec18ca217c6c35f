"""The end of a worker, with and without a master: what is cut off is closed, what hangs is bounded, signals are survived."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.system.clients import Connection, get
from tests.system.conftest import Serve
from tests.system.harness import Running, sample, wait_until

APPS = Path(__file__).parents[1] / "apps" / "ending_app.py"
ALONE = ("--no-cluster", "--drain-timeout", "200ms")


def serving(running: Running) -> str:
    """Wait until a process without a master serves its Unix socket; return the path."""
    wait_until(lambda: "serving on" in running.stderr or " serves " in running.stderr, lambda: running.stderr)
    return str(running.directory / "s")


@pytest.mark.parametrize("app", ["endless", "generator"])
@pytest.mark.parametrize("options", [(), ("--threads", "0"), ALONE], ids=["threads", "inline", "alone"])
def test_what_is_cut_off_is_closed(run: Serve, app: str, options: tuple[str, ...]) -> None:
    """The body of a WSGI response that is cut off at drain_timeout is closed, as PEP 3333 demands."""
    alone = options == ALONE
    bound = () if alone else ("--drain-timeout", "200ms")
    running = run(f"{APPS}:{app}", *options, *bound, bind=("unix:s",), workers=None if alone else 1)
    path = serving(running) if alone else str(running.ready(1).directory / "s")
    with Connection(path) as client:
        client.send()
        running.held("body")
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    assert (running.directory / "closed.body").exists()
    assert "drain_timeout (0.2 s) is over: reset 1 connection with 1 request under way: /" in running.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("app", "options"), [("holds_the_loop", ("--threads", "0")), ("never_stops", ())])
def test_an_end_that_hangs_is_bounded(run: Serve, app: str, options: tuple[str, ...]) -> None:
    """Without a master, too, a handler that holds the loop or a shutdown that hangs is ended; the stacks show where it was."""
    running = run(f"{APPS}:{app}", *ALONE, *options, bind=("unix:s",), workers=None)
    with Connection(serving(running)) as client:
        client.send()
        running.held("loop")
        running.signal(signal.SIGTERM)
        assert running.wait() == 1
    assert "(most recent call first)" in running.stderr
    assert app == "never_stops" or "in holds_the_loop" in running.stderr


def test_a_hook_that_exits(run: Serve) -> None:
    """A hook of the end that raises SystemExit is logged; the app is stopped all the same, and the exit code tells."""
    running = run(f"{APPS}:exits_in_a_hook", *ALONE, bind=("unix:s",), workers=None)
    serving(running)
    running.signal(signal.SIGTERM)
    assert running.wait() == 1
    assert (running.directory / "stopped.lifespan").exists()
    assert "of worker.on_stop raised" in running.stderr


def test_where_it_serves_and_what_needs_a_master(run: Serve) -> None:
    """A line says where it serves, with the port that was picked; one names the options that need a master, and their sources."""
    options = ("--workers", "4", "--memory-threshold", "1GiB", "--keeper", "--request-threshold", "0")
    running = run(sample("plain"), *ALONE, *options, workers=None)
    line = wait_until(lambda: re.search(r"serving on 127\.0\.0\.1:(\d+)", running.stderr), lambda: running.stderr)
    assert get(("127.0.0.1", int(line[1]))).body == b"hello"
    assert (
        "without a master these options have no effect: workers = 4 (flag --workers), memory_threshold"
        in running.stderr
    )
    assert "keeper = true (flag --keeper)\n" in running.stderr
    assert "request_threshold" not in running.stderr
    assert running.shutdown() == 0


def test_signals_that_need_a_master(run: Serve) -> None:
    """HUP, USR2, TTIN and TTOU neither end nor stop a process without a master; each is logged."""
    running = run(sample("plain"), *ALONE, bind=("unix:s",), workers=None)
    path = serving(running)
    for name in ("HUP", "USR2", "TTIN", "TTOU"):
        os.kill(running.process.pid, getattr(signal, f"SIG{name}"))
        wait_until(lambda name=name: f"SIG{name} has no effect" in running.stderr, f"{name} is logged")  # type: ignore[misc]
    assert get(path).body == b"hello"
    assert running.shutdown() == 0
