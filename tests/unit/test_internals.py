"""The design docs (docs/internals) name files, functions and methods that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import cluster2

PACKAGE = Path(cluster2.__file__).parent
ROOT = next(parent for parent in Path(__file__).parents if (parent / "mkdocs.yml").exists())
PAGES = sorted((ROOT / "docs" / "internals").glob("*.md"))
WRITTEN = [page for page in PAGES if page.name != "modules.md"]
"""All pages but the index of modules, which is generated (`test_reference`)."""


def names(node: ast.AST, within: str = "") -> Iterator[str]:
    """Yield what a module defines: `function`, `Class`, `Class.method`, `Class.attribute`, `CONSTANT`."""
    for each in ast.iter_child_nodes(node):
        match each:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield within + name
                if within:
                    yield from (f"{within}{own}" for own in attributes(each))
            case ast.ClassDef(name=name):
                yield within + name
                yield from names(each, f"{within}{name}.")
            case ast.Assign(targets=targets):
                yield from (within + target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield within + name
            case ast.If() | ast.Try():
                yield from names(each, within)


def attributes(method: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Yield the names of attributes that a method assigns to `self`."""
    for node in ast.walk(method):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


DEFINED = {
    str(path.relative_to(PACKAGE)): frozenset(names(ast.parse(path.read_text("utf-8"))))
    for path in PACKAGE.rglob("*.py")
}
CLASSES = {name for found in DEFINED.values() for name in found if "." not in name}
EVERYWHERE = frozenset().union(*DEFINED.values())


def text(page: Path) -> str:
    """Return a page on one line for each paragraph, so that a reference may be wrapped."""
    return page.read_text("utf-8").replace("\n", " ")


def references(page: Path) -> list[tuple[str, str]]:
    """Return what a page says of the code: pairs of a path and a name, which is empty where the file alone is named."""
    found = []
    for path, listed in re.findall(r"`(?!tests/)([\w/]+\.py)(?:: ([^`]+))?`", text(page)):
        found += [(path, name.strip()) for name in listed.split(",")]
    return found


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.stem)
def test_a_page_names_what_there_is(page: Path) -> None:
    """Each `path.py` and `path.py: name` leads to a file, and to something that is defined in it."""
    missing = [f"{path}: {name}" for path, name in references(page) if name not in {"", *DEFINED.get(path, ())}]
    missing += [path for path, _ in references(page) if path not in DEFINED]
    missing += [path for path in re.findall(r"`(tests/[\w/]+\.py)`", text(page)) if not (ROOT / path).exists()]
    assert not missing, f"{page.name} names what doesn't exist: {missing}"


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.stem)
def test_a_method_that_is_named_without_its_file_exists(page: Path) -> None:
    """Each `Class.name` of a class of ours is something that this class has."""
    alone = re.findall(r"`([A-Z][a-z]\w*\.\w+)`", text(page))
    missing = [each for each in alone if each.partition(".")[0] not in CLASSES or each not in EVERYWHERE]
    assert not missing, f"{page.name} names what doesn't exist: {missing}"


def test_the_walks_are_followed_to_the_code() -> None:
    """The pages name the code often enough for these tests to mean something."""
    assert len({path for page in WRITTEN for path, _ in references(page)}) > 100


def test_the_docs_say_nothing_of_a_page_that_was_removed() -> None:
    """No page and no docstring links to docs/design.md, which docs/internals has replaced."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *PACKAGE.rglob("*.py"), ROOT / "mkdocs.yml"]
    assert [str(file) for file in files if re.search(r"\bdesign\.md", file.read_text("utf-8"))] == []


def test_the_checks_find_what_is_missing() -> None:
    """A name that isn't there is noticed, and one that is defined in a class or assigned to `self` is found."""
    assert "HttpConnection.may_move" in DEFINED["engines/http/connection.py"]
    assert "HttpConnection.state" in DEFINED["engines/http/connection.py"]
    assert "plan" in DEFINED["core/planning.py"]
    assert "no_such_function" not in DEFINED["core/planning.py"]
