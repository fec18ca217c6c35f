"""How a process that doesn't come to serve ended, and in which phase, is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.conftest import Serve

APP = """
import os, signal, sys
from cluster2 import worker
{at_import}
@worker.on_start
def begin():
    {at_start}
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        {in_lifespan}
        await send({{"type": "lifespan.startup.complete"}})
        await receive()
        await send({{"type": "lifespan.shutdown.complete"}})
"""
EXIT, FAULT, LEAVE = "os._exit(9)", "os.kill(os.getpid(), signal.SIGSEGV)", "sys.exit(4)"
DEATHS = {
    "exit at import": ({"at_import": EXIT}, "(exit code 9 while it imported the app)"),
    "fault at import": ({"at_import": FAULT}, "(SIGSEGV while it imported the app)"),
    "sys.exit at import": ({"at_import": LEAVE}, "it raised SystemExit: 4"),
    "exit at start": ({"at_start": EXIT}, "(crash: exit code 9 during startup)"),
    "sys.exit at start": ({"at_start": LEAVE}, "a hook of worker.on_start raised SystemExit: 4"),
    "exit in the lifespan": ({"in_lifespan": EXIT}, "(crash: exit code 9 during startup)"),
    "exit with 0 in the lifespan": ({"in_lifespan": "os._exit(0)"}, "exit code 0 during startup)"),
    "fault in the lifespan": ({"in_lifespan": FAULT}, "(crash: SIGSEGV during startup)"),
    "sys.exit in the lifespan": ({"in_lifespan": LEAVE}, "the app's lifespan failed at startup: SystemExit: 4"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("code", "told"), DEATHS.values(), ids=DEATHS)
def test_a_death_before_it_serves(run: Serve, tmp_path: Path, code: dict[str, str], told: str) -> None:
    """The error of a start that fails says by which signal or exit code a process ended, and during which phase."""
    text = APP.format(**{"at_import": "", "at_start": "pass", "in_lifespan": "pass"} | code)
    (tmp_path / "dying.py").write_text(text)
    running = run("dying:app", "--restart-limit", "1", workers=1, directory=tmp_path)
    assert running.wait() == 3, running.stderr
    assert told in running.stderr, running.stderr
