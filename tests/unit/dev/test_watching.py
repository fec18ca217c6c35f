"""The files that development mode watches."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from watchfiles import Change

from cluster2.cli.dev_commands import _without_reload_flags
from cluster2.dev.watching import SourceFilter, roots
from cluster2.processes.zygote import imported_sources


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("app.py", True),
        ("package/part.py", True),
        ("templates/page.html", True),
        ("notes.txt", False),
        ("logs/worker.0.log", False),
        ("logs/report.py", False),
        ("logs.py", True),
        ("pids_of_shops/app.py", True),
        ("pids/master.1.pid", False),
        (".venv/lib/site.py", False),
        ("package/__pycache__/part.cpython-311.pyc", False),
        ("package/__pycache__/odd.py", False),
        ("generated/code.py", False),
        ("package/part_test.py", False),
        (".git/hooks/x.py", False),
        ("cluster2.toml", True),
        ("other.toml", False),
        ("secrets/app.env", True),
    ],
)
def test_which_changes_count(tmp_path: Path, path: str, counts: bool) -> None:
    """Sources, included patterns and the files of options count; logs, pids, caches and what is excluded do not."""
    (tmp_path / "generated").mkdir()
    found = SourceFilter(
        ["*.html"],
        ["*_test.py", str(tmp_path / "generated")],
        never=[str(tmp_path / "logs"), str(tmp_path / "pids")],
        always=[str(tmp_path / "cluster2.toml"), str(tmp_path / "secrets/app.env")],
    )
    assert found(Change.modified, str(tmp_path / path)) is counts


def test_roots(tmp_path: Path) -> None:
    """Folders below another one, and those that do not exist, are left out; files stand for themselves."""
    for folder in ("a/b", "ab", "other"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "a/in.env").touch()
    (tmp_path / "out.env").touch()
    found = roots(
        [str(tmp_path / each) for each in ("a", "a/b", "ab", "gone", "a/../a")],
        [str(tmp_path / each) for each in ("a/in.env", "out.env", "gone.env")],
    )
    assert found == tuple(str(tmp_path / each) for each in ("a", "ab", "out.env"))


def module(name: str, file: str | None) -> ModuleType:
    """A module as an import leaves it."""
    made = ModuleType(name)
    made.__file__ = file
    return made


def test_folders_of_modules() -> None:
    """The folder of each package of the user's; none of the standard library, of installed ones, or of cluster2."""
    import json

    import click

    import cluster2

    modules = [
        module("site", "/srv/shop/site.py"),
        module("shop", "/srv/code/shop/__init__.py"),
        module("shop.db.models", "/srv/code/shop/db/models.py"),
        module("builtin", None),
        module("fast", "/srv/code/fast.so"),
        json,
        click,
        cluster2,
    ]
    assert imported_sources.folders(modules) == ["/srv/code/shop", "/srv/shop"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("app:app --reload -w 2", "app:app -w 2"),
        ("--reload-dir lib app:app --reload-include=*.html", "app:app"),
        ("app:app --reload-exclude x --port 1", "app:app --port 1"),
    ],
)
def test_flags_of_the_cluster(given: str, kept: str) -> None:
    """The cluster gets the arguments without those of development mode."""
    assert _without_reload_flags(given.split()) == kept.split()
