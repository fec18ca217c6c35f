"""Long streams end when their worker begins to drain: the recipes of docs/streams.md, on real clusters."""

from __future__ import annotations

import re
import threading
from http.client import HTTPResponse
from pathlib import Path

import pytest

from tests.system.clients import Connection
from tests.system.conftest import Serve
from tests.system.harness import ROOT, wait_until

HELPER, PLAIN, STARLETTE, SSE_STARLETTE, WSGI, HOOK = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs/streams.md").read_text(), re.DOTALL
)
GRANIAN = ("--engine", "granian")
QUICK = ("plain", "sse-starlette-granian", "wsgi-inline")
"""Cases that `make test` runs; `make soak` runs the others."""
CASES = {
    "plain": (PLAIN, ()),
    "starlette": (STARLETTE, ()),
    "sse-starlette": (SSE_STARLETTE, ()),
    "sse-starlette-granian": (SSE_STARLETTE, GRANIAN),
    "wsgi": (WSGI, ()),
    "wsgi-inline": (WSGI, ("--threads", "0")),
    "wsgi-granian": (WSGI, GRANIAN),
}
NOTED = """

@worker.on_drain
async def note():
    await asyncio.sleep(0)
    import pathlib
    pathlib.Path("drains").touch()


@worker.on_drain
def fails():
    raise LookupError("broken on purpose")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.soak) for name in CASES]
)
def test_a_reload_with_an_open_stream(run: Serve, tmp_path: Path, name: str) -> None:
    """A stream ends whole when its worker is replaced, long before drain_timeout; hooks run, and one that raises is logged."""
    text, options = CASES[name]
    (tmp_path / "site_of_streams.py").write_text(HELPER + text + HOOK + NOTED)
    bounds = ("--drain-timeout", "1h", "--drain-idle", "100ms")
    running = run("site_of_streams:app", *bounds, *options, workers=1, directory=tmp_path).ready(1)
    with Connection(running.address) as client:
        client.send()
        with HTTPResponse(client.socket) as answer:
            answer.begin()
            assert b"data: tick" in answer.readline()
            reload = threading.Thread(target=running.ask, args=("reload",))
            reload.start()
            answer.read()  # raises if the end is missing
            reload.join()
    wait_until(lambda: (tmp_path / "drains").exists(), "the hook has run")
    assert "of worker.on_drain raised" in running.stderr
    assert running.shutdown() == 0
