"""The tour of the house (docs/design.md) leads to every file of the package, and names what is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import cluster2

PACKAGE = Path(cluster2.__file__).parent
TOUR = (Path(__file__).parents[2] / "docs" / "design.md").read_text()
FILES = sorted(
    str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.stem not in ("__init__", "__main__")
)


def names(path: Path) -> set[str]:
    """What a file defines: functions, classes, constants."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


def told(file: str) -> bool:
    """By its path, by `file: name` or `file.name`, or, in a list of its folder, by its stem."""
    folder, _, name = file.rpartition("/")
    stem = name.removesuffix(".py")
    named = rf"`{file}|`{stem}\.\w|^.*`{folder}/.*`{stem}`" if folder else rf"`{file}|`{stem}[.`]|^{stem} |  {stem}\b"
    return re.search(named, TOUR, re.MULTILINE) is not None


def test_it_comes_by() -> None:
    """Each file is told of."""
    assert not told("worker/attic.py")
    assert [file for file in FILES if not told(file)] == [], "tell in docs/design.md what these are for"


def test_it_names_what_is_there() -> None:
    """Each `path: name` leads to a file, and to something that is defined there."""
    for path, what in re.findall(r"`([\w/]+\.py): ([^`]+)`", TOUR.replace("\n", " ")):
        assert (PACKAGE / path).exists(), path
        for name in re.findall(r"\w+", what):
            assert name in names(PACKAGE / path), f"{path}: {name}"


def test_it_names_files_that_are_there() -> None:
    """Each path of a file leads to one."""
    for path in re.findall(r"`(?:src/cluster2/)?([\w/]+\.py)`", TOUR):
        assert (PACKAGE / path).exists(), path
