"""The lowest versions of its dependencies that cluster2 admits work, and it admits those that common apps need."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.system.harness import ROOT, clean_environment

pytestmark = pytest.mark.soak
TOOLS = [
    "pytest>=9",
    "pytest-timeout",
    "hypothesis",
    "httpx",
    "trustme",
    "anyio",
    "h2",
    "asgiref",
    "h11",
    "pyyaml",
    "fastapi",
    "flask",
    "django",
]
"""What the tests below need."""
SELECTED = [
    *(f"tests/unit/{folder}" for folder in ("cli", "engines/http", "processes/monitor", "processes/master/messaging")),
    *("tests/unit/runtime/test_control_client.py", "tests/unit/test_cluster_api.py"),
    *("tests/unit/processes/master/control", "tests/unit/processes/test_places.py"),
    *("tests/unit/protocol/test_messages.py", "tests/unit/engines/wsgi/test_bridge.py"),
    *(
        "tests/system/monitor/test_monitor.py",
        "tests/system/starting/test_places.py",
        "tests/system/starting/test_serve.py",
    ),
]
"""Tests of everything that a dependency is used for."""
BESIDE = {
    "tests/unit/engines/http/test_tasks.py::test_structured_cancellation": "it asks for anyio 4, and that FastAPI for 3",
    "tests/unit/engines/http/test_websocket.py": "its client came with websockets 13",
    "tests/unit/engines/http/test_edges.py::test_however_split[lengths: spaces around a length-asgi]": "httptools < 0.8 refuses it",
    "tests/unit/engines/http/test_edges.py::test_however_split[lengths: spaces around a length-wsgi]": "httptools < 0.8 refuses it",
    "tests/unit/engines/http/test_websocket_session.py::test_the_apps_own_response[False-3]": "the client of 12 can't read it",
    "tests/unit/engines/http/test_websocket_session.py::test_the_apps_own_response[False-2]": "the client of 12 can't read it",
}
"""Of these, what can't be run with the lowest versions, or is refused by them, and why."""


class Environment:
    """A virtual environment."""

    def __init__(self, place: Path) -> None:
        self.python = str(place / "bin" / "python")
        subprocess.run([sys.executable, "-m", "venv", place], check=True, timeout=300)
        self.install("pip>=25.1")

    def install(self, *wanted: str) -> None:
        """Install this, or say what pip said."""
        self.run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted)

    def run(self, *arguments: str, timeout: float = 1800) -> str:
        """Run its Python, which must end well; return its output."""
        done = subprocess.run(
            [self.python, *arguments],
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stdout[-10_000:]
        return done.stdout


def lowest() -> list[str]:
    """Return the dependencies, each at its lowest version."""
    declared: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [each.replace(">=", "==") for each in declared]


def test_the_lowest_versions(tmp_path: Path) -> None:
    """With the lowest version of each dependency the tests of what it is used for pass."""
    made = Environment(tmp_path / "venv")
    made.install("--editable", ".", *lowest(), *TOOLS)
    left_out = [word for each in BESIDE for word in ("--deselect", each)]
    selected = [each for each in SELECTED if each not in BESIDE]
    options = ["-q", "-p", "no:cacheprovider", "-k", "not granian"]
    made.run("-m", "pytest", *options, *left_out, *selected)


@pytest.mark.parametrize("wanted", ["fastapi==0.115.0", "fastapi==0.100.0", "flask==2.3.0 click==8.1.3"])
def test_beside_what_apps_need(tmp_path: Path, wanted: str) -> None:
    """Versions that apps ask for can be installed beside it, and an app of theirs is found to be one; the monitor answers."""
    made = Environment(tmp_path / "venv")
    made.install(".", *wanted.split())
    assert wanted.split()[0] in made.run("-m", "pip", "freeze").lower()
    if wanted.startswith("fastapi"):
        text = "from fastapi import FastAPI\napp = FastAPI()\n"
    else:
        text = "from flask import Flask\napp = Flask(__name__)\n"
    (tmp_path / "main.py").write_text(f"{text}@app.get('/')\ndef index():\n    return 'hello'\n")
    (tmp_path / "drive.py").write_text(
        "import asyncio, urllib.request\n"
        "from cluster2 import Cluster\n"
        "def read(address, path='/'):\n"
        "    return urllib.request.urlopen(f'http://{address}{path}', timeout=60).read().decode()\n"
        "async def main():\n"
        f"    place = {os.fspath(tmp_path)!r}\n"
        "    cluster = Cluster(host='127.0.0.1', port=0, workers=1, pids=f'{place}/pids', chdir=place)\n"
        "    async with cluster.running('main:app') as running:\n"
        "        print(await asyncio.to_thread(read, running.addresses[0]))\n"
        "        monitor = (await asyncio.to_thread(cluster.status))['monitor']['address']\n"
        "        print(await asyncio.to_thread(read, monitor, '/metrics'))\n"
        "asyncio.run(main())\n"
    )
    said = made.run(str(tmp_path / "drive.py"))
    assert "hello" in said
    assert "cluster2_workers_wanted 1.0" in said
