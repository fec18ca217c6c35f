"""Tests of scripts/code_stats.py, with a small tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from scripts.prose import ROOT

FILES = {
    "README.md": "Somebody reads; `who` writes.\n",
    "src/cluster2/__init__.py": "",
    "src/cluster2/one.py": 'from .a import two\n\nTHREE = FOUR = 1  # a comment\n\n\nclass Name:\n    """A class; a name."""\n',
    "src/cluster2/a/__init__.py": "",
    "src/cluster2/a/two.py": "from .. import one\n\n\ndef _four() -> None:\n    class Name: ...\n",
    "src/cluster2/one/one.py": "",
}
FIGURES = {
    "files in `src`": "5",
    "lines": "12",
    "lines in docstrings": "1",
    "lines with a comment": "1",
    "lines of a function: median / p90 / max": "2 / 2 / 2",
    "class names defined more than once": "1 (Name)",
    "module names defined more than once": "1 (one)",
    "module-level names without an underscore": "3",
    "import circles, `TYPE_CHECKING` included": "1 (a.two one)",
    "words of docs": "4",
    "words of docstrings": "4",
}


def test_figures(tmp_path: Path) -> None:
    """The table has a row for each figure and a column for each tree."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = [sys.executable, "-m", "scripts.code_stats", str(tmp_path), str(tmp_path)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines()[2:]]
    assert {name: value for name, value, _ in rows if name in FIGURES} == FIGURES
    assert all(value == again for _, value, again in rows)
    after_docs = rows[[name for name, *_ in rows].index("words of docs") + 1 :]
    assert after_docs[0][1:] == ["250.0", "250.0"]
    assert after_docs[1][1:] == ["250.0", "250.0"]
