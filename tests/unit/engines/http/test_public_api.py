"""The engine `http` uses the public API of httptools, websockets, uvloop and asyncio only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import cluster2.engines.http

FILES = sorted(Path(cluster2.engines.http.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_private_attribute_of_others(file: Path) -> None:
    """Names that begin with an underscore are used of an object's own class only, and none is imported from a library."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                found.append(f"{file.name}:{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += [f"{file.name}:{node.lineno}: {name.name}" for name in node.names if name.name.startswith("_")]
    # `_Phase.BEFORE` and the like are a module's own.
    assert [each for each in found if not each.split(": ")[1].startswith("_")] == []
