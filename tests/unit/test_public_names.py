"""What can be imported from cluster2, and what type checkers are told of it."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import cluster2
from cluster2 import errors, events, reference
from cluster2.config import keywords
from cluster2.config.settings import OPTIONS
from cluster2.config.value_types import ValueType


@pytest.mark.parametrize("name", cluster2.__all__)
def test_a_name(name: str) -> None:
    """Each can be imported, and is what it is called."""
    found = getattr(cluster2, name)
    assert getattr(found, "__name__", name).removeprefix("cluster2.") in (name, "worker")


def test_no_name() -> None:
    """What isn't public isn't there, also where its module has it."""
    for name in ("Clsuter", "UsageError", "msgspec", "plain"):
        with pytest.raises(AttributeError, match=name):
            getattr(cluster2, name)


def test_all_events_and_errors_are_there() -> None:
    """A handler's argument can be annotated, and what is raised can be caught, by names from cluster2."""
    public = set(cluster2.__all__)
    assert {kind.__name__ for kind in events.EVENTS.values()} <= public
    raised = {name for name, each in vars(errors).items() if inspect.isclass(each) and issubclass(each, Exception)}
    assert raised - public == {"UsageError"}  # of the command line only


def test_checkers_see_the_same_names() -> None:
    """What is imported for type checkers is what is imported when it is asked for."""
    (block,) = (
        node
        for node in ast.parse(Path(cluster2.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(cluster2.__all__) - {"__version__"}


def test_the_keywords_are_made() -> None:
    """`python -m cluster2.reference keywords > src/cluster2/keywords.py` makes it again."""
    assert Path(keywords.__file__).read_text() == reference.keywords()


def test_every_option_is_a_keyword() -> None:
    """And no keyword is anything else."""
    named = {name for name in keywords.ClusterOptions.__annotations__ if name != "ecv"}
    named |= {f"ecv.{name}" for name in keywords.EcvOptions.__annotations__}
    assert named == set(OPTIONS)


@pytest.mark.parametrize(
    "kind", {id(each.kind): each.kind for each in OPTIONS.values()}.values(), ids=lambda kind: kind.label
)
def test_the_annotation_of_a_default(kind: ValueType) -> None:
    """A default is a value that the annotation allows."""
    kinds = {"int": int, "float": (int, float), "str": str, "bool": bool, "Sequence": (tuple, list)}
    for option in OPTIONS.values():
        if option.kind is kind and option.default not in (None, ()):
            allowed = [kinds.get(each.split("[")[0].strip(), ()) for each in kind.annotation.split(" | ")]
            literal = f'"{option.default}"' in kind.annotation
            assert literal or any(isinstance(option.default, each) for each in allowed), option.name


def test_importing_the_package_is_light() -> None:
    """`import cluster2` brings none of its modules but the version."""
    text = "import cluster2, sys; print(sorted(name for name in sys.modules if name.startswith('cluster2')))"
    said = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True).stdout
    assert said == "['cluster2', 'cluster2.version']\n"
