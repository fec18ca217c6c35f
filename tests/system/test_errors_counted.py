"""Requests that fail in the app are counted, in each kind of app."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.clients import get
from tests.system.harness import Running, wait_until

APPS = """
async def asgi(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/bad":
        raise LookupError("no such thing")
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

def wsgi(environ, start_response):
    if environ["PATH_INFO"] == "/bad":
        raise LookupError("no such thing")
    start_response("200 OK", [("Content-Length", "0")])
    return [b""]

async def rsgi(scope, protocol):
    if scope.path == "/bad":
        raise LookupError("no such thing")
    protocol.response_empty(200, [])
"""


@pytest.mark.parametrize(
    ("app", "engine"),
    [("asgi", "http"), ("wsgi", "http"), ("asgi", "granian"), ("wsgi", "granian"), ("rsgi", "granian")],
)
def test_errors(run: Callable[..., Running], tmp_path: Path, app: str, engine: str) -> None:
    """The heartbeat's total of errors is the number of requests in which the app raised."""
    (tmp_path / "failing.py").write_text(
        APPS + "\ndef setup(cluster):\n    import json\n    from pathlib import Path\n"
        "    cluster.on('heartbeat', lambda event: Path('beat').write_text(json.dumps([event.errors, event.requests])))\n"
    )
    options = ("--engine", engine, "--setup", "failing:setup", "--heartbeat-interval", "0.2s")
    running = run(f"failing:{app}", *options, workers=1, directory=tmp_path).ready(1)
    for path in ("/bad", "/good", "/bad", "/bad"):
        assert get(running.address, path).status == (500 if path == "/bad" else 200)

    def told() -> bool:
        try:
            return json.loads((tmp_path / "beat").read_text()) == [3, 4]
        except (FileNotFoundError, ValueError):
            return False

    wait_until(told, lambda: f"3 of 4 failed; {(tmp_path / 'beat').read_text()}")
