"""A whole cluster with few descriptors: what it can't afford is refused, and nothing is dropped by what it can."""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.counting import Mix
from tests.system.harness import ROOT, Running, command
from tests.system.rolling import APP, go_on, nothing_dropped

LIMITED = "import os, resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_NOFILE, (n, n)); \
os.execv(sys.argv[2], sys.argv[2:])"


def limited(start: Callable[..., Running], limit: int, *options: str) -> Running:
    """Start a cluster that may have so many descriptors in each process."""
    site = command("run", f"{APP}:app", "--bind", "127.0.0.1:0", "--monitor-port", "0", "--drain-idle", "1s", *options)
    return start([sys.executable, "-c", LIMITED, str(limit), *site])


def test_few_descriptors(start: Callable[..., Running]) -> None:
    """A scale beyond the limit is refused with the number that suffices; with that many workers nothing is dropped."""
    limit = 64
    running = limited(start, limit, "--workers", "2").ready()
    with Mix(running.address, clients=8, think=0.02) as mix:
        go_on(mix)
        refused = running.cli("scale", "60")
        assert refused.returncode == 1
        found = re.search(rf"RLIMIT_NOFILE is {limit}: .* ask for at most (\d+)$", refused.stderr.strip())
        assert found is not None, refused.stderr
        assert running.status()["wanted"] == 2
        for verb, params in (("scale", {"workers": int(found[1])}), ("recycle", {"worker": 0}), ("reload", {})):
            running.ask(verb, **params)
            go_on(mix)
    nothing_dropped(mix.seen)
    assert "Traceback" not in running.stderr
    assert running.shutdown() == 0


def test_a_start_beyond_the_limit(start: Callable[..., Running], tmp_path: Path) -> None:
    """It ends with one line that says how many descriptors are needed, and how many workers the limit suffices for."""
    running = limited(start, 128, "--workers", "100")
    assert running.wait() == 5
    (error,) = [line for line in running.stderr.splitlines() if line.startswith("cluster2: error: ")]
    assert re.search(r"100 workers .* need \d+ descriptors .* RLIMIT_NOFILE is 128: .* ask for at most \d+$", error)


FEW = 64
LOWERS = """
import resource
from cluster2 import worker
from tests.system.apps.rolling_app import app

@worker.on_start
def lower():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, hard))
"""


@pytest.mark.parametrize("how", ["inherited", "lowered by the app"])
@pytest.mark.parametrize("keeper", ["--keeper", "--no-keeper"])
def test_more_clients_than_descriptors(start: Callable[..., Running], tmp_path: Path, keeper: str, how: str) -> None:
    """Clients that a worker has no descriptors for wait in the accept queue; none is closed, and the log says why they wait."""
    options = ("--workers", "1", keeper)
    if how == "inherited":
        running = limited(start, FEW, *options)
    else:
        (tmp_path / "lowers.py").write_text(LOWERS.replace("FEW", str(FEW)))
        site = command("run", "lowers.py:app", "--bind", "127.0.0.1:0", "--monitor-port", "0", *options)
        running = start(site, directory=tmp_path, env={"PYTHONPATH": str(ROOT)})
    running.ready(1)

    async def ask(number: int) -> bytes:
        reader, writer = await asyncio.open_connection(*running.address)
        writer.write(f"GET /small/{number} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        try:
            return await asyncio.wait_for(reader.readline(), 30)
        finally:
            writer.close()

    async def ask_all() -> list[bytes | BaseException]:
        return await asyncio.gather(*(ask(number) for number in range(200)), return_exceptions=True)

    for _ in range(3):
        answers = asyncio.run(ask_all())
        assert set(answers) == {b"HTTP/1.1 200 OK\r\n"}, Counter(map(str, answers))
    told = f"no more connections can be taken: RLIMIT_NOFILE is {FEW}; new connections wait, or go to another worker; raise the limit"
    assert running.stderr.count(told) == 1
    assert "Too many open files" not in running.stderr
    assert running.shutdown() == 0
