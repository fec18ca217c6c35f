"""The design docs (docs/internals) name files, functions and methods that exist."""

from __future__ import annotations

import ast
import re
import sys
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


# Dotted names in docstrings

EXTERNAL = frozenset({"gunicorn", "msgspec", "numpy", "websockets"})
"""Packages that docstrings name and that aren't ours."""
OTHER_NAMES = frozenset({"cpu", "ecv", "fs", "http", "kernel", "lifespan", "net", "websocket", "wsgi"})
"""First parts of dotted names that are no Python: sysctls, cgroup files, options, ASGI messages, keys of WSGI's environ."""
FILES = re.compile(r"\.(py|toml|lock|sock|json)$|^(tool|cluster2)\.(cluster2|app)$")
"""Names of files and loggers, and the table of pyproject.toml."""
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def tails(module: str) -> Iterator[str]:
    """Yield the names by which a docstring may call a module: `linux.signals`, `signals`."""
    parts = module.split(".")
    yield from (".".join(parts[start:]) for start in range(len(parts)))


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a module imports, as a module of the API does."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(names=found):
                yield from (each.asname or each.name for each in found)


TREES = {module: ast.parse(path.read_text("utf-8")) for module, path in MODULES.items()}
BY_TAIL: dict[str, set[str]] = {}
"""The names that the modules define, by each name that the modules may be called. Packages have none of their own."""
for _module, _tree in TREES.items():
    for _tail in tails(_module):
        BY_TAIL.setdefault(_tail, set()).update(names(_tree), imported(_tree))
PACKAGES = {module.partition(".")[0] for module in MODULES if "." in module} - OTHER_NAMES
OURS = {part for module in MODULES for part in module.split(".")}


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Yield the docstrings of a module, its classes, functions, attributes and constants."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield text


def locals_of(tree: ast.Module) -> set[str]:
    """Return the variables and parameters of a module. A docstring may name their attributes."""
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return found | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}


def leads_somewhere(reference: str, local: set[str]) -> bool:
    """Return True if a dotted name in a docstring is that of a module of ours, of something in one, or of something else."""
    reference = reference.removeprefix("cluster2.")
    if reference in BY_TAIL:
        return True
    parts = reference.split(".")
    splits = [(".".join(parts[:at]), ".".join(parts[at:])) for at in range(1, len(parts))]
    if any(name in BY_TAIL.get(module, ()) for module, name in splits):
        return True
    first = parts[0]
    # A variable may have the name of a module (`session`), but none is taken for a package at the top (`config`).
    known = first in EXTERNAL | OTHER_NAMES | (local - PACKAGES) or (
        first in sys.stdlib_module_names and first not in OURS
    )
    return known or FILES.search(reference) is not None


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_name_what_there_is(module: str) -> None:
    """Each dotted name in a docstring (`linux.signals`, `planning.plan`) leads to a module, or to something in one."""
    local = locals_of(TREES[module])
    found = {each for text in docstrings(TREES[module]) for each in re.findall(r"`([a-z_]\w*(?:\.\w+)+)`", text)}
    missing = sorted(each for each in found if not FILES.search(each) and not leads_somewhere(each, local))
    assert not missing, f"{module} names what doesn't exist: {missing}"


def test_a_dotted_name_that_leads_nowhere_is_found() -> None:
    """A module or a function that was renamed is noticed, and one that exists is not."""
    assert leads_somewhere("linux.steered_group", set())
    assert leads_somewhere("core.planning.plan", set())
    assert leads_somewhere("worker.on_start", set())
    assert not leads_somewhere("linux.steering", set())
    assert not leads_somewhere("config.load", {"config"})
    assert not leads_somewhere("planning.no_such_function", set())
    assert not leads_somewhere("nursery.LEAVE_GRACE_S", set())


def test_the_checks_find_what_is_missing() -> None:
    """A name that isn't there is noticed, and one that is defined in a class or assigned to `self` is found."""
    assert "HttpConnection.may_move" in DEFINED["engines/http/connection.py"]
    assert "HttpConnection.state" in DEFINED["engines/http/connection.py"]
    assert "plan" in DEFINED["core/planning.py"]
    assert "no_such_function" not in DEFINED["core/planning.py"]
