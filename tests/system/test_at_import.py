"""What an app leaves behind at import: workers can do without it, or the cluster says so."""

from __future__ import annotations

import ctypes.util
import os
import signal

import pytest

from tests.system.clients import get
from tests.system.conftest import Serve
from tests.system.harness import ROOT, Running, wait_until

APP = "tests.system.import_app:"


@pytest.mark.skipif(ctypes.util.find_library("gomp") is None, reason="there is no libgomp")
@pytest.mark.parametrize("options", [(), ("--no-preload",)], ids=["preload", "no preload"])
def test_openmp(run: Serve, options: tuple[str, ...]) -> None:
    """OpenMP that was used at import works in requests; a warning says what that costs, unless it was asked for."""
    running = run(APP + "openmp", *options, workers=1, env={"PYTHONPATH": str(ROOT), "AT_IMPORT": "openmp"}).ready(1)
    assert get(running.address).body == b"%d" % running.workers()[0]["pid"]
    assert ("importing the app started threads (OpenMP, libgomp" in running.stderr) == (not options)
    assert running.shutdown() == 0
    assert ("warning" in running.stderr) == (not options)


def numbers(running: Running, workers: int) -> dict[int, set[bytes]]:
    """The first random numbers of so many workers, by pid."""
    found: dict[int, set[bytes]] = {}

    def ask() -> bool:
        pid, *drawn = get(running.address).body.split()
        found.setdefault(int(pid), set(drawn))
        return len(found) >= workers

    wait_until(ask, "each worker answers")
    return found


def test_random_numbers(run: Serve) -> None:
    """NumPy's global generator and Python's draw other numbers in each worker, and in one that replaces another."""
    running = run(APP + "numpys", workers=2, env={"PYTHONPATH": str(ROOT), "AT_IMPORT": "numpy"}).ready(2)
    found = numbers(running, 2)
    os.kill(next(iter(found)), signal.SIGKILL)
    wait_until(lambda: len({row["pid"] for row in running.workers()} - set(found)) == 1, "there is another worker")
    running.ready(2)
    found |= numbers(running, 2)
    drawn = [number for each in found.values() for number in each]
    assert len(drawn) == len(set(drawn)) == 6, found
    assert running.shutdown() == 0
