"""A site whose code the tests of reload and recycle rewrite, started so that its events stand in a file."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path
from typing import Any

from tests.system.harness import ROOT, Running, command, wait_until

SITE = """
    import asyncio, os, time
    from pathlib import Path
    from tests.system.apps.sample_apps import answer

    VERSION = {version!r}

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            {startup}
            await send({{"type": "lifespan.startup.complete"}})
            await receive()
            await send({{"type": "lifespan.shutdown.complete"}})
        elif scope["type"] == "http":
            if scope["path"].startswith("/held/"):
                Path("held.%s.%d" % (scope["path"][6:], os.getpid())).touch()
                while not Path("release").exists():
                    await asyncio.sleep(0.01)
            await answer(send, VERSION.encode())
"""
SETUP = """
    import msgspec

    def setup(cluster):
        @cluster.on("*")
        def note(event):
            with open("events", "ab") as file:
                file.write(msgspec.json.encode({"name": event.name, **msgspec.structs.asdict(event)}) + b"\\n")
"""
ENV = {"PYTHONPATH": str(ROOT)}


def write(directory: Path, version: str, *, startup: str = "pass", first: str = "") -> None:
    """Write the code of a version.

    Args:
        startup: a statement of the lifespan's startup.
        first: what stands before everything else.
    """
    text = textwrap.dedent(SITE).format(version=version, startup=startup)
    (directory / "site_of_test.py").write_text(first + "\n" + text)


def arguments(*options: str, workers: int | None = 2) -> list[str]:
    """The command line that serves it."""
    argv = command(
        "run", "site_of_test:app", "--monitor-port", "0", "--bind", "127.0.0.1:0", "--setup", "setup_of_test:setup"
    )
    return [*argv, *options, *([] if workers is None else ["--workers", str(workers)])]


def prepare(directory: Path) -> None:
    """Write version one, and what notes the events."""
    write(directory, "one")
    (directory / "setup_of_test.py").write_text(textwrap.dedent(SETUP))


def events(running: Running, *names: str) -> list[dict[str, Any]]:
    """The events of these names so far, in their order."""
    file = running.directory / "events"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in found if event["name"] in names]


def pids(running: Running) -> set[int]:
    """The workers that serve."""
    return {row["pid"] for row in running.workers()}


def replaced(running: Running, old: set[int], workers: int = 2) -> bool:
    """Whether all that serve are new."""
    found = pids(running)
    return len(found) == workers and not found & old


def wait_replaced(running: Running, old: set[int], workers: int = 2) -> set[int]:
    """Wait for that; the new pids."""
    wait_until(lambda: replaced(running, old, workers), lambda: f"all are new:\n{running.stderr}")
    return pids(running)


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    return not os.path.exists(f"/proc/{pid}")
