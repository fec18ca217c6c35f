"""Tokens that come by the environment do what they are for, and no app gets to see them there."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.system.apps.secrets_app import SECRETS
from tests.system.harness import Running, command, free_port, listening_ports, wait_until

APP = Path(__file__).parents[1] / "apps" / "secrets_app.py"
MONITOR, SWITCH = SECRETS


def answer(address: tuple[str, int], path: str, token: str | None = None, method: str = "GET") -> tuple[int, str]:
    """Status and body."""
    connection = http.client.HTTPConnection(*address, timeout=60)
    connection.request(method, path, headers={} if token is None else {"authorization": f"Bearer {token}"})
    found = connection.getresponse()
    body = found.read().decode()
    connection.close()
    return found.status, body


def uses(running: Running, port: int) -> None:
    """Both tokens are asked for, and taken; the app sees none."""
    for address, path, token in (
        (running.address, "/ecv/enable", SWITCH),
        (("127.0.0.1", port), "/control/enable", MONITOR),
    ):
        assert answer(address, path, method="POST")[0] == 401
        assert answer(address, path, "another-token", method="POST")[0] == 401
        assert answer(address, path, token, method="POST")[0] in (200, 204, 503)
    assert answer(running.address, "/") == (200, "[]")
    for process in [psutil.Process(running.process.pid), *psutil.Process(running.process.pid).children(recursive=True)]:
        shown = Path(f"/proc/{process.pid}/environ").read_text(errors="replace")
        assert not any(secret in shown for secret in SECRETS), process.cmdline()


@pytest.mark.parametrize(
    "options", [(), ("--no-preload",), ("--no-cluster",), ("script",)], ids=["forked", "executed", "alone", "script"]
)
def test_an_app_sees_none(start: Callable[..., Running], options: tuple[str, ...]) -> None:
    """Neither when it is loaded first nor after a reload, which reads the options again."""
    port = free_port()
    env = {"CLUSTER2_MONITOR_PORT": str(port), "CLUSTER2_MONITOR_TOKEN": MONITOR, "CLUSTER2_ECV_TOKEN": SWITCH}
    own = free_port()
    alone = "--no-cluster" in options
    argv = command(
        "run", f"{APP}:app", *options, *(() if alone else ("-w", "1")), "--bind", f"127.0.0.1:{own}", "--ecv-control"
    )
    running = start([sys.executable, str(APP)] if options == ("script",) else argv, env=env)
    if alone:
        running.tcp_addresses = lambda: [("127.0.0.1", own)]  # type: ignore[method-assign]
        wait_until(lambda: {own, port} <= listening_ports(), lambda: f"it serves:\n{running.stderr}")
        uses(running, port)
        assert running.shutdown() == 0
        return
    uses(running.ready(1), port)
    running.ask("reload")
    uses(running.ready(1), port)
    assert "monitor_token" not in running.stderr  # no warning that it has changed
    assert SWITCH not in running.stderr + (running.directory / "stdout").read_text()


def test_check_shows_none(start: Callable[..., Running], tmp_path: Path) -> None:
    """The app that `check` imports sees none either."""
    (tmp_path / "peeking.py").write_text(
        f"import pathlib, sys\nsys.path.insert(0, {str(APP.parent)!r})\nfrom secrets_app import app, sights\n"
        f"pathlib.Path('seen').write_text(repr(sights()))\n"
    )
    env = {"CLUSTER2_MONITOR_TOKEN": MONITOR, "CLUSTER2_ECV_TOKEN": SWITCH, "CLUSTER2_ECV_CONTROL": "1"}
    done = start(command("check", "peeking:app"), directory=tmp_path, env=env)
    assert done.wait() == 0, done.stderr
    assert (tmp_path / "seen").read_text() == "[]"
