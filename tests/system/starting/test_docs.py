"""What README and docs say is run."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster2 import errors
from tests.system.clients import get
from tests.system.harness import ROOT, Running, command

SHOP = "from tests.system.apps.sample_apps import plain\n\napp = plain\n"


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of a document."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


SERVING = [
    *(
        (document, text)
        for document in ("README.md", "docs/index.md", "docs/ecv.md", "docs/messages.md", "docs/wsgi.md")
        for text in blocks(document, "python")
        if "listen" in text
    )
]


@pytest.fixture
def script(start: Callable[..., Running], tmp_path: Path) -> Callable[[str], Running]:
    """Start a snippet in a directory where `shop` is an app, on a free port of the loopback."""
    (tmp_path / "shop").mkdir(exist_ok=True)
    (tmp_path / "shop" / "__init__.py").write_text(SHOP)
    (tmp_path / "shop" / "main.py").write_text(SHOP)

    def script(text: str) -> Running:
        assert "port=3000" in text
        (tmp_path / "hello.py").write_text(
            text.replace("port=3000", "host='127.0.0.1', port=0, monitor_port=0, workers=2", 1)
        )
        return start([sys.executable, "hello.py"], directory=tmp_path, env={"PYTHONPATH": str(ROOT)})

    return script


@pytest.mark.parametrize(
    "text", [text for _, text in SERVING], ids=[f"{name}-{at}" for at, (name, _) in enumerate(SERVING)]
)
def test_serving_snippet(script: Callable[[str], Running], text: str) -> None:
    """Each snippet that serves does so, and the one for other processes ends it."""
    running = script(text.replace(", workers=4", "")).ready()
    assert get(running.address).status == 200
    (running.directory / "other.py").write_text(
        next(each for each in blocks("README.md", "python") if "status()" in each)
    )
    other = Running([sys.executable, "other.py"], running.directory)
    assert other.wait() == 0
    other.close()
    assert running.wait() == 0
    assert "'state': 'ready'" in (running.directory / "stdout").read_text()


def test_commands(start: Callable[..., Running]) -> None:
    """Each command of the tour in the README exists, with the flags that are shown."""
    tour = re.findall(r"^cluster2 (\w+)(.*?)#", "".join(blocks("README.md", "sh")), re.MULTILINE)
    assert len(tour) == 9
    for name, words in tour:
        running = start(command(name, "--help"))
        assert running.wait() == 0
        helped = (running.directory / "stdout").read_text()
        for flag in re.findall(r"--[\w-]+", words):
            assert flag in helped


@pytest.mark.parametrize("document", ["README.md", "docs/signals.md"])
def test_exit_codes(document: str) -> None:
    """Each exit code that an error has is told, and no other."""
    text = (ROOT / document).read_text()
    told = {
        int(code)
        for code in re.findall(r"(?:^\| |· |^)(\d)(?: \| | )", text[text.lower().index("exit code") :], re.MULTILINE)
    }
    kinds = [errors.ClusterError, *errors.ClusterError.__subclasses__()]
    assert told == {0} | {kind.exit_code for kind in kinds}
