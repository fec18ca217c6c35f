"""Each way to name an app, with a master and without, and whoever imports it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.clients import get
from tests.system.harness import Running, command, free_port, wait_until

Start = Callable[..., Running]
APP = """
def {name}(environ, start_response):
    start_response("200 OK", [])
    return [{said}]
"""
FILES = {
    "shop/__init__.py": "",
    "shop/says.py": "TEXT = b'package'\n",
    "shop/web.py": "from .says import TEXT\n" + APP.format(name="app", said="TEXT"),
    "proj/wsgi.py": APP.format(name="application", said="b'usual'"),
    "made.py": "def create_app(text):\n    "
    + APP.format(name="app", said="text.encode()").strip().replace("\n", "\n    ")
    + "\n    return app\n",
}
TARGETS = {"shop/web.py:app": b"package", "proj.wsgi": b"usual", "made:create_app('called')": b"called"}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("how", ["--preload", "--no-preload", "--no-cluster"])
def test_ways_to_name_an_app(start: Start, site: Path, how: str) -> None:
    """A file in a package, a module alone, and a factory that is called: each app answers, and `check` finds it."""
    ports = [free_port() for _ in TARGETS]
    pairs = ", ".join(f'["{target}", "127.0.0.1:{port}"]' for target, port in zip(TARGETS, ports, strict=True))
    (site / "cluster2.toml").write_text(f"apps = [{pairs}]\nmonitor_port = 0\n")
    running = start(command("run", how, *([] if how == "--no-cluster" else ["--workers", "1"])), directory=site)
    wait_until(lambda: "logs in" in running.stderr, lambda: running.stderr)
    for port, said in zip(ports, TARGETS.values(), strict=True):
        assert get(("127.0.0.1", port)).body == said
    checked = running.cli("check")
    assert checked.returncode == 0
    for target in TARGETS:
        assert f"ok: wsgi app {target} on " in checked.stdout
    assert running.shutdown() == 0
