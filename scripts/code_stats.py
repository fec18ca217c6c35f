"""Print figures on the readability of the code and its prose, as a Markdown table with a column for each tree.

Usage: python -m scripts.code_stats [ROOT ...]

A root is a checkout of the project (default: this one). To compare with another commit: `git worktree add DIR COMMIT`.
"""

from __future__ import annotations

import ast
import collections
import re
import statistics
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeGuard

import grimp

from scripts import prose

_PERSON = re.compile(r"\b(?:who|whom|whoever|somebody|anybody|everybody|nobody|he|him|his)\b", re.IGNORECASE)
_WORD = re.compile(rf"[\w{prose.CODE}](?:\S*[\w{prose.CODE}])?")


def figures(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each figure of a checkout."""
    paths = sorted((root / "src").rglob("*.py"))
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    total = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
    yield "files in `src`", f"{len(paths):,}"
    yield "lines", f"{total:,}"

    comments = sum(len(_comment_lines(path)) for path in paths)
    docstrings = sum(end - start + 1 for tree in trees.values() for start, end in _docstring_lines(tree))
    yield "lines in docstrings", f"{docstrings:,}"
    yield "lines with a comment", f"{comments:,}"
    yield "comments per 100 lines", f"{100 * comments / total:.1f}"

    lengths = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    yield "functions", f"{len(lengths):,}"
    p90 = lengths[len(lengths) * 9 // 10]
    yield "lines of a function: median / p90 / max", f"{statistics.median(lengths):.0f} / {p90} / {lengths[-1]}"

    classes = [node.name for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    modules = [path.stem for path in paths if not path.stem.startswith("__")]
    yield "class names defined more than once", _repeated(classes)
    yield "module names defined more than once", _repeated(modules)
    public = [name for tree in trees.values() for name in _module_level_names(tree) if not name.startswith("_")]
    yield "module-level names without an underscore", f"{len(public):,}"
    yield "import circles, `TYPE_CHECKING` included", _circles(root)

    docs = [path for name in ("README.md", "CONTRIBUTING.md", "docs") for path in _markdown(root / name)]
    for what, texts in (
        ("docs", _texts(docs, "docs")),
        ("docstrings", _texts(paths, "docstring")),
        ("comments", _texts(paths, "comment")),
        ("docs and docstrings", chain(_texts(docs, "docs"), _texts(paths, "docstring"))),
    ):
        text = "\n\n".join(texts)
        words = len(_WORD.findall(text)) or 1
        yield f"words of {what}", f"{words:,}"
        yield "… semicolons per 1,000 words", f"{1000 * text.count(';') / words:.1f}"
        yield (
            "… 'who', 'somebody', 'nobody' and the like per 1,000 words",
            f"{1000 * len(_PERSON.findall(text)) / words:.1f}",
        )


def _texts(paths: Iterable[Path], kind: str) -> Iterator[str]:
    return (paragraph.text for path in paths for paragraph in prose.paragraphs(path) if paragraph.kind == kind)


def _markdown(path: Path) -> list[Path]:
    return sorted(path.rglob("*.md")) if path.is_dir() else [path] if path.exists() else []


def _comment_lines(path: Path) -> set[int]:
    with path.open("rb") as file:
        return {token.start[0] for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT}


def _docstring_lines(tree: ast.Module) -> set[tuple[int, int]]:
    return {(node.lineno, node.end_lineno or node.lineno) for node in prose.docstrings(tree)}


def _module_level_names(tree: ast.Module) -> Iterator[str]:
    """Yield what a module defines, imports apart, also below `if` and `try`."""
    pending: list[ast.stmt] = list(tree.body)
    for statement in pending:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                yield from (node.id for target in targets for node in ast.walk(target) if _is_stored(node))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case _:
                pending += [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]


def _is_stored(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _repeated(names: Sequence[str]) -> str:
    counts = collections.Counter(names)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    return f"{len(repeated)}" + (f" ({', '.join(repeated)})" if repeated else "")


def _circles(root: Path) -> str:
    """Return the groups of modules that import each other, directly or through others of the group."""
    sys.path.insert(0, str(root / "src"))
    graph = grimp.build_graph("cluster2", cache_dir=None)
    del sys.path[0]
    reached = {module: graph.find_upstream_modules(module) for module in graph.modules}
    circles = set()
    for module in graph.modules:
        others = {other for other in reached[module] if module in reached[other]}
        if others:
            circles.add(" ".join(sorted({module} | others)).replace("cluster2.", ""))
    return f"{len(circles)}" + (f" ({', '.join(sorted(circles))})" if circles else "")


def main(arguments: Sequence[str]) -> int:
    """Print the table, and return the exit code."""
    roots = [Path(root).resolve() for root in arguments] or [prose.ROOT]
    columns = [list(figures(root)) for root in roots]
    print("| |", " | ".join(root.name for root in roots), "|")
    print("|---|" + "---|" * len(roots))
    for row in zip(*columns, strict=True):
        print(f"| {row[0][0]} |", " | ".join(value for _, value in row), "|")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
